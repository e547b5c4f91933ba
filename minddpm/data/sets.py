"""Images in, network values out, and back: the sets, the scaling of Sec. 3.3, and the order in which batches are drawn."""

import os
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np

from minddpm.data import readers
from minddpm.errors import UserError
from minddpm.random import rng

BUILT_IN = {
    "digits":  "1,797 handwritten digits, 8x8 grey, 17 levels",
    "mnist":   "5,000 handwritten digits of MNIST, 28x28 grey",
    "mnist16": "the same, padded to 32x32 and averaged to 16x16",
    "faces16": "6,000 drawn faces, 16x16 colour",
}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images for training, and others, never trained on, for evaluation.

    Every tenth image (index % 10 == 9) is held out, unless the files themselves come with a test part.  Both keep the
    order of the files, which may be by class: to evaluate on a few, spread them out.
    """
    name: str
    train: np.ndarray           # (N,H,W,C) uint8, 0..levels-1
    held_out: np.ndarray        # (M,H,W,C) uint8; empty where a set has fewer than ten images
    levels: int = 256

    @property
    def image_shape(self):
        """(H, W, C)."""
        return self.train.shape[1:]

    def batch(self, size, step, seed, flips=False):
        """Alg. 1.  x_0 ~ q(x_0): the images of training step 1, 2, … -> (size,H,W,C) float32 in [−1, 1]; see batch_indices.

        flips: mirror each with probability 1/2 (App. B).  The paper flips all its sets but LSUN Bedroom; digits should not be.
        """
        images = batch_indices(len(self.train), size, step, seed)
        x0 = scale(self.train[np.asarray(images, like=self.train)], self.levels)
        if not flips:
            return x0
        mirrored = np.asarray(rng("mirrored images", seed, step).random(size) < 0.5, like=x0)
        return np.where(mirrored[:, None, None, None], x0[:, :, ::-1], x0)


def load(name_or_path):
    """A built-in set by its name (see BUILT_IN), or a user's own files by their path -> Dataset.

    A path may be a folder of pictures, an .npz or .npy array, MNIST idx or CIFAR-10 binary files: see readers.read.
    A built-in name wins over a file of that name: write ./digits for the file.  UserError: neither, or not readable.
    """
    path = os.path.expanduser(name_or_path)
    if name_or_path in BUILT_IN:
        name, (train, held_out) = name_or_path, (_built_in(name_or_path), None)
    elif os.path.exists(path):
        name, (train, held_out) = os.path.basename(os.path.abspath(path)), readers.read(path)
    else:
        raise UserError(f"{str(name_or_path)!r} is no built-in set ({', '.join(BUILT_IN)}) and no path that exists")
    if held_out is None:
        tenth = np.arange(len(train)) % 10 == 9
        train, held_out = train[~tenth], train[tenth]
    return Dataset(name, train, held_out, levels=17 if name_or_path == "digits" else 256)


def _built_in(name):
    file = {"mnist": "mnist5k", "mnist16": "mnist5k"}.get(name, name)
    path = resources.files("minddpm.data.builtin").joinpath(f"{file}.npz")
    with path.open("rb") as f, np.load(f, allow_pickle=False) as arrays:
        x = arrays["x"]
    x = x.reshape(*x.shape[:3], -1)
    return halve(np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))) if name == "mnist16" else x


def halve(images):
    """(N,H,W,C) -> (N,H/2,W/2,C): each 2x2 square becomes its mean, rounded to the nearest integer, halves to even."""
    N, H, W, C = images.shape
    return np.rint(images.reshape(N, H // 2, 2, W // 2, 2, C).mean((2, 4))).astype(np.uint8)


def scale(images, levels=256):
    """Sec. 3.3.  Integers 0..levels-1 -> [-1,1] linearly, float32, any shape."""
    return images.astype(np.float32) / ((levels - 1) / 2) - 1


def unscale(x, levels=256):
    """Sec. 3.3.  The inverse of `scale`: x, clipped to [-1,1], -> the nearest of the integers 0..levels-1, uint8."""
    return np.rint((np.clip(x, -1, 1) + 1) * ((levels - 1) / 2)).astype(np.uint8)


def batch_indices(n, batch, step, seed):
    """Alg. 1.  x_0 ~ q(x_0): which of n training images make batch number `step` = 1, 2, ...  -> (batch,) indices.

    The epochs' permutations follow each other as one stream, cut into batches: each epoch shows every image once, and a
    batch may hold the end of one epoch and the beginning of the next.  A function of its arguments alone: a resumed run
    sees the batches that an uninterrupted one would have seen.  UserError: batch < 1 or batch > n.
    """
    if batch < 1:
        raise UserError(f"batch {batch} holds no image: expected at least 1")
    if batch > n:
        raise UserError(f"batch {batch} is larger than the training set of {n} images")
    epoch, start = divmod((step - 1) * batch, n)
    stream = [_epoch(n, epoch, seed)[start:start + batch]]
    if start + batch > n:
        stream.append(_epoch(n, epoch + 1, seed)[:start + batch - n])
    return np.concatenate(stream)


@lru_cache(maxsize=2)
def _epoch(n, epoch, seed):
    return rng("order of the images", seed, epoch).permutation(n)
