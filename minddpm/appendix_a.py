"""The variational bound in its two other forms, Eq. (3) and Eq. (16) (App. A), in bits/dim."""

import math

import numpy as np

from minddpm.diffusion import q_marginal, q_posterior, q_sample, q_step
from minddpm.gaussian import log_density
from minddpm.likelihood import bits_per_dim, log_decoder, normal, p_theta_float64


def path_bound(s, eps_theta, x0, rng, sigma2="beta", clip=True, predicts="eps", **decoder):
    """Eq. (3).  The bound along one trajectory x_0, x_1, …, x_T of q for each image, bits/dim (B,); its mean over q is Eq. (5)'s.

        L = E_q[ −log p(x_T) − Σ_{t≥1} log p_θ(x_{t−1} | x_t) / q(x_t | x_{t−1}) ]

    The noise of x_1, x_2, … is rng.standard_normal(x0.shape), in this order.  Arguments as for vlb; p_θ(x_0 | x_1) is Eq. (13).
    Each summand is a single draw of what in Eq. (5) is a KL in closed form.
    """
    x_prev, total = x0.astype(np.float64), 0.0
    for t in range(1, s.T + 1):
        x_t = q_step(s, x_prev, t, normal(rng, x0))
        p = p_theta_float64(s, eps_theta, x_t, t, x0.dtype, sigma2, clip, predicts)
        log_p = log_decoder(x_prev, p, **decoder) if t == 1 else log_density(x_prev, p.mean, p.var)
        log_q = log_density(x_t, math.sqrt(s.alpha[t]) * x_prev, float(s.beta[t]))
        total = total - log_p + log_q
        x_prev = x_t
    return bits_per_dim(total - log_density(x_prev, 0.0, 1.0))


def marginal_bound(s, eps_theta, data, rng, sigma2="beta", clip=True, predicts="eps", **decoder):
    """Eq. (16).  The bound of a finite data set, each image of which is equally likely, bits/dim (N,): a draw for each image.

        L = KL( q(x_T) ‖ p(x_T) ) + E_q[ Σ_{t≥1} KL( q(x_{t−1} | x_t) ‖ p_θ(x_{t−1} | x_t) ) ] + H(x_0)

    The mean over the images and over q is Eq. (5)'s.  "Not tractable to estimate" (App. A), because q(x_{t−1}) is not known;
    but for N images it is a mixture of N Gaussians, and q(x_{t−1} | x_t) = Σ_n q(x^n | x_t) q(x_{t−1} | x_t, x^n) is another.
    Memory grows as N² D.  data (N, ...): N different images.  Other arguments as for vlb.  ValueError: two equal images.
    """
    N, x0 = len(data), data.astype(np.float64)
    if (data[:, None] == data[None]).reshape(N, N, -1).all(axis=2).sum() > N:
        raise ValueError("data has two equal images; expected different ones")

    def log_terms(x, mean, var, log_weight):
        """log weight_n + log N(x; mean_n, var) for x (N, ...), mean (N, N, ...), log_weight (N, N) -> (N, N)."""
        return log_weight + log_density(x[:, None], mean, var).reshape(N, N, -1).sum(2)

    def log_sum_exp(log_summands):
        """log Σ_n of the summands (N, N) -> (N,), the largest taken out."""
        largest = log_summands.max(axis=1, keepdims=True)
        return (largest + np.log(np.exp(log_summands - largest).sum(axis=1, keepdims=True)))[:, 0]

    def draw(t):
        x_t = q_sample(s, x0, t, normal(rng, x0))
        mean, var = q_marginal(s, x0, t)
        return x_t, log_terms(x_t, mean[None], var, -math.log(N))

    x_T, log_q = draw(s.T)
    nats = log_sum_exp(log_q) - log_density(x_T, 0.0, 1.0).reshape(N, -1).sum(1) + math.log(N)           # + H(x_0)
    for t in range(s.T, 0, -1):
        x_t, log_joint = draw(t)                                                                # log q(x^n, x_t)
        log_posterior = log_joint - log_sum_exp(log_joint)[:, None]                             # log q(x^n | x_t)
        p = p_theta_float64(s, eps_theta, x_t, t, data.dtype, sigma2, clip, predicts)
        if t == 1:
            log_q, log_p = np.diagonal(log_posterior), log_decoder(x0, p, **decoder)
        else:
            mu_tilde, var = q_posterior(s, x0, x_t, t)
            x_prev = mu_tilde + var**0.5 * normal(rng, x0)
            means = q_posterior(s, x0[None], x_t[:, None], t)[0]
            log_q, log_p = log_sum_exp(log_terms(x_prev, means, var, log_posterior)), log_density(x_prev, p.mean, p.var)
        nats = nats + log_q - log_p.reshape(N, -1).sum(1)
    return nats * N / x0.size / math.log(2)
