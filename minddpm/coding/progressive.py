"""Progressive lossless coding: x_0 sent and received for real, in about as many bits as Eq. (5) says (Alg. 3, 4; Sec. 4.3).

    sender                                                       receiver
    x_T ~ q(x_T | x_0)          ── about L_T bits ──>            x_T        and from it x̂_0, Eq. (15)
    x_t ~ q(x_t | x_{t+1}, x_0) ── about L_t bits, t = T−1..1 ─> x_t        and from it x̂_0
    x_0                         ── L_0 bits ──>                  x_0        bit for bit

A draw x_t ~ q is sent by minimal random coding, mrc.py, with p_θ(x_t | x_{t+1}), which both sides compute; x_0 itself by a
range coder under Eq. (13), whose bins become whole numbers.

The chain.  Every draw that is sent costs about two bits more than its KL.  Of T = 1000 steps with a fraction of a bit each
nearly all would be that, so what is coded is a coarser chain through some of the times, `merge`: a diffusion with a schedule
of its own, whose Eq. (5) is a little larger.  It may begin late, as what x_0 costs under Eq. (13) has no such overhead.

What both sides must compute alike: p_θ and Eq. (13)'s table, bit for bit.  They do on one machine with one build of NumPy:
the network sees the same batch on both sides, and BLAS runs on one thread meanwhile.  On another machine the last bits may
differ, x_0 then comes out wrong, and the check sum in the message tells: the receiver raises UserError.
"""

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from minddpm.coding import random_coding as mrc
from minddpm.coding.random_coding import Gaussian
from minddpm.coding.range_coder import Decoder, Encoder, table
from minddpm.data import scale
from minddpm.diffusion import Schedule, q_marginal, q_posterior, q_sample
from minddpm.errors import UserError
from minddpm.gaussian import discretized_log_likelihood, kl
from minddpm.reverse import Reverse, p_theta

FARTHEST = 100.0            # no number of x_t is farther from 0: data in [−1, 1] and noise of variance 1 would take 99 σ
PRIVATE = 0                 # first word of the seed of the sender's own draws; mrc.py's have others
MAGIC, HEADER, SUM = b"DDPM\x01", struct.Struct(">IIII"), struct.Struct(">I")


def merge(s, times):
    """Sec. 2.  The chain through some of the times only, ascending and ending in T -> Schedule with T' = len(times).

        q(x_{t_k} | x_{t_{k−1}}) has  α'_k = ᾱ_{t_k} / ᾱ_{t_{k−1}},        so ᾱ'_k = ᾱ_{t_k}.

    Its network is that of s: ε'_θ(x, k) = ε_θ(x, t_k).
    """
    times = np.asarray(times)
    if not (len(times) >= 2 and times[0] >= 1 and times[-1] == s.T and np.all(np.diff(times) > 0)):
        raise ValueError(f"times are {times.tolist()}; expected at least 2, ascending, from 1 or later to T = {s.T}")
    alpha_bar = np.concatenate([[1.0], s.alpha_bar[times]])
    return Schedule(np.concatenate([[0.0], 1 - alpha_bar[1:] / alpha_bar[:-1]]))


def spread(s, first, steps):
    """Times for `merge`: from `first` to T, evenly spread in log ᾱ_t/(1 − ᾱ_t), where the steps' KLs are about alike."""
    log_snr = np.log(s.alpha_bar[1:]) - np.log1p(-s.alpha_bar[1:])
    wanted = np.linspace(log_snr[first - 1], log_snr[-1], steps)
    return sorted({int(np.argmin(np.abs(log_snr - value))) + 1 for value in wanted})


@dataclass(frozen=True, eq=False)
class Codec:
    """What sender and receiver share: the model, p_θ's variances, and what a step's KL is on average.

    schedule, eps_theta(x_t, t), t = 1..T: the chain that is coded.  shape: of an image.  levels: x_0 are integers
    0..levels−1, at most 256.  sigma2 (T+1,): σ_t², any positive table.  kl (T+1,): the mean of L_t over images in bits for
    t = 1..T; it shortens messages, no more.  clip, predicts: see p_theta.
    """

    schedule: Schedule
    eps_theta: Callable
    shape: tuple[int, ...]
    levels: int
    sigma2: np.ndarray
    kl: np.ndarray
    clip: bool = True
    predicts: str = "eps"

    def p(self, x_t, t):
        """Eq. (1), (15).  p_θ(x_{t−1} | x_t) -> Reverse, with x̂_0 in it.  BLAS runs on one thread meanwhile."""
        with threadpool_limits(1, user_api="blas"):
            output = self.eps_theta(x_t, t)
        return p_theta(self.schedule, x_t, t, output, "beta", self.clip, self.predicts)._replace(var=float(self.sigma2[t]))

    def p_x0(self, p):
        """Eq. (13).  For each image a list of one range coder's table a number of x_0, from p = p_θ(x_0 | x_1)."""
        grid = scale(np.arange(self.levels), self.levels)
        log_p = discretized_log_likelihood(grid, p.mean[..., None], math.sqrt(p.var), self.levels)
        return [[table(q) for q in image] for image in np.exp(log_p).reshape(len(p.mean), -1, self.levels)]

    @property
    def check_sum(self):
        """Of everything but the network, so that a message for another codec is known at once."""
        parts = self.schedule.beta, self.sigma2, self.kl, [self.levels, self.clip, *self.shape, *self.predicts.encode()]
        return zlib.crc32(b"".join(np.asarray(part, np.float64).tobytes() for part in parts))


