"""Sampling: the reverse process, and what the paper makes of it: x̂_0 on the way, shared latents, interpolation."""

import math
from collections import deque
from itertools import count

import numpy as np

from minddpm.diffusion import check_t, per_image, q_sample
from minddpm.fast.prefetch import ahead
from minddpm.reverse import p_theta


def sample(s, eps_theta, shape, seed, sigma2="beta", clip=True, **more):
    """Alg. 2.  Samples x_0 (B, ...) = shape of the model eps_theta(x_t, t) -> ε; the arguments of `reverse_process`."""
    return _last(reverse_process(s, eps_theta, shape, seed, sigma2, clip, **more))


def reverse_process(s, eps_theta, shape, seed, sigma2="beta", clip=True, predicts="eps", first=0, like=None):
    """Alg. 2.  Yields (t, x_t) for t = T, T−1, …, 0, from x_T ~ N(0, I), shape (B, ...).

    eps_theta(x_t, t) is the network's output, ε_θ unless `predicts` says otherwise; sigma2, clip, predicts: see p_theta.
    As printed in the paper clip is False.  Image k has its own stream of noise, (seed, k), and is the same whatever the
    batch: `first` is the k of the first one.  like: an array of the dtype and device to work in; float32 on the host if None.
    """
    for t, x_t, _ in _from_noise(s, eps_theta, shape, seed, sigma2, clip, predicts, first, like):
        yield t, x_t


def progressive(s, eps_theta, shape, seed, sigma2="beta", clip=True, predicts="eps", first=0, like=None):
    """Fig. 6, 14, Sec. 4.3.  Yields (t, x̂_0) for t = T, T−1, …, 1: Eq. (15) at each x_t of `reverse_process`; its arguments.

        x̂_0 = (x_t − √(1 − ᾱ_t) ε_θ(x_t, t)) / √ᾱ_t,        clipped to [−1, 1] where clip is true

    The last, at t = 1, is the sample itself: Eq. (7) is x_0 there, and Alg. 2 adds no noise.
    """
    for t, _, x0 in _from_noise(s, eps_theta, shape, seed, sigma2, clip, predicts, first, like):
        if t:
            yield t, x0


def shared_latents(s, eps_theta, shape, seed, times, n, sigma2="beta", clip=True, predicts="eps", first=0, like=None):
    """Fig. 7, Sec. 4.3.  Yields (t, x_t (B, ...), x_0 (n, B, ...)) for t in times, falling: n draws of x_0 ~ p_θ(x_0 | x_t).

    The x_t are those of `reverse_process`, which has the other arguments: B trajectories, each left n times at each t, each
    time with noise of its own.  The smaller t is, the more the n draws have in common.
    """
    times, B = {int(t) for t in check_t(s, times, lowest=0)}, shape[0]
    for t, x_t in reverse_process(s, eps_theta, shape, seed, sigma2, clip, predicts, first, like):
        if t in times:
            keys = [[seed, first + k, 1 + draw] for draw in range(n) for k in range(B)]     # not 0: numpy takes [a, 0] for [a]
            latents = np.concatenate([x_t] * n)
            z = noise(keys, latents.shape, latents)
            x0 = _last(reverse_steps(s, eps_theta, latents, t, z, sigma2, clip, predicts))
            yield t, x_t, x0.reshape(n, *shape)
        if t == min(times):
            return


