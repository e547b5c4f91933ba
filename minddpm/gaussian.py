"""Gaussians with diagonal covariance: log-density and KL divergence (Sec. 2), elementwise and in nats."""

import math

import numpy as np


def log_density(x, mean, var):
    """Sec. 2.  log N(x; mean, var), elementwise, nats; the arguments broadcast.

        −½ [ log 2π + log var + (x − mean)² / var ]
    """
    return -0.5 * (math.log(2 * math.pi) + np.log(var) + (x - mean) ** 2 / var)


def kl(mean1, var1, mean2, var2):
    """Sec. 2.  KL( N(mean1, var1) ‖ N(mean2, var2) ), elementwise, nats; the arguments broadcast.

        ½ [ log(var2/var1) + var1/var2 − 1 + (mean1 − mean2)² / var2 ]

    >>> float(kl(0.0, 1.0, 1.0, 1.0))
    0.5
    """
    return 0.5 * (np.log(var2) - np.log(var1) + var1 / var2 - 1 + (mean1 - mean2) ** 2 / var2)
