"""Images as files, written atomically: grids and films as PNG and GIF, and arrays for FID tools."""

import io
import math
from pathlib import Path

import numpy as np

from minddpm.data import scale as to_network
from minddpm.data import unscale
from minddpm.errors import UserError
from minddpm.fast.device import to_host
from minddpm.storage import files

SIDE = 512                  # pixels: about the longer side of a grid
BACKGROUND = 128            # mid-grey: neither the black of digits nor the white of paper
LAST_FRAME = 2000           # milliseconds that a film shows its last frame
FRAMES = 50                 # frames of a Film, besides the noise


def to_uint8(x, levels=256):
    """Sec. 3.3.  x in [−1, 1], any shape -> the nearest of the levels, spread over 0..255 for display, uint8."""
    return unscale(to_network(unscale(x, levels), levels))


def grid(images, columns=None, scale=None, gap=1):
    """(N,H,W,C) uint8 -> one picture (H',W',C) uint8 of all images, row by row, each pixel a square of scale x scale pixels.

    By default the picture is nearly square, and about 512 pixels long.  gap: in pixels of the images.  UserError: N = 0.
    """
    N, H, W, C = images.shape
    if N == 0:
        raise UserError("a picture of 0 images cannot be drawn: expected at least 1")
    columns = min(N, columns or math.ceil(math.sqrt(N * H / W)))
    rows = math.ceil(N / columns)
    cells = np.full((rows * columns, H + gap, W + gap, C), BACKGROUND, np.uint8)
    cells[:N, :H, :W] = images
    picture = cells.reshape(rows, columns, H + gap, W + gap, C).swapaxes(1, 2).reshape(rows * (H + gap), columns * (W + gap), C)
    picture = picture[:rows * (H + gap) - gap, :columns * (W + gap) - gap]
    scale = scale or max(1, round(SIDE / max(picture.shape[:2])))
    return picture.repeat(scale, 0).repeat(scale, 1)


def save_png(path, image):
    """Write (H,W), (H,W,1) or (H,W,3) uint8 as a PNG file; missing folders are made.  UserError: it cannot be written."""
    import imageio.v3 as iio
    files.write(path, iio.imwrite("<bytes>", _drop_grey_axis(image), extension=".png", plugin="pillow", is_batch=False))


def save_gif(path, frames, fps=10):
    """Write a list of pictures of one size, as for save_png, as a GIF film that pauses at its last frame and repeats for ever.

    GIF has 256 colours a frame and counts time in hundredths of a second.  UserError: the file cannot be written.
    """
    import imageio.v3 as iio
    film = np.stack([_drop_grey_axis(frame) for frame in frames])
    durations = [round(1000 / fps)] * (len(film) - 1) + [LAST_FRAME] if len(film) > 1 else LAST_FRAME
    files.write(path, iio.imwrite("<bytes>", film, extension=".gif", plugin="pillow", is_batch=True, duration=durations, loop=0))


def _drop_grey_axis(image):
    return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image


class Film:
    """Frames of the reverse process of the first batch: an `on_step` for generate.generate, and a GIF file at the end."""

    def __init__(self, T):
        self.times = set(np.linspace(T, 0, FRAMES + 1).round().astype(int).tolist())
        self.frames = []

    def __call__(self, k, t, x_t):
        if k == 0 and t in self.times:
            self.frames.append(grid(to_uint8(to_host(x_t))))

    def save(self, path):
        """Write the GIF.  UserError: it cannot be written."""
        save_gif(path, self.frames, fps=12)


def save_npz(path, x):
    """Write (N,H,W,C) uint8 as arr_0 of an .npz file, for guided-diffusion's evaluator.  UserError: it cannot be written."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, arr_0=x)
    files.write(path, buffer.getvalue())


def save_png_folder(folder, x):
    """Write (N,H,W,C) uint8 as 8-bit RGB files 000000.png, …, for clean-fid and torch-fidelity.  UserError: not writable."""
    for k, image in enumerate(x):
        save_png(Path(folder) / f"{k:06}.png", np.broadcast_to(image, (*image.shape[:2], 3)))
