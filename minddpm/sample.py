"""Sampling: the reverse process, from noise to data (Alg. 2, Sec. 3.2)."""

import math
from collections import deque

import numpy as np

from minddpm.diffusion import mu_theta, q_posterior, x0_hat


def sample(s, eps_theta, shape, seed, sigma2="beta", clip=True, first=0, like=None):
    """Alg. 2.  Samples x_0 (B, ...) = shape of the model eps_theta(x_t, t) -> ε; the arguments of `reverse_process`."""
    _, x0 = deque(reverse_process(s, eps_theta, shape, seed, sigma2, clip, first, like), maxlen=1).pop()
    return x0


def reverse_process(s, eps_theta, shape, seed, sigma2="beta", clip=True, first=0, like=None):
    """Alg. 2.  Yields (t, x_t) for t = T, T−1, …, 0.

        x_T ~ N(0, I);        x_{t−1} = μ_θ(x_t, t) + σ_t z,    z ~ N(0, I) for t > 1, z = 0 for t = 1

    sigma2: σ_t² = "beta" or "beta_tilde" (Sec. 3.2).  clip: see `p_mean`.  Image k has its own stream of noise, (seed, k), and
    is the same whatever the batch: `first` is the k of the first one.  like: an array of the dtype and device to work in;
    float32 on the host by default.
    """
    like = np.zeros(0, np.float32) if like is None else like
    sigma = np.sqrt(s.sigma2(sigma2))
    streams = [np.random.default_rng([seed, first + k]) for k in range(shape[0])]
    x_t = _normal(streams, shape, like)
    yield s.T, x_t
    for t in range(s.T, 0, -1):
        x_t = p_mean(s, x_t, t, eps_theta(x_t, t), clip)
        if t > 1:
            x_t = x_t + float(sigma[t]) * _normal(streams, shape, like)
        yield t - 1, x_t


def p_mean(s, x_t, t, eps, clip=True):
    """Eq. (11).  The mean of p_θ(x_{t−1} | x_t) for ε = ε_θ(x_t, t).

    As printed (clip=False) it is μ_θ.  The released code (diffusion_utils_2.py:149-165) clips x̂_0 of Eq. (15) to [−1, 1], where
    the data are, and puts it into Eq. (7): the same mean where the clip changes nothing.
    """
    if not clip:
        return mu_theta(s, x_t, t, eps)
    mean, _ = q_posterior(s, np.clip(x0_hat(s, x_t, t, eps), -1, 1), x_t, t)
    return mean


def _normal(streams, shape, like):
    draws = np.stack([stream.standard_normal(math.prod(shape[1:]), dtype=np.float32) for stream in streams])
    return np.asarray(draws.reshape(shape), dtype=like.dtype, like=like)


def in_parallel(eps_theta, workers):
    """The same eps_theta(x_t, t), computed by workers (see workers.py) that take the batch in parts."""

    def parallel_eps_theta(x_t, t):
        t = np.broadcast_to(t, len(x_t))
        parts = workers.map(lambda images: eps_theta(x_t[images], t[images]), workers.parts(len(x_t)))
        return np.concatenate(list(parts))

    return parallel_eps_theta
