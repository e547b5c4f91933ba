"""App. B.  Dropout, with masks that a seed determines."""

import numpy as np

from minddpm import device as backend


def dropout(x, rate, seeds, layer):
    """App. B.  Dropout.  x (B,...), rate in [0, 1), seeds: B integers below 2⁶⁴, layer: this layer's number -> y (B,...).

        y = x m / (1 − rate),     m = 0 with probability rate (to within 2⁻¹⁶), else 1, each number for itself
    Back:  dx = dy m / (1 − rate).
    Keeps: m.

    An image's mask depends on its own seed and the layer alone: a replayed forward pass draws the same mask, and so does
    the same image in another batch or thread.
    """
    if rate == 0:
        return x, lambda dy: dy
    seeds = backend.to_host(seeds) if backend.is_cuda(seeds) else seeds
    bits = np.stack([_uint16(int(seed), layer, x[0].size) for seed in seeds])
    kept = np.asarray(bits >= round(rate * 2**16), like=x).reshape(x.shape)
    scale = 1 / (1 - rate)
    y = x * kept * scale

    def dropout_back(dy):
        return dy * kept * scale

    return y, dropout_back


def _uint16(seed, layer, n):
    """n random integers below 2¹⁶, four from each word of the counter-based generator Philox with the key (seed, layer)."""
    words = np.random.Philox(key=np.array([seed, layer], dtype=np.uint64)).random_raw(-(-n // 4))
    return words.view(np.uint16)[:n]
