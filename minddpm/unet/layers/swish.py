"""App. B.  The nonlinearity."""

import numpy as np


def swish(x):
    """App. B.  Swish (SiLU), elementwise.

        y = x s,     s = 1 / (1 + e^−x)
    Back:  s' = s (1 − s), so y' = s + x s (1 − s) = s + y (1 − s);  dx = dy y'.
    Keeps: s, y.
    """
    with np.errstate(over="ignore"):                # e^−x may reach ∞ below x = −88, where s = 0 is right
        s = 1 / (1 + np.exp(-x))
    y = x * s

    def swish_back(dy):
        return dy * (s + y * (1 - s))

    return y, swish_back
