"""Minimal random coding: a draw x ~ q is sent to a receiver who knows only p, in about KL(q ‖ p) bits (Alg. 3, 4; Sec. 4.3).

Sender and receiver share draws X_1, X_2, … ~ p.  The sender picks K such that X_K ~ q and sends K; the receiver takes the
K-th.  Harsha et al. (the paper's reference 19) do it in KL + 2 log₂(KL + 1) + O(1) bits.  Havasi et al. (20) choose among
N = 2^(KL + c) candidates by importance weight: simple, but then x follows q only as N grows.

Here x follows q exactly.  K is chosen by Li and El Gamal's Poisson functional representation (arXiv 1701.02827): let T_k be
the arrival times of a Poisson process of rate 1, r = q/p, and

    K = argmin_k T_k / r(X_k).        Then X_K ~ q, and K has an entropy of at most KL + log₂(KL + 1) + 4 bits.

Why: the points (T_k, X_k) are a Poisson process of density p(x) in t and x; with v = t / r(x) in the place of t its density
is r(x) p(x) = q(x) for every v.  So the least v is Exp(1), and its x is a draw from q, whatever v is.

To be sure of the minimum the search goes on until T_k exceeds it by sup r, and for two Gaussians of one variance sup r = ∞.
So the share of q for which r > h is sent in another way:

    q = min(r, h) p  +  (r − h)⁺ p        the first part as above, with about h candidates and never many more;
                                          the second, an escape, by sending its numbers as they are, 32 bits each.

The sender draws an x ~ q of its own.  With probability (1 − h / r(x))⁺ this x is sent, as an escape; otherwise K is.  So no KL
is too large for this code: a q that is all but impossible under p is sent by escapes, and x still follows q.

Blocks.  The work grows as 2^KL, so x is cut into blocks of a few bits.  The receiver needs the number of blocks, but does not
know q.  So one symbol, the class, goes first: class c means that the KL of all of x lies in (BLOCK_BITS 2^(c−1), BLOCK_BITS 2^c].
There are then 2^c blocks, or one if c <= 0, and both sides know about how many bits a block has, which sets the code for K.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr

from minddpm.coding.range_coder import table
from minddpm.random import rng

LIMIT = 2**14               # h, as many candidates take 10 ms; of blocks of 4 bits 1 in 1400 is an escape, of 8 bits 1 in 15
BLOCK_BITS = 4.0            # the largest mean KL of the blocks of one x
LOWEST = -8                 # the lowest class, up to 4/256 bits; a smaller KL needs no class of its own
CHUNK = 2**10               # candidates drawn at a time; the receiver draws only the chunk that holds the K-th
OCTAVES = 24                # K < 2²⁴: with h = 2¹⁴ the search ends earlier, except with a probability of e⁻¹⁰⁰⁰
ESCAPE = OCTAVES            # the symbol after the octaves of K


class Gaussian(NamedTuple):
    """N(mean, var I): mean (D,), var (D,) or one number."""

    mean: Any
    var: Any


class Cost(NamedTuple):
    """The cost of sending one x, in bits."""

    bits: float             # Σ −log₂ of the probabilities of all its symbols
    kl: float               # KL(q ‖ p)
    bound: float            # Σ over blocks of KL + log₂(KL + 1) + 4, Li and El Gamal's theorem
    class_bits: float       # the part of `bits` that the class takes
    blocks: int             # the number of blocks


def send(out, q, p, average, key, private):
    """Alg. 3.  Sends x ~ q to a receiver who knows p -> x (D,) float32, Cost.  out: a range_coder.Encoder; q, p: Gaussian.

    average: a guess of KL(q ‖ p) in bits that both sides know.  key: the seed of the shared draws and two numbers that no
    other x of this seed has.  private: the sender's own generator, independent of the shared draws.
    """
    v, m = np.broadcast_to(q.var / p.var, q.mean.shape), (q.mean - p.mean) / np.sqrt(p.var)
    kl = 0.5 * (v - 1 - np.log(v) + m * m) / math.log(2)
    D, before = len(m), out.bits
    c = min(max(math.ceil(math.log2(max(np.sum(kl), 1e-9) / BLOCK_BITS)), LOWEST), highest(D))
    out.put(c - LOWEST, classes(average, highest(D)))
    class_bits, bound, z = out.bits - before, 0.0, np.empty(D, np.float32)
    blocks, about = layout(key, D, c)
    for k, numbers in enumerate(blocks):
        z[numbers] = send_block(out, m[numbers], v[numbers], about, (*key, k), private)
        block_kl = np.sum(kl[numbers])
        bound += block_kl + math.log2(block_kl + 1) + 4
    return in_units_of_x(p, z), Cost(out.bits - before, np.sum(kl), bound, class_bits, len(blocks))


def receive(source, p, average, key):
    """Alg. 4.  Returns the x (D,) that `send` sent, bit for bit.  source: a range_coder.Decoder; p, average, key: as sent."""
    D = len(p.mean)
    blocks, about = layout(key, D, LOWEST + source.get(classes(average, highest(D))))
    z = np.empty(D, np.float32)
    for k, numbers in enumerate(blocks):
        z[numbers] = receive_block(source, len(numbers), about, (*key, k))
    return in_units_of_x(p, z)


def in_units_of_x(p, z):
    """x = mean + √var z, float32, for z in units of p."""
    return (p.mean + np.sqrt(p.var) * z).astype(np.float32)


def send_block(out, m, v, about, key, private):
    """Sends z ~ q = N(m, v I) with p = N(0, I) -> z (d,) float32; m, v (d,).

        log r(z) = Σ −½ log v − (z − m)² / 2v + z² / 2  =  Σ a z² + b z  + c,        largest at z = m / (1 − v) if v < 1
    """
    a, b, c = (0.5 - 0.5 / v).astype(np.float32), (m / v).astype(np.float32), -0.5 * np.sum(np.log(v) + m * m / v)
    highest_log_r = -0.5 * np.sum(np.log(v) - m * m / (1 - v)) if np.all(v < 1) else math.inf
    log_h = min(math.log(LIMIT), highest_log_r)

    z = (m + np.sqrt(v) * private.standard_normal(len(m))).astype(np.float32)
    if math.log(1 - private.random()) > log_h - (z * z @ a + z @ b + c):
        out.put(ESCAPE, octaves(about))
        for word in z.view(np.uint16).tolist():
            out.put_number(word, 2**16)
        return z

    least, time, chunk = math.inf, 0.0, 0
    while time == 0 or math.log(time) - log_h < least:          # else every later T_k / h is larger
        X = candidates(key, chunk, len(m))
        T = time + np.cumsum(private.standard_exponential(CHUNK))
        log_v = np.log(T) - np.minimum(X * X @ a + X @ b + c, log_h)
        k = int(np.argmin(log_v))
        if log_v[k] < least:
            least, K, z = log_v[k], chunk * CHUNK + k + 1, X[k]
        time, chunk = T[-1], chunk + 1
    octave = K.bit_length() - 1
    out.put(octave, octaves(about))
    out.put_number(K - 2**octave, 2**octave)
    return z


def receive_block(source, d, about, key):
    """Returns the z (d,) that `send_block` sent."""
    octave = source.get(octaves(about))
    if octave == ESCAPE:
        return np.array([source.get_number(2**16) for _ in range(2 * d)], np.uint16).view(np.float32)
    K = 2**octave + source.get_number(2**octave)
    return candidates(key, (K - 1) // CHUNK, d)[(K - 1) % CHUNK]


def candidates(key, chunk, d):
    """X_k for k = chunk·CHUNK + 1, …, in units of p: (CHUNK, d) standard normals, float32, the same on both sides."""
    return rng("shared draws", *key, chunk).standard_normal((CHUNK, d), dtype=np.float32)


def highest(D):
    """The highest class of an x of D numbers, that of D blocks."""
    return math.ceil(math.log2(D))


@functools.lru_cache
def classes(average, highest):
    """The table of the classes LOWEST..highest for an x of `average` bits: 4^−(distance from the class of the average)."""
    middle = min(max(math.log2(max(average, 1e-9) / BLOCK_BITS) + 0.5, LOWEST), highest)
    return table([4.0 ** -abs(c - middle) for c in range(LOWEST, highest + 1)])


def layout(key, D, c):
    """The blocks of class c for D numbers: a list of arrays of indices, and about how many bits of KL each has, 3/4 of the most.

    The numbers of a block are chosen at random, so that all blocks share the detailed and the flat parts of an image.
    """
    blocks = np.array_split(rng("shared draws", *key).permutation(D), min(D, 2 ** max(c, 0)))
    return blocks, 0.75 * BLOCK_BITS * 2.0**c / len(blocks)


@functools.lru_cache
def octaves(about):
    """The table for ⌊log₂ K⌋ = 0..OCTAVES − 1 and ESCAPE, for a block with a KL of `about` bits.

    Within an octave K is nearly uniform and costs its last ⌊log₂ K⌋ bits.  Given x, K is 1 + a Poisson number of mean
    v (r − 1 + S(r)), v ~ Exp(1), S(h) = E_p (r − h)⁺: the earlier arrivals, whose T_k / r(X_k) is larger.  That is a geometric
    law of mean A = r + S(r).  For two Gaussians of one variance log r ~ N(κ, 2κ) under q, κ being their KL in nats, so

        P(⌊log₂ K⌋ >= j) = E_q (1 − 1/A)^(2ʲ − 1),        S(h) = Φ((κ − log h)/√2κ) − h Φ((−κ − log h)/√2κ)

    without the escapes.  E_q is a sum over 1001 points within 8 standard deviations.  Other Gaussians differ a little, which
    costs a fraction of a bit.
    """
    kappa, log_h = about * math.log(2), math.log(LIMIT)
    sd, u = math.sqrt(2 * kappa), np.linspace(-8, 8, 1001)
    q, log_r = np.exp(-u * u / 2), kappa + sd * u
    kept, log_r = q / q.sum() * np.exp(np.minimum(0, log_h - log_r)), np.minimum(log_r, log_h)
    S = ndtr((kappa - log_r) / sd) - np.exp(log_r) * ndtr((-kappa - log_r) / sd)
    A = np.maximum(np.exp(log_r) + S, 1)
    tail = [np.sum(kept * (1 - 1 / A) ** (2**j - 1)) for j in range(OCTAVES + 1)]
    return table([*-np.diff(tail), max(0, 1 - tail[0])])