def calibrate(schedule, eps_theta, x0, levels, sigma2="best", clip=True, predicts="eps", seed=0):
    """A Codec for a model.  x0 (N, ...): integers, images to average over: training images, not those to be sent.

    sigma2: "beta" or "beta_tilde", the paper's choices, or "best", which makes the mean of Eq. (5) over these images least.
    Sec. 3.2: β_t is best for x_0 ~ N(0, I), β̃_t for a single x_0.  In between, with M the mean of (μ̃_t − μ_θ)²,

        ∂/∂σ²  ½ [ log σ²/β̃_t + (β̃_t + M)/σ² − 1 ]  =  0        at  σ_t² = β̃_t + M.

    On a coarse chain β_t and β̃_t are far apart, and this saves much.  It also bounds q/p, which saves work in mrc.py.
    """
    s, data, rng = schedule, scale(np.asarray(x0), levels), np.random.default_rng(seed)
    bits, sigma2_t = np.zeros(s.T + 1), np.ones(s.T + 1) if sigma2 == "best" else np.array(s.sigma2(sigma2))
    codec = Codec(s, eps_theta, data.shape[1:], levels, sigma2_t, bits, clip, predicts)       # the tables are filled below
    bits[s.T] = _mean_bits(*q_marginal(s, data, s.T), 0.0, 1.0)
    for t in range(s.T, 0, -1):
        x_t = q_sample(s, data, t, rng.standard_normal(data.shape, dtype=np.float32))
        q, p = q_posterior(s, data, x_t, t), codec.p(x_t, t)
        if sigma2 == "best":
            sigma2_t[t] = q[1] + np.mean((q[0] - p.mean) ** 2, dtype=np.float64)
        if t > 1:
            bits[t - 1] = _mean_bits(*q, p.mean, sigma2_t[t])
    return codec


def _mean_bits(*gaussians):
    nats = kl(*gaussians)
    return np.sum(nats, dtype=np.float64) / len(nats) / math.log(2)


class Sent(NamedTuple):
    """A message, and mrc.Cost's account of it: arrays (N, T+1), column t about x_t of each image, in bits."""

    message: bytes
    bits: Any               # what x_t cost: Σ / 8 and 25 to 27 bytes are the message's length
    kl: Any                 # Eq. (5): L_t at the x_{t+1} that was sent; in column 0 L_0 = −log₂ p_θ(x_0 | x_1)
    bound: Any
    class_bits: Any
    blocks: Any


class Received(NamedTuple):
    """What the receiver has after one step."""

    t: int
    x_t: Any                # (N, ...) float32; at t = 0 x_0 itself, uint8
    x0_hat: Any             # Eq. (15), clipped if the codec says so: (N, ...) float32 in [−1, 1]; at t = 0 x_0
    bits: Any               # (N,): bits of each image in this step


def send(codec, x0, seed=0):
    """Alg. 3.  Images x_0 (N, ...), integers 0..levels−1 -> Sent, with all of them in one message.

        1: send x_T ~ q(x_T | x_0) using p(x_T)
        2: for t = T−1, …, 2, 1:  send x_t ~ q(x_t | x_{t+1}, x_0) using p_θ(x_t | x_{t+1})
        3: send x_0 using p_θ(x_0 | x_1)

    seed, 0..2³²−1: of the draws that both sides share; it stands in the message.  The same arguments, the same message.
    UserError: no images, or others than the codec is for.
    """
    x0 = np.asarray(x0)
    if x0.shape[1:] != codec.shape or len(x0) == 0 or x0.dtype.kind not in "iu" or not 0 <= x0.min() <= x0.max() < codec.levels:
        raise UserError(f"x_0 is {x0.dtype} of shape {x0.shape}; expected (N, {', '.join(map(str, codec.shape))}) integers "
                        f"from 0 to {codec.levels - 1}")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; expected 0 to {2**32 - 1}")
    s, data, out = codec.schedule, scale(x0, codec.levels), Encoder()
    account = np.zeros((5, len(x0), s.T + 1))
    x_t, p = np.zeros_like(data), Reverse(np.zeros_like(data), 1.0, None)                   # p(x_T) = N(0, I)
    for t in range(s.T, 0, -1):
        mean, var = q_marginal(s, data, t) if t == s.T else q_posterior(s, data, x_t, t + 1)
        private, x_t = np.random.default_rng([PRIVATE, _check_sum(x0), seed, t]), np.empty_like(data)
        for n in range(len(x0)):
            q_n, p_n = Gaussian(mean[n].ravel(), var), Gaussian(p.mean[n].ravel(), p.var)
            x, account[:, n, t] = mrc.send(out, q_n, p_n, codec.kl[t], (seed, t, n), private)
            x_t[n] = x.reshape(codec.shape)
        p = codec.p(x_t, t)
    for n, tables in enumerate(codec.p_x0(p)):
        before = out.bits
        for symbol, its_table in zip(x0[n].ravel().tolist(), tables, strict=True):
            out.put(symbol, its_table)
        account[0, n, 0] = out.bits - before
    log_p = discretized_log_likelihood(data, p.mean, math.sqrt(p.var), codec.levels)
    account[1:3, :, 0] = -log_p.reshape(len(x0), -1).sum(1) / math.log(2)
    message = MAGIC + HEADER.pack(seed, codec.check_sum, _check_sum(x0), len(x0)) + out.finish()
    return Sent(message + SUM.pack(zlib.crc32(message)), *account)


