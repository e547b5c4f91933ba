"""Alg. 3 and 4: the receiver gets the images that were sent, in the right number of bits, and every x_t follows q.

The models are closed forms: 2-D Gaussian data, for which the best ε_θ is linear, and one 64-dimensional Gaussian for the digits,
a poor model of held-out digits.  A trained network is in the slow tests.
"""

import functools
import math
import types
from dataclasses import replace
from pathlib import Path

import literal
import numpy as np
import pytest
from alg3_coding import times_even_in_log_snr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from minddpm import data
from minddpm.coding import Codec, calibrate, progressive, random_coding, receive, respaced_schedule, send
from minddpm.coding.range_coder import TOTAL, Decoder, Encoder, table
from minddpm.diffusion import Schedule, q_posterior
from minddpm.errors import UserError
from minddpm.gaussian import kl
from minddpm.likelihood import vlb
from minddpm.reverse import p_theta

CHECK_SUM = 4               # bytes of a message besides its symbols
CERTAIN = 1e-6              # the p-value below which a planted fault counts as found; right code must stay above 1e-3
WRONG = "the message does not decode to what was sent: expected "
LINEAR = Schedule.linear()
COV = np.array([[0.08, 0.05], [0.05, 0.06]])               # of the 2-D data: standard deviations about 1/4, correlated


def gaussian_model(s, mean, cov):
    """The best ε_θ for data x_0 ~ N(mean, cov) along the last axis: E[x_0 | x_t] is linear in x_t."""

    def eps_theta(x_t, t):
        a, b = math.sqrt(s.alpha_bar[t]), 1 - s.alpha_bar[t]
        gain = np.linalg.solve(a * a * cov + b * np.eye(len(cov)), a * cov)
        x0 = mean + (x_t - a * mean) @ gain
        return ((x_t - a * x0) / math.sqrt(b)).astype(x_t.dtype)

    return eps_theta


def two_d(n, seed=0, points=16):
    """n draws of 2-D Gaussian data, `points` points each, on 256 levels: (n, points, 2) uint8."""
    x = np.random.default_rng(seed).multivariate_normal([0, 0], COV, (n, points), method="cholesky")
    return data.unscale(x, 256)


@functools.cache
def two_d_codec(sigma2="best", steps=6, first=5):
    s = respaced_schedule(LINEAR, times_even_in_log_snr(LINEAR, first, steps))
    return calibrate(s, gaussian_model(s, np.zeros(2), COV), two_d(200, seed=9), 256, sigma2, clip=False)


@functools.cache
def digits():
    return data.load("digits")


@functools.cache
def digits_codec(first=60, steps=8):
    s = respaced_schedule(LINEAR, times_even_in_log_snr(LINEAR, first, steps))
    return calibrate(s, digits_model(s), digits().train[::16], 17)


def digits_model(s):
    flat = data.scale(digits().train, 17).reshape(-1, 64)
    one_row = gaussian_model(s, flat.mean(0), np.cov(flat.T))
    return lambda x, t: one_row(x.reshape(-1, 64), t).reshape(x.shape)


def received(codec, message, n, seed=0):
    return list(receive(codec, message, n, seed))


# ---- the range coder


@st.composite
def symbols(draw):
    if draw(st.booleans()):
        n = draw(st.integers(1, 2**24))
        return draw(st.integers(0, n - 1)), n
    its_table = table(draw(st.lists(st.floats(1e-30, 1), min_size=1, max_size=300)))
    return draw(st.integers(0, len(its_table) - 2)), its_table


@given(st.lists(symbols(), max_size=60))
@settings(deadline=None, max_examples=100)
def test_range_coder_round_trip_in_as_many_bits_as_the_symbols_have(ops):
    out = Encoder()
    for symbol, what in ops:
        (out.put if isinstance(what, tuple) else out.put_number)(symbol, what)
    message = out.finish()
    bits = sum(math.log2(w) if isinstance(w, int) else math.log2(w[-1] / (w[k + 1] - w[k])) for k, w in ops)
    assert out.bits == pytest.approx(bits, abs=1e-9) and 8 * len(message) <= bits + 8
    source = Decoder(message)
    for symbol, what in ops:
        assert (source.get if isinstance(what, tuple) else source.get_number)(what) == symbol
    assert source.bits == out.bits


