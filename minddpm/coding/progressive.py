"""Progressive lossless coding: x_0 sent and received for real, in about as many bits as Eq. (5) has (Alg. 3, 4; Sec. 4.3).

    sender                                                       receiver
    x_T ~ q(x_T | x_0)          ── about L_T bits ──>            x_T        and from it x̂_0, Eq. (15)
    x_t ~ q(x_t | x_{t+1}, x_0) ── about L_t bits, t = T−1..1 ─> x_t        and from it x̂_0
    x_0                         ── L_0 bits ──>                  x_0        bit for bit

A draw x_t ~ q is sent by minimal random coding, random_coding.py, using p_θ(x_t | x_{t+1}), which both sides compute; x_0
itself is sent by a range coder using Eq. (13), whose bins have whole numbers for probabilities.

The chain.  Every draw costs about two bits more than its KL.  Of T = 1000 steps with a fraction of a bit each nearly all would
be that overhead, so a coarser chain through some of the times is coded, `respaced_schedule`: a diffusion with a schedule of its
own, whose Eq. (5) is a little larger.  It may begin late, as sending x_0 using Eq. (13) has no such overhead.

Both sides must compute p_θ and the table of Eq. (13) alike, bit for bit.  They do on one machine with one build of NumPy: the
network gets the same batch on both sides, and BLAS runs on one thread meanwhile.  On another machine the last bits may differ
and x_0 is decoded wrong; the check sum of x_0 in the message shows it, and the receiver raises UserError.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from minddpm.coding import random_coding
from minddpm.coding.random_coding import Gaussian
from minddpm.coding.range_coder import Decoder, Encoder, table
from minddpm.data import scale
from minddpm.diffusion import Schedule, q_marginal, q_posterior, q_sample
from minddpm.errors import UserError
from minddpm.gaussian import discretized_log_likelihood, kl
from minddpm.random import rng
from minddpm.reverse import p_theta

LARGEST_X = 100.0           # |x_t| is below it: for data in [−1, 1] and noise of variance 1 more would be 99 standard deviations
CHECK_SUM = 4               # bytes


def respaced_schedule(s, times):
    """Sec. 2.  The chain through some of the times only, ascending and ending in T -> Schedule with T' = len(times).

        q(x_{t_k} | x_{t_{k−1}}) has  α'_k = ᾱ_{t_k} / ᾱ_{t_{k−1}},        so ᾱ'_k = ᾱ_{t_k}.

    Its network is that of s: ε'_θ(x, k) = ε_θ(x, t_k).  ValueError: fewer than two times, or others than these.
    """
    times = np.asarray(times)
    if not (len(times) >= 2 and times[0] >= 1 and times[-1] == s.T and np.all(np.diff(times) > 0)):
        raise ValueError(f"times are {times.tolist()}; expected at least 2, ascending, from 1 or later to T = {s.T}")
    alpha_bar = np.concatenate([[1.0], s.alpha_bar[times]])
    return Schedule(np.concatenate([[0.0], 1 - alpha_bar[1:] / alpha_bar[:-1]]))


@dataclass(frozen=True, eq=False)
class Codec:
    """The knowledge that sender and receiver share: the model's p_θ and the mean KL of each step; made by `calibrate`.

    schedule: the chain that is coded.  reverse(x_t, t): p_θ(x_{t−1} | x_t) -> Reverse, t = 1..T; sigma2 (T+1,): its variance,
    any positive table.  shape: of an image.  levels: x_0 are integers 0..levels−1, at most 256.  kl (T+1,): the mean of L_t
    over images in bits for t = 1..T, which affects only the length of messages.
    """

    schedule: Schedule
    reverse: Callable
    sigma2: np.ndarray
    shape: tuple[int, ...]
    levels: int
    kl: np.ndarray

    def p_theta(self, x_t, t):
        """Eq. (1), (15).  p_θ(x_{t−1} | x_t) with its x̂_0 -> Reverse."""
        return self.reverse(x_t, t)._replace(var=float(self.sigma2[t]))

    def tables(self, p):
        """Eq. (13).  For each image a list of the range coder's tables, one for each number of x_0, from p = p_θ(x_0 | x_1)."""
        grid = scale(np.arange(self.levels), self.levels)
        log_p = discretized_log_likelihood(grid, p.mean[..., None], math.sqrt(p.var), self.levels)
        return [[table(q) for q in image] for image in np.exp(log_p).reshape(len(p.mean), -1, self.levels)]


