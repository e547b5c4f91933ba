"""Pictures for people: network values to bytes, many images in one grid, PNG and GIF files that are whole or not there."""

import math

import numpy as np

from minddpm.data import scale as to_network
from minddpm.data import unscale
from minddpm.errors import UserError
from minddpm.storage import files

SIDE = 512                  # pixels: about the longer side of a grid
GAP = 128                   # mid-grey: neither the black of digits nor the white of paper
HOLD = 2000                 # milliseconds that a film rests on its last frame


def to_uint8(x, levels=256):
    """Sec. 3.3.  x in [-1,1], any shape -> the nearest of its levels, spread over 0..255 for display, uint8."""
    return unscale(to_network(unscale(x, levels), levels))


def grid(images, columns=None, scale=None, gap=1):
    """(N,H,W,C) uint8 -> one picture (H',W',C) uint8 of all the images, row by row, each pixel a square of scale x scale.

    Left to itself it is nearly square and about 512 pixels long.  `gap` counts pixels of the images.  UserError: N = 0.
    """
    N, H, W, C = images.shape
    if N == 0:
        raise UserError("a picture of 0 images cannot be drawn: expected at least 1")
    columns = min(N, columns or math.ceil(math.sqrt(N * H / W)))
    rows = math.ceil(N / columns)
    cells = np.full((rows * columns, H + gap, W + gap, C), GAP, np.uint8)
    cells[:N, :H, :W] = images
    picture = cells.reshape(rows, columns, H + gap, W + gap, C).swapaxes(1, 2).reshape(rows * (H + gap), columns * (W + gap), C)
    picture = picture[:rows * (H + gap) - gap, :columns * (W + gap) - gap]
    scale = scale or max(1, round(SIDE / max(picture.shape[:2])))
    return picture.repeat(scale, 0).repeat(scale, 1)


def save_png(path, image):
    """(H,W), (H,W,1) or (H,W,3) uint8 -> a PNG file.  Folders are made as needed.  UserError: the file cannot be written."""
    import imageio.v3 as iio
    files.write(path, iio.imwrite("<bytes>", _plain(image), extension=".png", plugin="pillow", is_batch=False))


def save_gif(path, frames, fps=10):
    """A list of pictures of one size, as for save_png -> a GIF film that rests on its last frame and loops for ever.

    GIF keeps 256 colours a frame and counts time in hundredths of a second.  UserError: the file cannot be written.
    """
    import imageio.v3 as iio
    film = np.stack([_plain(frame) for frame in frames])
    durations = [round(1000 / fps)] * (len(film) - 1) + [HOLD] if len(film) > 1 else HOLD
    files.write(path, iio.imwrite("<bytes>", film, extension=".gif", plugin="pillow", is_batch=True, duration=durations, loop=0))


def _plain(image):
    return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
