"""Random numbers: one stream for each purpose, seed and index, and no stream shared by two of them."""

import numpy as np

# A purpose's place is part of its streams' key: append only.
PURPOSES = ("initial weights", "order of the images", "mirrored images", "training step", "sampling", "shared latents",
            "interpolation", "choice of images", "bound", "shared draws", "sender's draws", "calibration",
            "images of noise")


def rng(purpose, seed, *index):
    """A NumPy generator whose stream is a function of the purpose, one of PURPOSES, the seed >= 0 and the index alone.

    index: such as a training step or an image's number, from 0 to 2^32 - 1.  The streams are those of NumPy's SeedSequence with
    the purpose and the index as its spawn_key, which keeps all combinations apart.  ValueError: an unknown purpose or index.
    """
    if not all(0 <= number < 2**32 for number in index):
        raise ValueError(f"index is {index}; expected numbers from 0 to 2^32 - 1")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(PURPOSES.index(purpose), *index)))