def calibrate(schedule, eps_theta, x0, levels, sigma2="best", clip=True, predicts="eps", seed=0):
    """The Codec for a model: its schedule and eps_theta(x_t, t); clip, predicts: see reverse.p_theta.

    x0 (N, ...): integers 0..levels−1, images to average over, such as training images, not those to be sent.
    sigma2: "beta" or "beta_tilde", the paper's choices, or "best", which minimises the mean of Eq. (5) over these images.
    Sec. 3.2: β_t is best for x_0 ~ N(0, I), β̃_t for a single x_0.  In between, with M the mean of (μ̃_t − μ_θ)²,

        ∂/∂σ²  ½ [ log σ²/β̃_t + (β̃_t + M)/σ² − 1 ]  =  0        at  σ_t² = β̃_t + M.

    On a coarse chain β_t and β̃_t are far apart, and this saves many bits.  It also bounds q/p, which saves work in sending.
    """
    def reverse(x_t, t):
        with threadpool_limits(1, user_api="blas"):
            return p_theta(schedule, x_t, t, eps_theta(x_t, t), "beta", clip, predicts)

    s, data, noise = schedule, scale(np.asarray(x0), levels), rng("calibration", seed)
    bits, variance = np.zeros(s.T + 1), np.ones(s.T + 1) if sigma2 == "best" else s.sigma2(sigma2).copy()
    bits[s.T] = _mean_bits(*q_marginal(s, data, s.T), 0.0, 1.0)
    for t in range(s.T, 0, -1):
        x_t = q_sample(s, data, t, noise.standard_normal(data.shape, dtype=np.float32))
        q_mean, q_var = q_posterior(s, data, x_t, t)
        p_mean = reverse(x_t, t).mean
        if sigma2 == "best":
            variance[t] = q_var + np.mean((q_mean - p_mean) ** 2, dtype=np.float64)
        if t > 1:
            bits[t - 1] = _mean_bits(q_mean, q_var, p_mean, variance[t])
    return Codec(s, reverse, variance, data.shape[1:], levels, bits)


def _mean_bits(*gaussians):
    nats = kl(*gaussians)
    return np.sum(nats, dtype=np.float64) / len(nats) / math.log(2)


class Sent(NamedTuple):
    """A message and its costs, those of random_coding.Cost: arrays (N, T+1), column t about x_t of each image, in bits."""

    message: bytes
    bits: Any               # the cost of x_t; the message has Σ / 8 bytes and at most 6 more
    kl: Any                 # Eq. (5): L_t at the x_{t+1} that was sent; in column 0 L_0 = −log₂ p_θ(x_0 | x_1)
    bound: Any
    class_bits: Any
    blocks: Any


def send(codec, x0, seed=0):
    """Alg. 3.  Images x_0 (N, ...), integers 0..levels−1 -> Sent, with all of them in one message.

    seed: of the draws that both sides share and of the sender's own.  The same arguments give the same message.
    UserError: no images, or not of the codec's shape and levels.
    """
    x0 = np.asarray(x0)
    if x0.shape[1:] != codec.shape or len(x0) == 0 or x0.dtype.kind not in "iu" or not 0 <= x0.min() <= x0.max() < codec.levels:
        raise UserError(f"x_0 is {x0.dtype} of shape {x0.shape}; expected (N, {', '.join(map(str, codec.shape))}) integers "
                        f"from 0 to {codec.levels - 1}")
    s, data, costs = codec.schedule, scale(x0, codec.levels), np.zeros((5, len(x0), codec.schedule.T + 1))
    out, private = Encoder(), rng("sender's draws", seed)

    def send_draw(t, q, p):
        x_t, costs[:, :, t] = _send_draw(out, codec, q, p, t, seed, private)
        return x_t

    q, p = q_marginal(s, data, s.T), Gaussian(np.zeros_like(data), 1.0)
    x_t = send_draw(s.T, q, p)                              # 1: send x_T ~ q(x_T | x_0) using p(x_T)
    for t in range(s.T - 1, 0, -1):                         # 2: for t = T−1, …, 2, 1 do
        q, p = q_posterior(s, data, x_t, t + 1), codec.p_theta(x_t, t + 1)
        x_t = send_draw(t, q, p)                            # 3:     send x_t ~ q(x_t | x_{t+1}, x_0) using p_θ(x_t | x_{t+1})
    p = codec.p_theta(x_t, 1)
    costs[:3, :, 0] = _send_x0(out, codec, p, x0)           # 5: send x_0 using p_θ(x_0 | x_1)
    return Sent(_check_sum(x0) + out.finish(), *costs)


