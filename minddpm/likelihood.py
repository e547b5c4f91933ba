"""The variational bound on −log p_θ(x_0), term by term, in bits/dim (Sec. 2, 3.3, 4.3, App. A).

A bit/dim is a nat / (D ln 2), where an image has D numbers.  Everything is computed in float64 from x_0 on, where x_0 is; the
network sees x_t in x_0's own dtype.  A term stays on x_0's device, which is not waited for; a whole bound comes to the host.
"""

import math
from typing import NamedTuple

import numpy as np

from minddpm.device import is_cuda, to_host
from minddpm.diffusion import q_marginal, q_posterior, q_sample, q_step
from minddpm.gaussian import discretized_log_likelihood, kl, log_density
from minddpm.reverse import p_theta

# bits/dim of L_T from which prior_warning speaks.  The paper has about 1e-5 (Sec. 4); its quadratic schedule, which the authors
# also counted as L_T ≈ 0 (App. B), has at most 5.3e-4.
PRIOR_LIMIT = 1e-3


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
        L[:, t - 1], mse[:, t] = reverse_term(s, eps_theta, x0, t, _normal(rng, x0), sigma2, clip, **decoder)
        on_step(t)
    return Bound(to_host(L), to_host(mse))


def prior_term(s, x0):
    """Eq. (5).  L_T = KL( q(x_T | x_0) ‖ N(0, I) ) of each image, bits/dim (B,)."""
    mean, var = q_marginal(s, _float64(x0), s.T)
    return _bits_per_dim(kl(mean, var, 0.0, 1.0))


def reverse_term(s, eps_theta, x0, t, eps, sigma2="beta", clip=True, predicts="eps", levels=256, cdf="erf", decoder_var=None):
    """Eq. (5), (13).  (L_{t−1}, mean of (x_0 − x̂_0)²), each (B,), at x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε; L in bits/dim.

        L_{t−1} = KL( q(x_{t−1} | x_t, x_0) ‖ p_θ(x_{t−1} | x_t) )   for t > 1        L_0 = −log p_θ(x_0 | x_1)

    t is an int, or an int array (B,) of numbers above 1, on x_0's device.  eps_theta(x_t, t) is the network's output, ε_θ unless
    `predicts` says otherwise; sigma2 ("learned" too), clip, predicts: see p_theta.  levels, cdf: see discretized_log_likelihood.
    decoder_var: σ_1² of Eq. (13), where it is to be another number than p_θ's.
    """
    if np.ndim(t) and not is_cuda(t) and np.min(t) < 2:
        raise ValueError(f"t is an array with {np.min(t)} in it; expected numbers above 1, or the int 1")
    s = s.on(t)
    x_t = q_sample(s, _float64(x0), t, eps)
    p = _p_theta(s, eps_theta, x_t, t, x0.dtype, sigma2, clip, predicts)
    x0 = _float64(x0)
    mse = ((x0 - p.x0) ** 2).reshape(len(x0), -1).mean(1)
    if np.ndim(t) == 0 and t == 1:
        return _bits_per_dim(-_log_decoder(x0, p, levels, cdf, decoder_var)), mse
    return _bits_per_dim(kl(*q_posterior(s, x0, x_t, t), p.mean, p.var)), mse


class Estimate(NamedTuple):
    """Unbiased estimates for each image, bits/dim, (B,) each: the bound, its part L_0 and (no estimate) its part L_T."""

    total: np.ndarray
    distortion: np.ndarray
    L_T: np.ndarray

    @property
    def rate(self):
        """Sec. 4.3.  L_1 + … + L_T (B,)."""
        return self.total - self.distortion


