"""The reverse process p_θ: from the network's output to the mean and variance of Eq. (1) (Sec. 3.2).

The network's output is ε_θ in the paper's own method.  Table 2 compares it with two others, μ̃ prediction and x_0
prediction, and with a variance that is learned as well; the differences between them are in this file alone.
"""

from typing import Any, NamedTuple

import numpy as np

from minddpm.diffusion import mu_theta, per_image, posterior_coefficients, q_posterior, x0_hat

PREDICTS = ("eps", "mu", "x0")


class Reverse(NamedTuple):
    """p_θ(x_{t−1} | x_t) = N(mean, var I), and the estimate of x_0 behind it; mean, x0 like x_t, var broadcasts to it."""

    mean: Any
    var: Any
    x0: Any


def p_theta(s, x_t, t, output, sigma2="beta", clip=True, predicts="eps"):
    """Eq. (1), (11).  p_θ(x_{t−1} | x_t) of the network's output at x_t (B, ..., C) and t, an int or (B,) -> Reverse.

    predicts: "eps", the output is ε_θ and the mean Eq. (11); "mu", it is the mean; "x0", it is x̂_0 and the mean Eq. (7) at it.
    sigma2: the variance, "beta", "beta_tilde" (see Schedule.sigma2), or "learned": the output has 2C channels, of which the
    second half is the log-variance of each number.
    clip: as the released code does (diffusion_utils_2.py:149-165) and Alg. 2 as printed does not, x̂_0 is clipped to [−1, 1],
    where the data are, and the mean is Eq. (7) at the clipped x̂_0: the same mean where the clip changes nothing.

    ValueError: an unknown predicts or sigma2, or an output of another shape.
    """
    mean_output, log_var = split(output, x_t, sigma2)
    var = per_image(s.sigma2(sigma2)[t], x_t) if log_var is None else np.exp(log_var)
    x0 = x0_from(s, x_t, t, mean_output, predicts)
    if clip:
        x0 = np.clip(x0, -1, 1)
        return Reverse(q_posterior(s, x0, x_t, t)[0], var, x0)
    return Reverse(mean_from(s, x_t, t, mean_output, predicts), var, x0)


def split(output, x_t, sigma2):
    """The network's output -> its prediction, shaped as x_t, and its log-variance, or None where that is not learned."""
    channels = x_t.shape[-1] * (2 if sigma2 == "learned" else 1)
    if output.shape != (*x_t.shape[:-1], channels):
        raise ValueError(f"the network's output has shape {output.shape}; expected {(*x_t.shape[:-1], channels)}")
    if sigma2 == "learned":
        return output[..., :x_t.shape[-1]], output[..., x_t.shape[-1]:]
    return output, None


def mean_from(s, x_t, t, prediction, predicts):
    """Eq. (7), (11).  The mean of p_θ(x_{t−1} | x_t) of a prediction of the named kind."""
    _check(predicts)
    if predicts == "eps":
        return mu_theta(s, x_t, t, prediction)
    return prediction if predicts == "mu" else q_posterior(s, prediction, x_t, t)[0]


def x0_from(s, x_t, t, prediction, predicts):
    """Eq. (15).  x̂_0 of a prediction of the named kind; from μ̃, Eq. (7) solved for x_0."""
    _check(predicts)
    if predicts == "eps":
        return x0_hat(s, x_t, t, prediction)
    if predicts == "x0":
        return prediction
    coef_x0, coef_xt = posterior_coefficients(s, t)
    return (prediction - per_image(coef_xt, x_t) * x_t) / per_image(coef_x0, x_t)


def _check(predicts):
    if predicts not in PREDICTS:
        raise ValueError(f"predicts is {predicts!r}; expected one of {', '.join(PREDICTS)}")
