"""Sampling: Algorithm 2, and Sec. 4.3 and 4.4, which use it: x̂_0 on the way, shared latents, interpolation."""

import math

import numpy as np

from minddpm.diffusion import check_t, per_image, q_sample
from minddpm.random import rng
from minddpm.reverse import p_theta


def reverse_process(s, eps_theta, z, x_t=None, start=None, sigma2="beta", clip=True, predicts="eps"):
    """Alg. 2.  Sampling: yields (t, x_t, x̂_0) for t = T, …, 1 and at the end (0, x_0, x_0), all (B, ...).

        1: x_T ~ N(0, I)
        2: for t = T, …, 1 do
        3:    z ~ N(0, I) if t > 1, else z = 0
        4:    x_{t−1} = 1/√α_t ( x_t − (1 − α_t)/√(1 − ᾱ_t) ε_θ(x_t, t) ) + σ_t z
        5: end for
        6: return x_0

    eps_theta(x_t, t) is the network's output, ε_θ unless `predicts` names something else; z an iterator of draws from N(0, I),
    see `noise`.  x_t, start: begin with this x_t at t = start, not with noise at T.  Line 4 is μ_θ + σ_t z by p_theta, where
    sigma2, clip and predicts are explained; as printed, clip is False.  x̂_0 is Eq. (15), clipped where clip is true.
    """
    x_t = next(z) if x_t is None else x_t                                           # 1: x_T ~ N(0, I)
    for t in range(s.T if start is None else start, 0, -1):                         # 2: for t = T, …, 1 do
        p = p_theta(s, x_t, t, eps_theta(x_t, t), sigma2, clip, predicts)
        yield t, x_t, p.x0
        z_t = next(z) if t > 1 else 0                                               # 3: z ~ N(0, I) if t > 1, else z = 0
        x_t = p.mean + p.var**0.5 * z_t                                             # 4: x_{t−1} = μ_θ(x_t, t) + σ_t z
                                                                                    # 5: end for
    yield 0, x_t, x_t                                                               # 6: return x_0


def sample(s, eps_theta, shape, seed, sigma2="beta", clip=True, predicts="eps", first=0, like=None):
    """Alg. 2.  Samples x_0 (B, ...) = shape of the model eps_theta(x_t, t) -> ε; see reverse_process, p_theta and image_noise."""
    z = image_noise(shape, seed, first, like)
    return last(reverse_process(s, eps_theta, z, sigma2=sigma2, clip=clip, predicts=predicts))


def image_noise(shape, seed, first=0, like=None):
    """Alg. 2.  The draws x_T, z_T, z_{T−1}, … (B, ...) = shape of the samples number first, first + 1, … of a seed.

    Each image has its own stream: sample k of a seed is the same whatever the batch.  like: see `noise`.
    """
    return noise([rng("sampling", seed, first + k) for k in range(shape[0])], shape, like)


def noise(streams, shape, like=None):
    """Yields draws (B, ...) = shape from N(0, I), for ever: image k's from the generator streams[k].

    like: an array of the dtype and kind (NumPy's or CuPy's) of the draws; float32 and NumPy's if None.
    """
    like = np.zeros(0, np.float32) if like is None else like
    while True:
        draws = np.stack([stream.standard_normal(math.prod(shape[1:]), dtype=np.float32) for stream in streams])
        yield np.asarray(draws.reshape(shape), dtype=like.dtype, like=like)


def last(steps):
    """The x_0 with which the steps of a reverse process end."""
    for _, x_t, _ in steps:
        x_0 = x_t
    return x_0


def progressive(s, eps_theta, shape, seed, first=0, like=None, **how):
    """Fig. 6, 14, Sec. 4.3.  Yields (t, x̂_0) for t = T, T−1, …, 1: Eq. (15) at each x_t on the way to `sample`'s images.

        x̂_0 = (x_t − √(1 − ᾱ_t) ε_θ(x_t, t)) / √ᾱ_t,        clipped to [−1, 1] where clip is true

    The last, at t = 1, is the sample itself: Eq. (7) is x_0 there, and Alg. 2 adds no noise.  how: sigma2, clip, predicts.
    """
    for t, _, x0 in reverse_process(s, eps_theta, image_noise(shape, seed, first, like), **how):
        if t:
            yield t, x0


def shared_latents(s, eps_theta, shape, seed, times, n, first=0, like=None, **how):
    """Fig. 7, Sec. 4.3.  Yields (t, x_t (B, ...), x_0 (n, B, ...)) for t in times, falling: n draws of x_0 ~ p_θ(x_0 | x_t).

    The x_t are those on the way to `sample`'s images: B trajectories, each continued n times from each t, each time with other
    noise.  The smaller t is, the more the n draws have in common.  how: sigma2, clip, predicts.
    """
    times, B = {int(t) for t in check_t(s, times, lowest=0)}, shape[0]
    for t, x_t, _ in reverse_process(s, eps_theta, image_noise(shape, seed, first, like), **how):
        if t in times:
            latents = np.concatenate([x_t] * n)
            z = noise([rng("shared latents", seed, first + k, i) for i in range(n) for k in range(B)], latents.shape, latents)
            yield t, x_t, last(reverse_process(s, eps_theta, z, latents, t, **how)).reshape(n, *shape)
        if t == min(times):
            return


def interpolate(s, eps_theta, x0, x0_prime, lam, t=500, seed=0, sigma2="beta", clip=True, predicts="eps", first=0):
    """Fig. 8, 9, Sec. 4.4.  Images x̄_0 between x_0 and x_0' (B, ...): (B, ...) for a number lam = λ, (N, B, ...) for N of them.

        x_t ~ q(x_t | x_0),   x_t' ~ q(x_t | x_0');        x̄_t = (1 − λ) x_t + λ x_t';        x̄_0 ~ p_θ(x_0 | x̄_t)

    The paper prints x̄_t = (1 − λ) x_0 + λ x_0', a slip: its own text before it, Fig. 8 and the released code mix x_t
    (diffusion_utils.py:258-299).  All noise is the same for each λ, so that x_t and x_t' are too, as the paper has it, and x̄_0
    moves with λ alone; λ = 0 and 1 are the reconstructions of x_0 and x_0'.  t = 0 mixes the images themselves, t = T gives
    images that have nothing to do with them.  The k-th pair has its own stream of noise for ε, ε', z_t, z_{t−1}, …, whatever the
    batch: `first` is the k of the first pair.  Results are of x0's kind and dtype.  ValueError: shapes that differ.
    """
    if x0.shape != x0_prime.shape:
        raise ValueError(f"x0_prime has shape {x0_prime.shape}; expected x0's, {x0.shape}")
    z = noise([rng("interpolation", seed, first + k) for k in range(len(x0))], x0.shape, x0)
    x_t       = q_sample(s, x0,       t, next(z))
    x_t_prime = q_sample(s, x0_prime, t, next(z))
    lambdas = per_image(np.atleast_1d(lam), x0[None])                           # (N, 1, ...)
    x_bar = (1 - lambdas) * x_t + lambdas * x_t_prime                           # (N, B, ...), and one z for all N
    batch = x_bar.reshape(-1, *x0.shape[1:])
    z_bar = (np.broadcast_to(z_t, x_bar.shape).reshape(batch.shape) for z_t in z)
    x0_bar = last(reverse_process(s, eps_theta, z_bar, batch, t, sigma2, clip, predicts))
    return x0_bar.reshape(np.shape(lam) + x0.shape)