def vlb_estimate(s, eps_theta, x0, rng, terms=50, on_step=lambda t: None, **how):
    """Eq. (5).  The bound from `terms` of its T reverse terms (all, if T is less), for a quick look -> Estimate.

    L_0 is always one of them.  t = 2, …, T are cut into terms − 1 ranges whose ends grow geometrically, as the terms are large
    and change fast where t is small; each image draws a t of its own from each range, and its term counts for the whole range.
    Images are independent of each other given the data: see standard_error.  **how: as for vlb.  ValueError: terms < 2.
    """
    if terms < 2:
        raise ValueError(f"terms is {terms}; expected at least 2")
    terms = min(terms, s.T)
    edges = np.maximum(np.geomspace(2, s.T + 1, terms).round().astype(int), 2 + np.arange(terms))      # no range is empty
    L_T, (L_0, _) = prior_term(s, x0), reverse_term(s, eps_theta, x0, 1, _normal(rng, x0), **how)
    on_step(1)
    total = L_0 + L_T
    for first, end in zip(edges[:-1], edges[1:], strict=True):
        t = np.asarray(rng.integers(first, end, len(x0)), like=x0)
        total = total + (end - first) * reverse_term(s, eps_theta, x0, t, _normal(rng, x0), **how)[0]
        on_step(int(end) - 1)
    return Estimate(to_host(total), to_host(L_0), to_host(L_T))


def standard_error(values):
    """The standard error of the mean of (B,) independent values; nan for one value.

    Of a bound's values it covers both the noise of the estimate and the choice of the images.
    """
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def rate_distortion(bound):
    """Sec. 4.3, Fig. 5, Table 4.  (rate (T+1,), rmse (T+1,)) at each t, means over the images of a Bound.

        rate[t] = L_t + … + L_T, bits/dim        rmse[t] = 127.5 √( mean (x_0 − x̂_0)² ), on the scale [0, 255]

    What the receiver of Alg. 4 has been sent when it holds x_t, and how far Eq. (15) at x_t then is from x_0; at t = 0 it has
    been sent everything and holds x_0.  The paper's axis counts the reverse steps, T − t + 1 at x_t.
    """
    return bound.L.mean(0)[::-1].cumsum()[::-1], 127.5 * np.sqrt(bound.mse.mean(0))


def prior_warning(s):
    """Sec. 4.  A sentence with the number, if the schedule leaves too much of x_0 in x_T; None if it does not.

    For numbers in [−1, 1] L_T is at most −½ log₂(1 − ᾱ_T) bits/dim.  Sampling begins from N(0, I) as though it were 0.
    """
    worst = -0.5 * math.log2(1 - s.alpha_bar[s.T])
    if worst < PRIOR_LIMIT:
        return None
    return (f"the schedule leaves ᾱ_T = {s.alpha_bar[s.T]:.2g} at T = {s.T}: L_T is up to {worst:.2g} bits/dim, where the paper "
            "has 1e-5; samples begin from pure noise, which x_T then is not: expected a larger T or β_T")


# Appendix A: the same bound in its two other forms ------------------------------------------------------------------------


def path_bound(s, eps_theta, x0, rng, sigma2="beta", clip=True, predicts="eps", **decoder):
    """Eq. (3).  The bound along one trajectory x_0, x_1, …, x_T of q for each image, bits/dim (B,); its mean over q is Eq. (5)'s.

        L = E_q[ −log p(x_T) − Σ_{t≥1} log p_θ(x_{t−1} | x_t) / q(x_t | x_{t−1}) ]

    The noise of x_1, x_2, … is rng.standard_normal(x0.shape), in this order.  Arguments as for vlb; p_θ(x_0 | x_1) is Eq. (13).
    Each summand is a single draw of what in Eq. (5) is a KL in closed form.
    """
    x_prev, total = _float64(x0), 0.0
    for t in range(1, s.T + 1):
        x_t = q_step(s, x_prev, t, _normal(rng, x0))
        p = _p_theta(s, eps_theta, x_t, t, x0.dtype, sigma2, clip, predicts)
        log_p = _log_decoder(x_prev, p, **decoder) if t == 1 else log_density(x_prev, p.mean, p.var)
        log_q = log_density(x_t, math.sqrt(s.alpha[t]) * x_prev, float(s.beta[t]))
        total = total - log_p + log_q
        x_prev = x_t
    return to_host(_bits_per_dim(total - log_density(x_prev, 0.0, 1.0)))


