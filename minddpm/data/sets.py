"""The data sets, the scaling of their images to [−1, 1] and back (Sec. 3.3), and the batches of training (Alg. 1)."""

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
    """Images to train on, and held-out ones for evaluation.

    Every tenth image (index % 10 == 9) is held out, unless the files come with a test part of their own.  Both parts keep the
    order of the files, which may be by class: a few images to evaluate on should be chosen from all over a part.
    """
    name: str
    train: np.ndarray           # (N,H,W,C) uint8, 0..levels-1; a NumPy or a CuPy array
    held_out: np.ndarray        # (M,H,W,C) uint8; empty if a set has fewer than ten images
    levels: int = 256

    @property
    def image_shape(self):
        """(H, W, C)."""
        return self.train.shape[1:]

    def batch(self, size, step, seed, flips=False):
        """Alg. 1.  x_0 ~ q(x_0): the images of training step 1, 2, …; (size,H,W,C) float32 in [−1, 1].

        The permutations of the epochs form one stream that is cut into batches: each epoch has every image once, and a batch may
        hold the end of one epoch and the beginning of the next.  The result depends on the arguments alone, so a resumed run
        gets the batches of an uninterrupted one.
        flips: mirror each with probability 1/2 (App. B).  The paper does so with all its sets but LSUN Bedroom; not for digits.
        """
        epoch, start = divmod((step - 1) * size, len(self.train))
        epochs = range(epoch, -(-step * size // len(self.train)))
        images = np.concatenate([_epoch(len(self.train), k, seed) for k in epochs])[start:start + size]
        x0 = scale(self.train[np.asarray(images, like=self.train)], self.levels)
        if not flips:
            return x0
        mirrored = np.asarray(rng("mirrored images", seed, step).random(size) < 0.5, like=x0)
        return np.where(mirrored[:, None, None, None], x0[:, :, ::-1], x0)


def load(name_or_path):
    """The Dataset of a built-in name (see BUILT_IN), or of the path of a user's own files.

    A path may be a folder of pictures, an .npz or .npy array, MNIST idx or CIFAR-10 binary files: see readers.read.  A file
    whose name is that of a built-in set is loaded as ./digits.  UserError: no such name or path, or files that cannot be read.
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
    """Images (N,H,W,C) at half their size, (N,H/2,W/2,C): the mean of each 2x2 square, rounded, halves to even."""
    N, H, W, C = images.shape
    return np.rint(images.reshape(N, H // 2, 2, W // 2, 2, C).mean((2, 4))).astype(np.uint8)


def scale(images, levels=256):
    """Sec. 3.3.  Integers 0..levels-1 of any shape, scaled linearly to [-1,1], float32."""
    return images.astype(np.float32) / ((levels - 1) / 2) - 1


def unscale(x, levels=256):
    """Sec. 3.3.  The inverse of `scale`: the integers 0..levels-1 nearest to x, which is clipped to [-1,1]; uint8."""
    return np.rint((np.clip(x, -1, 1) + 1) * ((levels - 1) / 2)).astype(np.uint8)


@lru_cache(maxsize=2)
def _epoch(n, epoch, seed):
    return rng("order of the images", seed, epoch).permutation(n)
