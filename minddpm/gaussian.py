"""Gaussians with diagonal covariance, elementwise and in nats: log-density and KL divergence (Sec. 2), the decoder (Sec. 3.3)."""

import math

import numpy as np
from scipy.special import log_ndtr


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


def discretized_log_likelihood(x0, mean, sigma, levels=256, cdf="erf"):
    """Eq. (13).  log p_θ(x_0 | x_1) of each number of x_0, nats: the log-probability of its bin under N(mean, sigma²).

        log ∫_{δ₋(x)}^{δ₊(x)} N(y; mean, sigma²) dy        δ₊(x) = x + 1/(levels−1), but ∞ at x = 1
                                                           δ₋(x) = x − 1/(levels−1), but −∞ at x = −1

    x0, mean, sigma: numbers, or arrays of any float dtype; they broadcast.  x0 lies on the grid of `levels` numbers from −1 to 1,
    so that the bins tile the line and their probabilities add to 1.  sigma is the standard deviation σ_1, positive.
    levels: 256 for bytes, 17 for scikit-learn's digits.
    cdf: "erf", the normal distribution itself, finite and right however far in the tail; "tanh", the released code's
    approximation of it (utils.py:112-133), within 1.8e-4 of each cumulative probability and never below 1e-12.
    Result: float64.  ValueError: an unknown cdf, levels < 2, or a sigma that is not positive (CuPy's arrays are not looked at).

    >>> print(f"{discretized_log_likelihood(0.0, 0.0, 1 / 255):.6f}")          # log(Φ(1) − Φ(−1))
    -0.381715
    """
    if cdf not in LOG_PROBABILITY:
        raise ValueError(f"cdf is {cdf!r}; expected one of {', '.join(LOG_PROBABILITY)}")
    if levels < 2:
        raise ValueError(f"levels is {levels}; expected at least 2")
    if isinstance(sigma, int | float | np.number | np.ndarray) and not np.all(sigma > 0):
        raise ValueError(f"sigma is {np.min(sigma):g} somewhere; expected positive numbers")
    log_probability, edge = LOG_PROBABILITY[cdf]
    return log_probability(*standardized_bin(x0, mean, sigma, levels, edge))


def standardized_bin(x0, mean, sigma, levels, edge=1 - 1e-6):
    """Eq. (13).  (δ₋(x_0) − mean)/sigma and (δ₊(x_0) − mean)/sigma, float64; numbers beyond ±edge are in the outermost bins."""
    x0, mean, sigma = (a.astype(np.float64) if np.ndim(a) else float(a) for a in (x0, mean, sigma))
    minus, plus = (x0 - mean - 1 / (levels - 1)) / sigma, (x0 - mean + 1 / (levels - 1)) / sigma
    return np.where(x0 < -edge, -np.inf, minus), np.where(x0 > edge, np.inf, plus)


def log_normal_interval(a, b):
    """Eq. (13).  log ∫_a^b N(z; 0, 1) dz for a < b, one of which may be infinite; float64.

        log [ Φ(b) − Φ(a) ]  =  log Φ(b) + log( 1 − Φ(a)/Φ(b) )

    By symmetry [a, b] is first mirrored to [−b, −a] where that is lower, so that the two Φ are the small ones of the lower tail,
    whose logarithms are exact however far it is.  The relative error is about 1e-16/(b − a).
    """
    mirror = a + b > 0
    a, b = np.where(mirror, -b, a), np.where(mirror, -a, b)
    log_Phi_b = log_ndtr(b)
    return log_Phi_b + np.log1p(-np.exp(log_ndtr(a) - log_Phi_b))


def log_tanh_interval(a, b):
    """Eq. (13).  The same with Φ(z) ≈ ½ (1 + tanh √(2/π) (z + 0.044715 z³)) and not below log 1e-12: utils.py:112-133."""

    def Phi(z):
        return 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    return np.log(np.maximum(Phi(b) - Phi(a), 1e-12))


# How far from 0 a number must be to belong to the outermost bin.  The paper: exactly 1, here up to float32's rounding; the
# released code: 0.999 (utils.py:129-131), which for 256 levels is the same.
LOG_PROBABILITY = {"erf": (log_normal_interval, 1 - 1e-6), "tanh": (log_tanh_interval, 0.999)}
