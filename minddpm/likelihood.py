"""The variational bound on −log p_θ(x_0), term by term, in bits/dim (Sec. 2, 3.3, 4.3).

A bit/dim is a nat / (D ln 2), where an image has D numbers.  Everything is computed in float64 from x_0 on; the network's input
x_t has x_0's own dtype.
"""

import math
from typing import NamedTuple

import numpy as np

from minddpm.diffusion import q_marginal, q_posterior, q_sample
from minddpm.gaussian import discretized_log_likelihood, kl
from minddpm.reverse import p_theta


class Bound(NamedTuple):
    """Eq. (5).  The bound of each image: L (B, T+1), bits/dim, L[:, k] = L_k; mse (B, T+1), mean (x_0 − x̂_0)² at each t."""

    L: np.ndarray
    mse: np.ndarray

    @property
    def L_T(self):
        """L_T (B,): the bits that the prior costs."""
        return self.L[:, -1]

    @property
    def rate(self):
        """Sec. 4.3.  L_1 + … + L_T (B,): the bits that x_1 costs."""
        return self.L[:, 1:].sum(1)

    @property
    def distortion(self):
        """Sec. 4.3.  L_0 (B,): the bits that x_0 costs once x_1 is known."""
        return self.L[:, 0]

    @property
    def total(self):
        """L (B,): the bits that x_0 costs in all, an upper bound on −log p_θ(x_0)."""
        return self.L.sum(1)


def vlb(s, eps_theta, x0, rng, sigma2="beta", clip=True, on_step=lambda t: None, **decoder):
    """Eq. (5).  L_T, every L_{t−1}, L_0 and the error of x̂_0 (Eq. 15) at each t, for each image -> Bound.

        L = E_q[ L_T + Σ_{t>1} L_{t−1} + L_0 ]

    x0 (B, ...) in [−1, 1].  Each t = T, …, 1 has noise of its own, rng.standard_normal(x0.shape), so that x_t ~ q(x_t | x_0)
    and each term is an unbiased estimate.  eps_theta(x_t, t), sigma2, clip and more keywords: see reverse_term.  At t = 1 the
    variance is s.sigma2(sigma2)[1]: β_1 for "beta", β̃_2 for "beta_tilde"; the released code has β̃_2 for both, which
    decoder_var=s.beta_tilde[2] reproduces.  on_step(t) is called after each of the T steps.
    """
    L, mse = np.zeros((2, len(x0), s.T + 1), like=x0)
    L[:, s.T] = prior_term(s, x0)
    for t in range(s.T, 0, -1):
        L[:, t - 1], mse[:, t] = reverse_term(s, eps_theta, x0, t, normal(rng, x0), sigma2, clip, **decoder)
        on_step(t)
    return Bound(L, mse)


def prior_term(s, x0):
    """Eq. (5).  L_T = KL( q(x_T | x_0) ‖ N(0, I) ) of each image, bits/dim (B,)."""
    mean, var = q_marginal(s, x0.astype(np.float64), s.T)
    return bits_per_dim(kl(mean, var, 0.0, 1.0))


def reverse_term(s, eps_theta, x0, t, eps, sigma2="beta", clip=True, predicts="eps", levels=256, cdf="erf", decoder_var=None):
    """Eq. (5), (13).  (L_{t−1}, mean of (x_0 − x̂_0)²), each (B,), at x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε; L in bits/dim.

        L_{t−1} = KL( q(x_{t−1} | x_t, x_0) ‖ p_θ(x_{t−1} | x_t) )   for t > 1        L_0 = −log p_θ(x_0 | x_1)

    t: an int.  eps_theta(x_t, t) is the network's output, ε_θ unless `predicts` names something else; sigma2 ("learned" too),
    clip, predicts: see p_theta.  levels, cdf: see discretized_log_likelihood.
    decoder_var: σ_1² of Eq. (13), where it is to be another number than p_θ's.
    """
    dtype, x0 = x0.dtype, x0.astype(np.float64)
    x_t = q_sample(s, x0, t, eps)
    p = p_theta_float64(s, eps_theta, x_t, t, dtype, sigma2, clip, predicts)
    mse = ((x0 - p.x0) ** 2).reshape(len(x0), -1).mean(1)
    if t == 1:
        return bits_per_dim(-log_decoder(x0, p, levels, cdf, decoder_var)), mse
    return bits_per_dim(kl(*q_posterior(s, x0, x_t, t), p.mean, p.var)), mse


def rate_distortion(bound):
    """Sec. 4.3, Fig. 5, Table 4.  (rate (T+1,), rmse (T+1,)) at each t, means over the images of a Bound.

        rate[t] = L_t + … + L_T, bits/dim        rmse[t] = 127.5 √( mean (x_0 − x̂_0)² ), on the scale [0, 255]

    rate[t] is what the receiver of Alg. 4 has received once it has x_t, rmse[t] the error of Eq. (15) at that x_t; at t = 0 it
    has everything, and x_0.  The paper's axis counts the reverse steps, T − t + 1 at x_t.
    """
    return bound.L.mean(0)[::-1].cumsum()[::-1], 127.5 * np.sqrt(bound.mse.mean(0))


def p_theta_float64(s, eps_theta, x_t, t, dtype, *how):
    """p_theta in float64, of the network's output at x_t as an array of the dtype; how: sigma2, clip, predicts."""
    return p_theta(s, x_t, t, eps_theta(x_t.astype(dtype, copy=False), t).astype(np.float64, copy=False), *how)


def log_decoder(x0, p, levels=256, cdf="erf", decoder_var=None):
    """Eq. (13).  log p_θ(x_0 | x_1) of each number for p_theta's p, or with another variance decoder_var; nats."""
    var = p.var if decoder_var is None else decoder_var
    return discretized_log_likelihood(x0, p.mean, var**0.5, levels, cdf)


def bits_per_dim(nats):
    """Table 1.  (B, ...) nats -> the mean over all axes but the first / ln 2, (B,)."""
    return nats.reshape(len(nats), -1).mean(1) / math.log(2)


def normal(rng, like):
    """A draw from N(0, I) of the shape of `like` and of its kind of array, float64."""
    return np.asarray(rng.standard_normal(like.shape), like=like)