def test_range_coder_carries_through_a_row_of_255s():
    """The last share of the last symbol pushes low over a byte boundary that was written long before."""
    for tail in range(1, 40):
        out, symbols = Encoder(), [2**24 - 1] * tail + [2**23]
        for symbol in symbols:
            out.put_number(symbol, 2**24)
        source = Decoder(out.finish())
        assert [source.get_number(2**24) for _ in symbols] == symbols
    low = Encoder()
    low.low, low.width, low.out = 2**64 - 5, 2**50, bytearray([7, 255, 255])
    low.put_number(2**20 - 1, 2**20)
    assert low.out[:3] == bytes([8, 0, 0])


def test_range_coder_table_gives_each_symbol_its_share_and_at_least_one():
    p = np.array([0, 1e-12, 0.25, 0.75])
    its_table = table(p)
    assert its_table[0] == 0 and its_table[-1] == TOTAL
    np.testing.assert_allclose(np.diff(its_table) / TOTAL, p, atol=2 * len(p) / TOTAL)
    assert np.diff(its_table).min() == 1


# ---- minimal random coding: z follows q


BLOCKS = {                                          # name: (m, v, about bits): q = N(m, v I), p = N(0, I)
    "one number, narrow": (np.array([1.0]), np.array([0.2]), 1.7),
    "four of one variance, where sup r is infinite": (np.array([1.0, -0.5, 0.3, 0.0]), np.ones(4), 1.0),
    "eight, narrow": (np.linspace(-0.6, 0.6, 8), np.full(8, 0.5), 2.0),
    "two, all but impossible under p": (np.array([7.0, -6.0]), np.full(2, 0.5), 2.0),
    "three, wider than p": (np.array([0.5, 0.2, 0.1]), np.array([1.5, 0.8, 1.2]), 0.3),
}


def p_values(module, m, v, about, n=2500, seed=0):
    """How well draws that are sent follow N(m, v I): Kolmogorov-Smirnov of each number, of their sum, of their squares' sum."""
    private, out = np.random.default_rng([9, seed]), Encoder()
    z = np.stack([module.send_block(out, m, v, about, (seed, 0, k, 0), private) for k in range(n)])
    u = (z - m) / np.sqrt(v)
    tests = [stats.kstest(column, "norm") for column in u.T]
    tests += [stats.kstest(u.sum(1) / math.sqrt(len(m)), "norm"), stats.kstest((u * u).sum(1), "chi2", (len(m),))]
    return np.array([test.pvalue for test in tests]), out, z


@pytest.mark.parametrize("limit", [2**10, 8])
@pytest.mark.parametrize("name", BLOCKS)
def test_alg3_minimal_random_coding_follows_q(monkeypatch, name, limit):
    """With h = 8 many draws are escapes: q is the mixture of both kinds."""
    monkeypatch.setattr(random_coding, "LIMIT", limit)
    random_coding.octaves.cache_clear()
    m, v, about = BLOCKS[name]
    p, out, z = p_values(random_coding, m, v, about)
    assert p.min() > 1e-3 / len(p), p
    source = Decoder(out.finish())
    for k in range(len(z)):
        np.testing.assert_array_equal(random_coding.receive_block(source, len(m), about, (0, 0, k, 0)), z[k])
    random_coding.octaves.cache_clear()


