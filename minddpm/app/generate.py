"""Samples of a model for people: batch after batch with a progress bar, and as pictures, films and arrays."""

import io
from itertools import count
from pathlib import Path

import numpy as np

from minddpm import device as backend
from minddpm.app import pictures as images
from minddpm.app.fitting import proposing
from minddpm.app.progress import Progress
from minddpm.errors import UserError
from minddpm.sample import in_parallel, reverse_process
from minddpm.storage import files

FRAMES = 50                 # pictures of the reverse process in a GIF, besides the noise it begins with


def generate(model, n, seed, workers, batch=64, sigma2=None, clip=None, device="cpu", on_step=lambda k, t, x_t: None):
    """Alg. 2.  n samples x_0 (n,H,W,C) float32 in [-1,1], on the host; σ_t² and clipping as the model says unless given.

    on_step(k, t, x_t) sees each batch on its way, k the number of its first image.  UserError: another σ_t² than the learned
    one; out of memory, with a batch that fits.
    """
    if sigma2 and sigma2 != model.sigma2 == "learned":
        raise UserError(f"sigma2 is {sigma2}, but this model has learned its variance; leave --sigma2 out")
    size, s = model.config.image_size, model.schedule
    starts = range(0, n, batch)
    like = backend.to_device(np.zeros(0, np.float32), device)
    network, x0 = in_parallel(model.eps_theta, workers), []

    def eps_theta(x_t, t):
        return proposing(lambda: network(x_t, t), len(x_t), lambda images: network(x_t[:images], t), device, "sampling")

    with Progress("sample", s.T * len(starts), "step") as progress:
        for k in starts:
            shape = (min(batch, n - k), size, size, model.config.in_channels)
            for t, x_t in reverse_process(s, eps_theta, shape, seed, sigma2 or model.sigma2,
                                          model.clip if clip is None else clip, model.predicts, first=k, like=like):
                on_step(k, t, x_t)
                if t < s.T:
                    progress.update(f"images {k + 1}-{k + shape[0]} of {n}")
            x0.append(backend.to_host(x_t))
    return np.concatenate(x0)


def save_picture(path, model, n, seed, workers):
    """A grid of n samples as a PNG file."""
    device = "cuda" if backend.is_cuda(model.params["conv_in"]["weight"]) else "cpu"
    images.save_png(path, images.grid(images.to_uint8(generate(model, n, seed, workers, device=device))))


class Film:
    """Frames of the reverse process of the first batch: an `on_step` for `generate`, and a GIF file at the end."""

    def __init__(self, T):
        self.times = set(np.linspace(T, 0, FRAMES + 1).round().astype(int).tolist())
        self.frames = []

    def __call__(self, k, t, x_t):
        if k == 0 and t in self.times:
            self.frames.append(images.grid(images.to_uint8(backend.to_host(x_t))))

    def save(self, path):
        """Write the GIF.  UserError: it cannot be written."""
        images.save_gif(path, self.frames, fps=12)


def save_npz(path, x):
    """(N,H,W,C) uint8 -> an .npz file with arr_0, which guided-diffusion's evaluator reads.  UserError: not writable."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, arr_0=x)
    files.write(path, buffer.getvalue())


def save_png_folder(folder, x):
    """(N,H,W,C) uint8 -> 8-bit RGB files 000000.png, …, which clean-fid and torch-fidelity read.  UserError: not writable."""
    for k, image in zip(count(), x):
        images.save_png(Path(folder) / f"{k:06}.png", np.broadcast_to(image, (*image.shape[:2], 3)))
