"""The reverse process p_θ: from the network's output to the mean and variance of Eq. (1) (Sec. 3.2).

The network's output is ε_θ in the paper's own method.  Table 2 compares it with two others, μ̃ prediction and x_0
prediction, and with a variance that is learned as well; this file turns each into a mean, a variance and an x̂_0.
"""

from typing import Any, NamedTuple

import numpy as np

from minddpm.diffusion import mu_theta, per_image, posterior_coefficients, q_posterior, x0_hat


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
    where the data are, and the mean is Eq. (7) at the clipped x̂_0: the same mean where the clip changes nothing.  For μ̃
    prediction the released code clips x̂_0 only and keeps the mean.

    ValueError: an unknown predicts or sigma2, or an output of another shape.
    """
    prediction, log_var = split(output, x_t, sigma2)
    var = per_image(s.sigma2(sigma2)[t], x_t) if log_var is None else np.exp(log_var)
    mean, _ = mean_from(s, x_t, t, prediction, predicts)
    x0 = x0_from(s, x_t, t, prediction, predicts)
    if not clip:
        return Reverse(mean, var, x0)
    x0 = np.clip(x0, -1, 1)
    return Reverse(q_posterior(s, x0, x_t, t)[0], var, x0)


def split(output, x_t, sigma2):
    """The network's output -> its prediction, shaped as x_t, and its log-variance, or None where that is not learned."""
    channels = x_t.shape[-1] * (2 if sigma2 == "learned" else 1)
    if output.shape != (*x_t.shape[:-1], channels):
        raise ValueError(f"the network's output has shape {output.shape}; expected {(*x_t.shape[:-1], channels)}")
    if sigma2 == "learned":
        return output[..., :x_t.shape[-1]], output[..., x_t.shape[-1]:]
    return output, None


def mean_from(s, x_t, t, prediction, predicts):
    """Eq. (7), (8), (11).  The mean of p_θ(x_{t−1} | x_t), of a prediction of ε, μ̃ or x_0, in which it is linear.

    Back: dmean -> dprediction = c_t dmean,  c_t = −β_t / (√α_t √(1 − ᾱ_t)) for ε,  1 for μ̃,  √ᾱ_{t−1} β_t / (1 − ᾱ_t) for x_0.
    The first one, squared, over 2σ_t² is the weight of Eq. (12).
    """
    if predicts == "eps":
        mean, c = mu_theta(s, x_t, t, prediction), -s.beta[t] / np.sqrt(s.alpha[t] * (1 - s.alpha_bar[t]))
    elif predicts == "mu":
        mean, c = prediction, np.ones(np.shape(t))
    elif predicts == "x0":
        mean, c = q_posterior(s, prediction, x_t, t)[0], posterior_coefficients(s, t)[0]
    else:
        raise ValueError(f"predicts is {predicts!r}; expected 'eps', 'mu' or 'x0'")
    slope = per_image(c, prediction)

    def mean_from_back(dmean):
        return slope * dmean

    return mean, mean_from_back


def x0_from(s, x_t, t, prediction, predicts):
    """Eq. (15).  x̂_0 of a prediction of ε, μ̃ or x_0; from μ̃, Eq. (7) solved for x_0."""
    if predicts == "eps":
        return x0_hat(s, x_t, t, prediction)
    if predicts == "x0":
        return prediction
    coef_x0, coef_xt = posterior_coefficients(s, t)
    return (prediction - per_image(coef_xt, x_t) * x_t) / per_image(coef_x0, x_t)