FAULTS = {                                          # likely mistakes: (the right code, the wrong code)
    "the search ends early": ("while time == 0 or math.log(time) - log_h < least", "while time == 0"),
    "no escapes": ("> log_h - (z", "> 1e9 + log_h - (z"),
    "escapes without their coin": ("math.log(1 - private.random()) > log_h", "0 > log_h"),
    "r not cut at h": ("np.minimum(X * X @ a + X @ b + c, log_h)", "(X * X @ a + X @ b + c)"),
    "p for q": ("np.sqrt(v) * private", "private"),
    "the best candidate without T_k": ("np.log(T) - np", "-np"),
    "arrivals at 1, 2, 3": ("private.standard_exponential(CHUNK)", "np.ones(CHUNK)"),
    "a wrong": ("0.5 - 0.5 / v", "0.5 - 0.4 / v"),
    "b wrong": ("(m / v).astype", "(1.15 * m / v).astype"),
    "the draws of another variance": ("standard_normal((CHUNK, d), dtype=np.float32)", "standard_normal((CHUNK, d)) * 1.05"),
    "the same draws for each block": ("*key, chunk)", "chunk)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_alg3_a_planted_fault_in_minimal_random_coding_is_found(fault):
    """With few candidates a chunk and h = 2, so that every part of the code is at work."""
    found = planted(fault)
    blocks = [block for name, block in BLOCKS.items() if "impossible" not in name]
    assert any(p_values(found, *block, n=6000)[0].min() < CERTAIN for block in blocks)


def planted(fault=None):
    """random_coding.py compiled once more with a fault in it, CHUNK = 4 and h = 2."""
    source = Path(random_coding.__file__).read_text(encoding="utf-8")
    for old, new in [FAULTS.get(fault, ("", "")), ("LIMIT = 2**14", "LIMIT = 2"), ("CHUNK = 2**10", "CHUNK = 4")]:
        assert old in source
        source = source.replace(old, new) if old else source
    module = types.ModuleType("planted")
    exec(compile(source, random_coding.__file__, "exec"), module.__dict__)
    return module


def test_alg3_the_planted_module_without_a_fault_is_right():
    for m, v, about in BLOCKS.values():
        p = p_values(planted(), m, v, about, n=6000)[0]
        assert p.min() > 1e-3 / len(p)


# ---- minimal random coding: how many bits


@pytest.mark.parametrize("about", [0.05, 0.5, 2.0, 3.5])
def test_alg3_the_octaves_of_K_have_the_law_that_their_code_is_made_for(about, monkeypatch):
    """Blocks of one variance and exactly that KL: chi-square of the octaves, and the mean of the bits within 4 σ."""
    monkeypatch.setattr(random_coding, "LIMIT", 2**10)
    monkeypatch.setattr(random_coding, "CHUNK", 2**8)
    random_coding.octaves.cache_clear()
    n, kappa, its_table = 1500, about * math.log(2), random_coding.octaves(about)
    m, v = np.full(4, math.sqrt(kappa / 2)), np.ones(4)
    shares = np.diff(its_table) / its_table[-1]
    cost = -np.log2(shares) + np.append(np.arange(random_coding.OCTAVES), 32 * 4)
    counts, bits = np.zeros(len(shares)), []
    for k in range(n):
        out = Encoder()
        random_coding.send_block(out, m, v, about, (1, 2, k, 3), np.random.default_rng([5, k]))
        bits.append(out.bits)
        counts[Decoder(out.finish()).get(its_table)] += 1
    common = shares * n > 5
    pooled = [np.append(a[common], a[~common].sum()) for a in (counts, shares * n)]
    assert stats.chisquare(*pooled, sum_check=False).pvalue > 1e-3
    random_coding.octaves.cache_clear()
    expected, sd = shares @ cost, math.sqrt(shares @ cost**2 - (shares @ cost) ** 2)
    assert abs(np.mean(bits) - expected) < 4 * sd / math.sqrt(n)
    assert expected < about + math.log2(about + 1) + 4          # Li and El Gamal
    assert expected > about                                     # nothing can be sent in less


def test_alg3_a_class_has_the_same_blocks_on_both_sides():
    for D in 1, 2, 3, 64, 100:
        for c in range(random_coding.LOWEST, random_coding.highest(D) + 1):
            blocks, about = random_coding.layout((1, 2, 3), D, c)
            assert sorted(np.concatenate(blocks)) == list(range(D)) and min(map(len, blocks)) >= 1
            assert len(blocks) == (1 if c <= 0 else min(D, 2**c))
            assert about * len(blocks) == pytest.approx(0.75 * random_coding.BLOCK_BITS * 2.0**c)
        assert len(random_coding.classes(5.0, random_coding.highest(D))) == random_coding.highest(D) - random_coding.LOWEST + 2


@pytest.mark.parametrize("shift", [0.0, 1e-4, 0.3, 3.0, 1e3])
def test_alg3_alg4_any_KL_is_sent_and_received_bit_for_bit(shift):
    """From q = p to a q that is all but impossible under p, where escapes cost 32 bits a number and a little more."""
    q, p = random_coding.Gaussian(np.full(20, shift), 0.9), random_coding.Gaussian(np.zeros(20), 1.0)
    out = Encoder()
    sent = [random_coding.send(out, q, p, 3.0, (0, 1, n), np.random.default_rng(n)) for n in range(5)]
    source = Decoder(out.finish())
    for n, (x, cost) in enumerate(sent):
        assert x.dtype == np.float32
        np.testing.assert_array_equal(random_coding.receive(source, p, 3.0, (0, 1, n)), x)
        assert cost.kl == pytest.approx(np.sum(kl(q.mean, q.var, p.mean, p.var)) / math.log(2))
        assert cost.bits < 20 * (32 + 17) + 30


# ---- the chain


def test_sec2_a_merged_chain_is_the_same_process_seen_at_fewer_times():
    times = [3, 40, 200, 1000]
    s = respaced_schedule(LINEAR, times)
    np.testing.assert_allclose(s.alpha_bar, [1, *LINEAR.alpha_bar[times]], rtol=1e-12)
    x0, x_t = np.full((1, 1), 0.3), np.full((1, 1), -0.8)
    # q(x_40 | x_200, x_0) by Bayes' rule from q(x_40 | x_0) and q(x_200 | x_40)
    step = LINEAR.alpha_bar[200] / LINEAR.alpha_bar[40]
    precision = 1 / (1 - LINEAR.alpha_bar[40]) + step / (1 - step)
    mean = (math.sqrt(LINEAR.alpha_bar[40]) * 0.3 / (1 - LINEAR.alpha_bar[40]) + math.sqrt(step) * -0.8 / (1 - step)) / precision
    found = q_posterior(s, x0, x_t, 3)
    assert found[0].item() == pytest.approx(mean) and found[1] == pytest.approx(1 / precision)
    for wrong in ([1000], [5, 4, 1000], [0, 1000], [1, 999]):
        with pytest.raises(ValueError, match="ascending, from 1 or later to T = 1000"):
            respaced_schedule(LINEAR, wrong)


def test_sec2_times_spread_over_the_logarithm_of_the_signal_to_noise_ratio():
    times = times_even_in_log_snr(LINEAR, 20, 9)
    assert times[0] == 20 and times[-1] == 1000 and len(times) == 9
    steps = np.diff([math.log(LINEAR.alpha_bar[t] / (1 - LINEAR.alpha_bar[t])) for t in times])
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.05)
    assert len(times_even_in_log_snr(Schedule.linear(5, 0.1, 0.5), 1, 50)) == 5


def test_sec32_the_calibrated_variance_makes_the_bound_least():
    """Against 10 % more and less at every t, on the very images that it was calibrated on; and against β_t and β̃_t."""
    s, x0 = two_d_codec().schedule, two_d(200, seed=9)
    eps_theta = gaussian_model(s, np.zeros(2), COV)
    best = two_d_codec()
    mean_bits = {choice: calibrate(s, eps_theta, x0, 256, choice, clip=False).kl for choice in ("best", "beta", "beta_tilde")}
    np.testing.assert_array_equal(best.kl, mean_bits["best"])
    assert np.all(best.kl[1:-1] < np.minimum(mean_bits["beta"], mean_bits["beta_tilde"])[1:-1])
    at = best.sigma2[2:]
    excess = at - s.beta_tilde[2:]                                  # M of the docstring
    bound = np.log(at / s.beta_tilde[2:]) + (s.beta_tilde[2:] + excess) / at - 1
    np.testing.assert_allclose(bound / 2 * 32 / math.log(2), best.kl[1:-1], rtol=1e-4)
    for factor in 0.9, 1.1:
        assert np.all(np.log(factor * at / s.beta_tilde[2:]) + at / (factor * at) - 1 > bound)


# ---- Algorithms 3 and 4 on 2-D Gaussian data, where everything is known


def test_alg3_alg4_the_receiver_has_what_was_sent_bit_for_bit_on_gaussian_data():
    codec, x0 = two_d_codec(), two_d(10)
    sent = send(codec, x0, seed=3)
    steps = received(codec, sent.message, 10, seed=3)
    assert [step.t for step in steps] == list(range(codec.schedule.T, -1, -1))
    assert steps[-1].x_t.dtype == np.uint8
    np.testing.assert_array_equal(steps[-1].x_t, x0)
    np.testing.assert_allclose([step.bits for step in steps], sent.bits.sum(0)[::-1].cumsum(), rtol=1e-12)
    assert abs(8 * (len(sent.message) - CHECK_SUM) - sent.bits.sum()) <= 8
    assert send(codec, x0, seed=3).message == sent.message != send(codec, x0, seed=4).message


def test_alg3_alg4_take_the_steps_of_the_literal_ones():
    """literal.alg3 and alg4, given the x_t that were sent, have the same q, the same p and the same KL at every t."""
    codec, x0 = two_d_codec(sigma2="beta"), two_d(1, points=3)
    codec, eps_theta = replace(codec, shape=(3, 2)), gaussian_model(codec.schedule, np.zeros(2), COV)
    sent, beta = send(codec, x0), codec.schedule.beta.tolist()
    x = {step.t: step.x_t.ravel().astype(float).tolist() for step in receive(codec, sent.message, 1)}
    sent_with = []

    def mu_theta(x_t, t):
        return literal.eq11(beta, lambda x_t, t: eps_theta(np.reshape(x_t, (1, 3, 2)), t).ravel().tolist(), x_t, t)

    def send_x_t(t, q, p):
        sent_with.append((t, *p))
        if t:
            nats = literal.KL_N(q[0], [q[1]] * 6, p[0], [p[1]] * 6)
            assert nats / math.log(2) == pytest.approx(sent.kl[0, t], rel=1e-4)
        else:
            assert -literal.eq13_log(q[0], p[0], math.sqrt(p[1])) / math.log(2) == pytest.approx(sent.kl[0, 0], rel=1e-4)
            return q[0]
        return x[t]

    def receive_x_t(t, p):
        assert sent_with.pop(0) == (t, *p)
        return x[t] if t else data.scale(np.array(x[0])).tolist()

    literal.alg3(beta, mu_theta, codec.sigma2.tolist(), data.scale(x0).ravel().astype(float).tolist(), send_x_t)
    assert len(sent_with) == codec.schedule.T + 1
    assert literal.alg4(beta, mu_theta, codec.sigma2.tolist(), 6, receive_x_t) == data.scale(x0).ravel().tolist()


def test_alg3_what_is_communicated_follows_q():
    """Every x_t given x_{t+1} and x_0, whitened by Eq. (7), and every x_t given x_0 alone, by Eq. (4), is N(0, I)."""
    conditional, marginal, x0 = whitened()
    assert faults(conditional, x0) == []
    assert all(faults(step[None], x0) == [] for step in marginal)


def whitened():
    """The x_t of 40 images in units of q: (T − 1, N, points, 2) and (T, N, points, 2); and x_0."""
    codec, x0, x = two_d_codec(), two_d(40, seed=4), {}
    for t, x_t, *_ in receive(codec, send(codec, x0).message, 40):
        x[t] = x_t.astype(np.float64)
    s, x0, conditional, marginal = codec.schedule, data.scale(x0).astype(np.float64), [], []
    for t in range(s.T, 0, -1):
        marginal.append((x[t] - math.sqrt(s.alpha_bar[t]) * x0) / math.sqrt(1 - s.alpha_bar[t]))
        if t < s.T:
            mean, var = q_posterior(s, x0, x[t + 1], t + 1)
            conditional.append((x[t] - mean) / math.sqrt(var))
    return np.array(conditional), np.array(marginal), x0


def faults(u, x0):
    """The names of the tests that u (steps, N, points, 2) fails as independent N(0, 1), also independent of x_0."""
    z = {"mean": u.mean() * math.sqrt(u.size), "variance": (u.var() - 1) * math.sqrt(u.size / 2),
         "coordinates": np.mean(u[..., 0] * u[..., 1]) * math.sqrt(u.size / 2),
         "points": np.mean(u[:, :, 1:] * u[:, :, :-1]) * math.sqrt(u[:, :, 1:].size),
         "x_0": np.mean(u * x0) / x0.std() * math.sqrt(u.size),
         "steps": np.mean(u[1:] * u[:-1]) * math.sqrt(u[1:].size) if len(u) > 1 else 0}
    found = [name for name, value in z.items() if abs(value) > 4]
    return found + ["law"] if stats.kstest(u.ravel(), "norm").pvalue < 1e-4 else found


@pytest.mark.parametrize("x0_factor, var_factor, found", [(1, 1.2, "variance"), (0.8, 1, "x_0")])
def test_alg3_a_wrong_q_is_found(monkeypatch, x0_factor, var_factor, found):
    def wrong(s, x0, x_t, t):
        mean, var = q_posterior(s, x0_factor * x0, x_t, t)
        return mean, var_factor * var

    two_d_codec()                                           # calibrated with the right one
    monkeypatch.setattr(progressive, "q_posterior", wrong)
    conditional, _, x0 = whitened()
    assert found in faults(conditional, x0)


@pytest.mark.parametrize("sigma2", ["beta", "beta_tilde", "best"])
def test_alg3_bits_are_eq05_and_the_stated_overhead(sigma2):
    """The KLs are those of likelihood.vlb, the entropy lies below them, and the bits between them and the bound."""
    codec, x0 = two_d_codec(sigma2), two_d(16, seed=5)
    s, sent = codec.schedule, send(codec, x0)
    if sigma2 != "best":
        terms = vlb(s, gaussian_model(s, np.zeros(2), COV), data.scale(x0), np.random.default_rng(0), sigma2, clip=False).L * 32
        error = np.sqrt((sent.kl.var(0) + terms.var(0)) / len(x0)) + 1e-6
        assert np.all(np.abs(sent.kl.mean(0) - terms.mean(0)) < 4 * error)
    bits, L = sent.bits.sum(1), sent.kl.sum(1)
    steps = slice(1, None)
    index_bits = (sent.bits - sent.class_bits)[:, steps].sum(1)
    assert L.mean() > entropy() * 16
    assert L.mean() < bits.mean() < sent.bound.sum(1).mean() + sent.class_bits.sum(1).mean()
    assert np.all(index_bits.mean() < sent.bound[:, steps].sum(1).mean())
    assert np.mean(sent.class_bits[:, steps]) < 2
    np.testing.assert_allclose(sent.bits[:, 0], sent.kl[:, 0], rtol=1e-4)
    error = np.sqrt(sent.kl.var(0)[1:] * (1 / len(x0) + 1 / 200)) + 1e-6       # codec.kl: the mean of 200 others
    assert np.all(np.abs(sent.kl.mean(0)[1:] - codec.kl[1:]) < 5 * error)


def entropy():
    """Bits of a point of the 2-D data, whose levels are 2/255 apart and much narrower than the data."""
    return 0.5 * math.log2(np.linalg.det(2 * math.pi * math.e * COV)) - 2 * math.log2(2 / 255)


# ---- on digits, with the 64-dimensional Gaussian as the model


def test_alg3_alg4_digits_that_the_model_has_not_seen():
    codec, x0 = digits_codec(), digits().held_out[:60]
    sent = send(codec, x0)
    *steps, last = received(codec, sent.message, 60)
    np.testing.assert_array_equal(last.x_t, x0)
    np.testing.assert_array_equal(last.x0_hat, data.scale(x0, 17))
    rmse = [np.sqrt(np.mean((step.x0_hat - data.scale(x0, 17)) ** 2)) for step in steps]
    assert rmse[-1] < 0.2 and all(later < earlier + 0.01 for earlier, later in zip(rmse, rmse[1:], strict=False))
    assert sent.bits.sum() < sent.bound.sum() + sent.class_bits.sum()
    assert sent.bits.sum(1).mean() < 64 * math.log2(17)                         # less than the pixels as they are


def test_alg3_alg4_images_that_no_digit_looks_like():
    """Noise, black and white: many escapes, and still exact."""
    rng = np.random.default_rng(0)
    x0 = np.concatenate([rng.integers(0, 17, (3, 8, 8, 1)), np.zeros((1, 8, 8, 1), int), np.full((1, 8, 8, 1), 16)])
    *_, last = received(digits_codec(), send(digits_codec(), x0).message, 5)
    np.testing.assert_array_equal(last.x_t, x0)


def test_alg3_alg4_single_images_and_many_in_one_message_give_the_same_x0():
    x0 = digits().held_out[:4]
    for n in range(4):
        *_, last = received(digits_codec(), send(digits_codec(), x0[n:n + 1]).message, 1)
        np.testing.assert_array_equal(last.x_t[0], x0[n])


def test_alg4_any_cut_and_any_damaged_byte_is_an_error():
    message = send(digits_codec(), digits().held_out[:1]).message
    for k in range(len(message)):
        damaged = [message[:k] + bytes([message[k] ^ bit]) + message[k + 1:] for bit in (1, 16, 128)]
        for wrong in [message[:k], *(damaged if k < len(message) - 1 else damaged[2:])]:    # the last bits of all may not matter
            with pytest.raises(UserError, match=WRONG):
                received(digits_codec(), wrong, 1)
    with pytest.raises(UserError, match=WRONG):
        received(digits_codec(), b"\x89PNG" + message, 1)


def test_alg4_another_codec_seed_number_or_network_or_nonsense_from_it_is_an_error():
    codec = digits_codec()
    s, eps_theta = codec.schedule, digits_model(codec.schedule)
    message = send(codec, digits().held_out[:2]).message
    for another in [(digits_codec(first=90), message, 2), (codec, message, 2, 1), (codec, message, 1), (codec, message, 3)]:
        with pytest.raises(UserError, match=WRONG):
            received(*another)

    def with_network(eps_theta):
        return replace(codec, reverse=lambda x_t, t: p_theta(s, x_t, t, eps_theta(x_t, t)))

    received(with_network(eps_theta), message, 2)
    for network in (lambda x, t: eps_theta(x, t) * np.float32(1.01), lambda x, t: 1e30 * x,
                    lambda x, t: eps_theta(x, t) if t > 1 else np.full_like(x, np.nan)):
        with pytest.raises(UserError, match=WRONG):
            received(with_network(network), message, 2)


def test_alg4_an_x_t_that_cannot_be_is_an_error_before_a_network_sees_it(monkeypatch):
    message = send(digits_codec(), digits().held_out[:1]).message
    monkeypatch.setattr(Codec, "p_theta", lambda codec, x_t, t: pytest.fail("the network was called"))
    for x in np.nan, np.inf, 1e30:
        monkeypatch.setattr(random_coding, "receive", lambda source, p, average, key, x=x: np.full(64, x, np.float32))
        with pytest.raises(UserError, match=WRONG):
            next(receive(digits_codec(), message, 1))


@pytest.mark.parametrize("x0", [np.zeros((0, 8, 8, 1), int), np.zeros((2, 8, 8), int), np.full((1, 8, 8, 1), 17),
                                np.full((1, 8, 8, 1), -1), np.zeros((1, 8, 8, 1))])
def test_alg3_images_that_the_codec_is_not_for_are_refused(x0):
    with pytest.raises(UserError, match=r"x_0 is .*; expected \(N, 8, 8, 1\) integers from 0 to 16"):
        send(digits_codec(), x0)


# ---- on digits, with a trained network


@pytest.mark.slow
def test_alg3_alg4_a_hundred_held_out_digits_with_a_trained_network(tmp_path):
    from minddpm.app.loop import train
    from minddpm.app.run import begin
    from minddpm.app.settings import Settings
    run = begin(tmp_path / "run", Settings(data="digits", steps=600, save_every=0, sample_every=0))
    train(run)
    times = times_even_in_log_snr(run.model.schedule, 100, 12)
    codec = calibrate(respaced_schedule(run.model.schedule, times), lambda x, t: run.model.eps_theta(x, times[t - 1]),
                      digits().train[::8], 17)
    x0 = digits().held_out[:100]
    sent = send(codec, x0)
    *_, last = received(codec, sent.message, 100)
    np.testing.assert_array_equal(last.x_t, x0)
    assert sent.kl.sum() < sent.bits.sum() < sent.bound.sum() + sent.class_bits.sum()
    assert 8 * len(sent.message) < sent.bits.sum() + 8 * (CHECK_SUM + 2)
    for n in range(10):
        *_, last = received(codec, send(codec, x0[n:n + 1]).message, 1)
        np.testing.assert_array_equal(last.x_t, x0[n:n + 1])
