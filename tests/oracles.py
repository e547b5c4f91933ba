"""Models that need no training: the best possible ε_θ in closed form for data whose q(x_t) is known.

The network that minimises L_simple is ε*(x_t, t) = E[ε | x_t] = (x_t − √ᾱ_t E[x_0 | x_t]) / √(1 − ᾱ_t).
"""

import numpy as np

from minddpm.diffusion import mu_theta, per_image


def gaussian(s, mean=0.0, var=1.0):
    """ε* of data x_0 ~ N(mean, var), coordinates independent: E[x_0 | x_t] is the posterior mean of two Gaussians."""

    def eps_theta(x_t, t):
        a, b = per_image(np.sqrt(s.alpha_bar[t]), x_t), per_image(1 - s.alpha_bar[t], x_t)
        return b**0.5 * (x_t - a * mean) / (a**2 * var + b)

    return eps_theta


def finite(s, data):
    """ε* of data that are one of the images in data (N, ...), each equally likely: E[x_0 | x_t] is their weighted mean."""
    N = len(data)

    def eps_theta(x_t, t):
        a, b = per_image(np.sqrt(s.alpha_bar[t]), x_t), per_image(1 - s.alpha_bar[t], x_t)
        flat, means = x_t.reshape(len(x_t), -1), data.reshape(N, -1)
        column_a, column_b = np.reshape(a, (-1, 1)), np.reshape(b, (-1, 1))
        distance2 = ((flat[:, None] - column_a[..., None] * means[None]) ** 2).sum(2)
        log_weight = -distance2 / (2 * column_b)
        weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
        x0 = (weight / weight.sum(1, keepdims=True) @ means).reshape(x_t.shape)
        return (x_t - a * x0) / b**0.5

    return eps_theta


def point(s, x0):
    """ε* of data that are the image x0 alone, or of images of which each x_t (B, ...) meets its own x0 (B, ...)."""

    def eps_theta(x_t, t):
        return (x_t - per_image(np.sqrt(s.alpha_bar[t]), x_t) * x0) / per_image(np.sqrt(1 - s.alpha_bar[t]), x_t)

    return eps_theta


def marginal_of_linear_model(s, eps_theta, sigma2):
    """Mean and variance of p_θ(x_0) in one dimension where ε_θ is linear in x_t: x_{t−1} = a x_t + b + σ_t z from N(0, 1)."""
    mean, var = 0.0, 1.0
    for t in range(s.T, 0, -1):
        b, at1 = (mu_theta(s, x, t, eps_theta(x, t)).item() for x in (np.zeros((1, 1)), np.ones((1, 1))))
        a = at1 - b
        mean, var = a * mean + b, a * a * var + sigma2[t]
    return mean, var