def _send_draw(out, codec, q, p, t, seed, private):
    """Sends x_t ~ q of each image using p -> x_t (N, ...), its costs (5, N).  q: mean (N, ...) and variance; p likewise."""
    sent = [random_coding.send(out, q_n, p_n, codec.kl[t], (seed, t, n), private)
            for n, (q_n, p_n) in enumerate(zip(_each(*q), _each(p.mean, p.var), strict=True))]
    x_t, costs = zip(*sent, strict=True)
    return np.reshape(x_t, p.mean.shape), np.transpose(costs)


def _send_x0(out, codec, p, x0):
    """Sends x_0 using p = p_θ(x_0 | x_1) -> for each image its bits, its KL and its bound, both of which are L_0: (3, N)."""
    bits = [out.bits]
    for image, tables in zip(x0, codec.tables(p), strict=True):
        for level, its_table in zip(image.ravel().tolist(), tables, strict=True):
            out.put(level, its_table)
        bits.append(out.bits)
    log_p = discretized_log_likelihood(scale(x0, codec.levels), p.mean, math.sqrt(p.var), codec.levels)
    L_0 = -log_p.reshape(len(x0), -1).sum(1) / math.log(2)
    return np.diff(bits), L_0, L_0


def _each(mean, var):
    """The Gaussians of the single images, from their means (N, ...) and the variance that they share."""
    return [Gaussian(image.ravel(), var) for image in mean]


def _check_sum(x0):
    return zlib.crc32(x0.astype(np.uint8).tobytes()).to_bytes(CHECK_SUM, "big")


class Received(NamedTuple):
    """The receiver's arrays after one step."""

    t: int
    x_t: Any                # (N, ...) float32; at t = 0 x_0 itself, uint8
    x0_hat: Any             # Eq. (15), clipped if the codec clips: (N, ...) float32 in [−1, 1]; at t = 0 x_0, scaled
    bits: float             # received so far, of all images


def receive(codec, message, n, seed=0):
    """Alg. 4.  Yields Received for t = T, T−1, …, 1, 0: better and better x̂_0, and at t = 0 the n images, bit for bit.

    codec, n, seed: as sent.  Arrays are NumPy's: the coder runs on the host.
    UserError, at t = 0 or earlier: the message does not decode to images with its check sum.
    """
    T, source, p = codec.schedule.T, Decoder(message[CHECK_SUM:]), Gaussian(np.zeros((n, *codec.shape), np.float32), 1.0)
    x_t = _receive_draw(source, codec, p, T, seed)          # 1: receive x_T using p(x_T)
    for t in range(T - 1, -1, -1):                          # 2: for t = T−1, …, 1, 0 do
        p = codec.p_theta(x_t, t + 1)
        _expect(np.isfinite(p.mean))
        yield Received(t + 1, x_t, p.x0, source.bits)
        if t > 0:
            x_t = _receive_draw(source, codec, p, t, seed)  # 3:     receive x_t using p_θ(x_t | x_{t+1})
    x0 = _receive_x0(source, codec, p)                      # 3:     at t = 0
    _expect(_check_sum(x0) == message[:CHECK_SUM])
    yield Received(0, x0, scale(x0, codec.levels), source.bits)     # 5: return x_0


def _receive_draw(source, codec, p, t, seed):
    """The x_t (N, ...) that _send_draw sent using p."""
    x_t = [random_coding.receive(source, p_n, codec.kl[t], (seed, t, n)) for n, p_n in enumerate(_each(p.mean, p.var))]
    _expect(np.abs(x_t) < LARGEST_X)
    return np.reshape(x_t, p.mean.shape)


def _receive_x0(source, codec, p):
    """The x_0 (N, ...) uint8 that _send_x0 sent using p."""
    x0 = [[source.get(its_table) for its_table in tables] for tables in codec.tables(p)]
    return np.array(x0, np.uint8).reshape(p.mean.shape)


def _expect(true):
    if not np.all(true):
        raise UserError("the message does not decode to what was sent: expected an undamaged message, and the sender's codec, "
                        "network, number of images, seed and arithmetic")
