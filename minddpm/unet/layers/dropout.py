"""App. B.  Dropout, with masks that a seed determines."""

import numpy as np


def dropout(x, rate, seeds, layer):
    """App. B.  Dropout.  x (B,...), rate in [0, 1), seeds: B integers below 2⁶⁴, layer: this layer's number -> y (B,...).

        y = x m / (1 − rate),     m = 0 with probability rate (to within 2⁻¹⁶), else 1, independently
    Back:  dx = dy m / (1 − rate).
    Keeps: m.

    An image's mask depends on its own seed and the layer alone, by the counter-based generator Philox with these two as its
    key: a replayed forward pass draws the same mask, and so does the same image in another batch.
    """
    streams = [np.random.Generator(np.random.Philox(key=np.array([int(seed), layer], dtype=np.uint64))) for seed in seeds]
    bits = [stream.integers(2**16, size=x.shape[1:], dtype=np.uint16) for stream in streams]
    kept = np.asarray(np.stack(bits) >= round(rate * 2**16), like=x)
    scale = 1 / (1 - rate)
    y = x * kept * scale

    def dropout_back(dy):
        return dy * kept * scale

    return y, dropout_back