def interpolate(s, eps_theta, x0, x0_prime, lam, t=500, seed=0, sigma2="beta", clip=True, predicts="eps", first=0):
    """Fig. 8, 9, Sec. 4.4.  Images x̄_0 between x_0 and x_0' (B, ...): (B, ...) for a number lam = λ, (N, B, ...) for N of them.

        x_t ~ q(x_t | x_0),   x_t' ~ q(x_t | x_0');        x̄_t = (1 − λ) x_t + λ x_t';        x̄_0 ~ p_θ(x_0 | x̄_t)

    The paper prints x̄_t = (1 − λ) x_0 + λ x_0', a slip: its own text before it, Fig. 8 and the released code mix x_t
    (diffusion_utils.py:258-299).  All noise is the same for each λ, so that x_t and x_t' are too, as the paper has it, and x̄_0
    moves with λ alone; λ = 0 and 1 are the reconstructions of x_0 and x_0'.  t = 0 mixes the images themselves, t = T gives
    images that have nothing to do with them.  The k-th pair has its own stream of noise, (seed, k), for ε, ε', z_t, z_{t−1}, …
    whatever the batch: `first` is the k of the first pair.  Works in x0's dtype and device.  ValueError: shapes that differ.
    """
    if x0.shape != x0_prime.shape:
        raise ValueError(f"x0_prime has shape {x0_prime.shape}; expected x0's, {x0.shape}")
    z = noise([[seed, first + k] for k in range(len(x0))], x0.shape, x0)
    x_t       = q_sample(s, x0,       t, next(z))
    x_t_prime = q_sample(s, x0_prime, t, next(z))
    lambdas = per_image(np.atleast_1d(lam), x0[None])                           # (N, 1, ...)
    x_bar = (1 - lambdas) * x_t + lambdas * x_t_prime                           # (N, B, ...), and one z for all N
    batch = x_bar.reshape(-1, *x0.shape[1:])
    z_bar = (np.broadcast_to(z_t, x_bar.shape).reshape(batch.shape) for z_t in z)
    x0_bar = _last(reverse_steps(s, eps_theta, batch, t, z_bar, sigma2, clip, predicts))
    return x0_bar.reshape(np.shape(lam) + x0.shape)


def reverse_steps(s, eps_theta, x_t, start, z, sigma2="beta", clip=True, predicts="eps"):
    """Alg. 2, lines 2-6.  From x_t (B, ...) at t = start: yields (t, x_t, x̂_0) for t = start, …, 1, and last (0, x_0, x_0).

        x_{t−1} = μ_θ(x_t, t) + σ_t z,        z ~ N(0, I) for t > 1, z = 0 for t = 1

    z: an iterator of draws like x_t.  x̂_0 is Eq. (15), clipped where clip is true.  The others: see reverse_process.
    """
    for t in range(start, 0, -1):
        p = p_theta(s, x_t, t, eps_theta(x_t, t), sigma2, clip, predicts)
        yield t, x_t, p.x0
        x_t = p.mean + p.var**0.5 * next(z) if t > 1 else p.mean
    yield 0, x_t, x_t


def noise(keys, shape, like):
    """Yields draws (B, ...) = shape from N(0, I), for ever: image k has a stream of its own, that of the seed keys[k].

    Each is drawn while the one before it is used.
    """
    streams = [np.random.default_rng(key) for key in keys]

    def draw(_):
        return np.stack([stream.standard_normal(math.prod(shape[1:]), dtype=np.float32) for stream in streams])

    for draws in ahead(draw, count()):
        yield np.asarray(draws.reshape(shape), dtype=like.dtype, like=like)


def _from_noise(s, eps_theta, shape, seed, sigma2, clip, predicts, first, like):
    like = np.zeros(0, np.float32) if like is None else like
    z = noise([[seed, first + k] for k in range(shape[0])], shape, like)
    yield from reverse_steps(s, eps_theta, next(z), s.T, z, sigma2, clip, predicts)


def _last(steps):
    """The x_0 with which the steps end."""
    return deque(steps, maxlen=1).pop()[1]


def in_parallel(eps_theta, workers):
    """The same eps_theta(x_t, t), computed by workers (see workers.py) that take the batch in parts."""

    def parallel_eps_theta(x_t, t):
        def of_part(images):
            return eps_theta(x_t[images], t[images] if np.ndim(t) else t)

        parts = workers.parts(len(x_t))
        return np.concatenate(list(workers.map(workers.helped(of_part) if len(parts) == 1 else of_part, parts)))

    return parallel_eps_theta