def marginal_bound(s, eps_theta, data, rng, sigma2="beta", clip=True, predicts="eps", **decoder):
    """Eq. (16).  The bound of a finite data set, each image of which is equally likely, bits/dim (N,): a draw for each image.

        L = KL( q(x_T) ‖ p(x_T) ) + E_q[ Σ_{t≥1} KL( q(x_{t−1} | x_t) ‖ p_θ(x_{t−1} | x_t) ) ] + H(x_0)

    The mean over the images and over q is Eq. (5)'s.  "Not tractable to estimate" (App. A), because q(x_{t−1}) is not known;
    but for N images it is a mixture of N Gaussians, and q(x_{t−1} | x_t) = Σ_n q(x^n | x_t) q(x_{t−1} | x_t, x^n) is another.
    Memory grows as N² D.  data (N, ...): N different images.  Other arguments as for vlb.  ValueError: two equal images.
    """
    N, x0 = len(data), _float64(data)
    if len(np.unique(to_host(data).reshape(N, -1), axis=0)) < N:
        raise ValueError("data has two equal images; expected different ones")

    def log_mixture(x, mean, var, log_weight):
        """log Σ_n weight_n N(x; mean_n, var) for x (N, ...), mean (N, N, ...), log_weight (N, N): the summands (N, N)."""
        return log_weight + log_density(x[:, None], mean, var).reshape(N, N, -1).sum(2)

    def total(log_summands):
        """log Σ_n of the summands (N, N) -> (N,), the largest taken out."""
        largest = log_summands.max(axis=1, keepdims=True)
        return (largest + np.log(np.exp(log_summands - largest).sum(axis=1, keepdims=True)))[:, 0]

    def at(t):
        x_t = q_sample(s, x0, t, _normal(rng, x0))
        mean, var = q_marginal(s, x0, t)
        return x_t, log_mixture(x_t, mean[None], var, -math.log(N))

    x_T, log_q = at(s.T)
    nats = total(log_q) - log_density(x_T, 0.0, 1.0).reshape(N, -1).sum(1) + math.log(N)                      # + H(x_0)
    for t in range(s.T, 0, -1):
        x_t, log_joint = at(t)                                                                  # log q(x^n, x_t)
        log_posterior = log_joint - total(log_joint)[:, None]                                   # log q(x^n | x_t)
        p = _p_theta(s, eps_theta, x_t, t, data.dtype, sigma2, clip, predicts)
        if t == 1:
            log_q, log_p = np.diagonal(log_posterior), _log_decoder(x0, p, **decoder)
        else:
            mu_tilde, var = q_posterior(s, x0, x_t, t)
            x_prev = mu_tilde + var**0.5 * _normal(rng, x0)
            means = q_posterior(s, x0[None], x_t[:, None], t)[0]
            log_q, log_p = total(log_mixture(x_prev, means, var, log_posterior)), log_density(x_prev, p.mean, p.var)
        nats = nats + log_q - log_p.reshape(N, -1).sum(1)
    return to_host(nats) * N / x0.size / math.log(2)


def _p_theta(s, eps_theta, x_t, t, dtype, sigma2, clip, predicts):
    """p_θ(x_{t−1} | x_t) in float64 for the network's output at x_t, of which the network sees a copy of the dtype."""
    return p_theta(s, x_t, t, _float64(eps_theta(x_t.astype(dtype, copy=False), t)), sigma2, clip, predicts)


def _log_decoder(x0, p, levels=256, cdf="erf", decoder_var=None):
    var = p.var if decoder_var is None else decoder_var
    return discretized_log_likelihood(x0, p.mean, var**0.5, levels, cdf)


def _bits_per_dim(nats):
    """(B, ...) nats -> the mean over all axes but the first / ln 2, (B,)."""
    return nats.reshape(len(nats), -1).mean(1) / math.log(2)


def _float64(x):
    return x.astype(np.float64, copy=False)


def _normal(rng, like):
    return np.asarray(rng.standard_normal(like.shape), like=like)
