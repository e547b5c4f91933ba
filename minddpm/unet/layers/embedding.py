"""App. B.  The Transformer's sinusoidal position embedding of the timestep."""

import math

import numpy as np


def timestep_embedding(t, dim, like):
    """App. B.  t: the paper's t, 1..T, (B,) -> (B, dim) of the dtype and kind (NumPy's or CuPy's) of `like`.

        [ sin((t−1) f_0), …, sin((t−1) f_{h−1}), cos((t−1) f_0), …, cos((t−1) f_{h−1}) ],     f_i = 10000^(−i/(h−1)),  h = dim/2

    The one place where t counts from 0, as in the released code and weights (nn.py:90-109).  dim is even and at least 4.
    It has no gradient: t is data.  Computed in float64.
    """
    half = dim // 2
    frequencies = np.exp(-math.log(10000) / (half - 1) * np.arange(half, dtype=np.float64, like=like))
    angles = (np.asarray(t, dtype=np.float64, like=like) - 1)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(like.dtype, copy=False)