def receive(codec, message):
    """Alg. 4.  Yields Received for t = T, T−1, …, 1, 0: better and better x̂_0, and at t = 0 what was sent, bit for bit.

        1: receive x_T using p(x_T)
        2: for t = T−1, …, 1, 0:  receive x_t using p_θ(x_t | x_{t+1})
        3: return x_0

    UserError: the message is damaged, cut short or for another codec, and, instead of t = 0 or earlier, if the receiver's
    network does not say what the sender's said.  Arrays are NumPy's: the coder runs on the host.
    """
    seed, N, x0_check_sum, payload = _open(codec, message)
    s, source = codec.schedule, Decoder(payload)
    wrong = UserError("the message does not decode to what was sent: this network, or this machine's arithmetic, is not the "
                      "sender's")
    p = Reverse(np.zeros((N, *codec.shape), np.float32), 1.0, None)
    for t in range(s.T, 0, -1):
        x_t, bits = np.empty_like(p.mean), np.empty(N)
        for n in range(N):
            before = source.bits
            p_n = Gaussian(p.mean[n].ravel(), p.var)
            x_t[n] = mrc.receive(source, p_n, codec.kl[t], (seed, t, n)).reshape(codec.shape)
            bits[n] = source.bits - before
        if not np.all(np.abs(x_t) < FARTHEST):
            raise wrong
        p = codec.p(x_t, t)
        if not np.all(np.isfinite(p.mean)):
            raise wrong
        yield Received(t, x_t, p.x0, bits)
    x0, bits = np.empty(p.mean.shape, np.uint8), np.empty(N)
    for n, tables in enumerate(codec.p_x0(p)):
        before = source.bits
        x0[n] = np.reshape([source.get(its_table) for its_table in tables], codec.shape)
        bits[n] = source.bits - before
    if _check_sum(x0) != x0_check_sum:
        raise wrong
    yield Received(0, x0, scale(x0, codec.levels), bits)


def report(sent, times=None):
    """Sec. 4.3.  A message's account as a table: bits an image in each step, beside L_t of Eq. (5).

    times: for a merged chain the times that it goes through, as the names of its own 1..T.
    """
    def row(name, bits, L, bound, class_bits, blocks):
        each = (bits - L - class_bits) / blocks if blocks else 0.0
        return f"{name:>5} {L:9.2f} {bits:9.2f} {bits - L:9.2f} = {class_bits:5.2f} + {blocks:5.2f} x {each:5.2f} {bound:9.2f}"

    T = sent.bits.shape[1] - 1
    rows = [row(times[t - 1] if times and t else t, *(column[:, t].mean() for column in sent[1:])) for t in range(T, -1, -1)]
    total = row("all", *(column.sum(1).mean() for column in sent[1:]))
    return "\n".join(["    t       L_t      sent  overhead = class + blocks x  each     bound", *rows, total])


def _check_sum(x0):
    return zlib.crc32(x0.astype(np.uint8).tobytes())


def _open(codec, message):
    """The message's seed, N, check sum of x_0 and payload."""
    if message[:len(MAGIC)] != MAGIC:
        raise UserError(f"the message begins with {message[:len(MAGIC)]!r}; expected {MAGIC!r}: it is no message, or of another "
                        "version")
    end = len(message) - SUM.size
    if end < len(MAGIC) + HEADER.size or SUM.unpack(message[end:])[0] != zlib.crc32(message[:end]):
        raise UserError(f"the message of {len(message)} bytes is damaged or cut short: its check sum is wrong")
    seed, codec_check_sum, x0_check_sum, N = HEADER.unpack_from(message, len(MAGIC))
    if codec_check_sum != codec.check_sum:
        raise UserError("the message is for another codec: chain, variances, levels or shape of the images differ")
    return seed, N, x0_check_sum, message[len(MAGIC) + HEADER.size:end]
