"""Eq. (13), the discretised decoder, against its literal transcription, against itself, and against known numbers."""

import math

import literal
import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_ndtr, ndtr

from minddpm.data import scale
from minddpm.diffusion import Schedule
from minddpm.gaussian import discretized_log_likelihood, log_normal_interval, log_tanh_interval

GRIDS = {levels: np.linspace(-1, 1, levels) for levels in (2, 17, 256)}


@pytest.mark.parametrize("levels", [17, 256])
@pytest.mark.parametrize("cdf", ["erf", "tanh"])
def test_eq13_equals_the_scalar_transcription(levels, cdf):
    rng = np.random.default_rng(13)
    slow = {"erf": lambda x, mu, sigma: literal.eq13_log([x], [mu], sigma, levels),
            "tanh": lambda x, mu, sigma: literal.eq13_tanh(x, mu, sigma, levels)}[cdf]
    x0 = np.concatenate([rng.choice(GRIDS[levels], 300), [-1, 1] * 50, rng.uniform(-0.99, 0.99, 100)])
    sigma = np.exp(rng.uniform(np.log(0.003), np.log(2), x0.shape))
    mean = x0 + sigma * rng.standard_normal(x0.shape)
    fast = discretized_log_likelihood(x0, mean, sigma, levels, cdf)
    expected = np.array([slow(float(x), float(m), float(d)) for x, m, d in zip(x0, mean, sigma, strict=True)])
    np.testing.assert_allclose(fast, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("sigma", [1e-3, 0.0073845, 0.01, 0.3, 5.0])
@pytest.mark.parametrize("mean", [-1.7, -1.0, 0.0, 0.37, 0.9999, 2.5])
def test_eq13_all_bins_together_have_probability_1(levels, sigma, mean):
    log_p = discretized_log_likelihood(GRIDS[levels], mean, sigma, levels)
    assert np.all(np.isfinite(log_p))
    assert abs(np.exp(log_p).sum() - 1) < 1e-12


def tail(z, width):
    """log ∫_z^{z+width} N(y; 0, 1) dy for z > 0, with N(z; 0, 1) taken out of a Gauss-Legendre integral."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    ends = np.linspace(0, min(width, 40 / z), 21)
    u = (ends[:-1, None] + np.diff(ends)[:, None] * (nodes + 1) / 2).ravel()
    w = (np.diff(ends)[:, None] * weights / 2).ravel()
    return -z * z / 2 - math.log(2 * math.pi) / 2 + math.log(w @ np.exp(-z * u - u * u / 2))


@pytest.mark.parametrize("z", [3.0, 8.0, 30.0, 100.0])
@pytest.mark.parametrize("sigma", [0.005, 0.02])
def test_eq13_is_right_at_30_sigma_on_both_sides(z, sigma):
    width = 2 / 255 / sigma
    x = GRIDS[256][128]
    for side in -1, 1:
        mean = x - side * (z * sigma + 1 / 255)                         # the bin's nearer end is z σ away from the mean
        found = discretized_log_likelihood(x, mean, sigma)
        assert found == pytest.approx(tail(z, width), rel=1e-12)
        edge = discretized_log_likelihood(float(side), side * (1 - 1 / 255) - side * z * sigma, sigma)   # half a line
        assert edge == pytest.approx(tail(z, math.inf), rel=1e-12)


@pytest.mark.parametrize("z", [2**-10, 0.5, 3.0, 8.0, 31.0, 40.0])
@pytest.mark.parametrize("width", [2**-30, 2**-20, 2**-10, 0.125, 3.0])
def test_eq13_interval_is_as_exact_as_the_rounding_of_log_Phi_allows(z, width):
    """a and b are exact here; log Φ(−z) comes rounded, which moves log P by as much / P's share of the tail."""
    share = -math.expm1(log_ndtr(-z - width) - log_ndtr(-z))
    rounding = 2**-53 * (1 - log_ndtr(-z)) / share
    for a, b in (z, z + width), (-z - width, -z):
        assert abs(log_normal_interval(np.float64(a), np.float64(b)) - tail(z, width)) < 4 * rounding


@pytest.mark.parametrize("width, tolerance", [(0.1, 4e-15), (0.01, 3e-14), (0.001, 2e-13)])
@pytest.mark.parametrize("near, far", [(0, 1), (1, 8), (8, 40)])
def test_eq13_interval_is_that_of_60_digits(width, tolerance, near, far):
    """Bins of 0.1, 0.01 and 0.001 σ from the mean to 40 σ.  Measured: 2e-15, 1e-14 and 8e-14, all three within 3 σ."""
    z = np.random.default_rng(13).uniform(near, far, 200)
    ends = [*zip(z, z + width, strict=True), *zip(-z - width, -z, strict=True)]
    if near == 0:
        ends += [(a, a + width) for a in -width * z]                        # the mean is inside
    errors = []
    for a, b in ends:
        with mpmath.workdps(60):
            c, d = (mpmath.mpf(end) for end in ((a, b) if a + b < 0 else (-b, -a)))
            exact = mpmath.log((mpmath.erfc(-d / mpmath.sqrt(2)) - mpmath.erfc(-c / mpmath.sqrt(2))) / 2)
            errors.append(float(abs(float(log_normal_interval(a, b)) / exact - 1)))
    assert max(errors) < tolerance


def test_eq13_half_a_line_has_scipys_log_Phi():
    """Where Φ is nearly 1 its logarithm is as small as e^{−z²/2}, whose relative error is that of z²/2."""
    z = np.concatenate([-np.geomspace(1e-9, 1e5, 5001), np.linspace(-40, 5, 5001)])
    near_1 = np.linspace(5, 40, 5001)
    for at, rtol in (z, 1e-14), (near_1, 2e-13):
        for a, b in (np.full_like(at, -np.inf), at), (-at, np.full_like(at, np.inf)):
            np.testing.assert_allclose(log_normal_interval(a, b), log_ndtr(at), rtol=rtol, atol=1e-310)


@pytest.mark.parametrize("z", [3.0, 8.0, 30.0])
def test_eq13_interval_that_holds_nearly_everything_keeps_what_is_outside(z):
    found = log_normal_interval(np.array([-z, -z - 1]), np.array([z, z]))
    outside = np.array([2 * ndtr(-z), ndtr(-z) + ndtr(-z - 1)])
    np.testing.assert_allclose(-np.expm1(found), outside, rtol=1e-13)


def test_sec32_which_variance_of_the_decoder_costs_fewer_bits_depends_on_the_means_error():
    """β̃_2 where the mean is good, β_1 where it errs by more than about σ_1; see Schedule.sigma2."""
    s, x0 = Schedule.linear(), GRIDS[256][1:-1]
    rng = np.random.default_rng(0)

    def bits(sigma2, error):
        mean = x0 + error * rng.standard_normal((400, 1))
        return -discretized_log_likelihood(x0, mean, sigma2**0.5).mean() / math.log(2)

    for error, fewer in (0.0, "beta_tilde"), (0.004, "beta_tilde"), (0.012, "beta"), (0.03, "beta"):
        cost = {choice: bits(s.sigma2(choice)[1], error) for choice in ("beta", "beta_tilde")}
        assert min(cost, key=cost.get) == fewer, (error, cost)


def test_eq13_of_a_bin_far_narrower_than_sigma_is_density_times_width():
    x, mean = GRIDS[256][1:-1], 0.3
    for sigma in 1.0, 30.0, 1000.0:
        expected = -((x - mean) ** 2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi)) + math.log(2 / 255)
        np.testing.assert_allclose(discretized_log_likelihood(x, mean, sigma), expected, atol=1e-5)


@given(st.floats(-3, 3), st.floats(-6, 2), st.integers(0, 255))
def test_eq13_is_symmetric_and_finite(mean, log_sigma, k):
    x, sigma = GRIDS[256][k], math.exp(log_sigma)
    left, right = discretized_log_likelihood(x, mean, sigma), discretized_log_likelihood(-x, -mean, sigma)
    assert math.isfinite(left) and left <= 0
    assert left == pytest.approx(right, rel=1e-12, abs=1e-15)


def test_eq13_ends_of_the_range_take_the_tails():
    assert discretized_log_likelihood(1.0, 5.0, 0.01) == pytest.approx(0, abs=1e-15)
    assert discretized_log_likelihood(-1.0, -5.0, 0.01) == pytest.approx(0, abs=1e-15)
    for levels in 17, 256:
        images = scale(np.arange(levels, dtype=np.uint8), levels)       # what the data pipeline makes, float32
        log_p = discretized_log_likelihood(images, np.float32(0.2), np.float32(0.5), levels)
        assert log_p.dtype == np.float64
        assert abs(np.exp(log_p).sum() - 1) < 1e-6                      # float32 grid: neighbours' ends differ by rounding
        assert log_p[0] > log_p[1] and log_p[-1] > log_p[-2]            # half a line has more than the bin beside it


def test_eq13_broadcasts():
    log_p = discretized_log_likelihood(GRIDS[17], np.zeros((3, 1)), np.full((2, 1, 1), 0.1), 17)
    assert log_p.shape == (2, 3, 17)


def test_eq13_tanh_is_the_released_codes_approximation():
    z = np.linspace(-6, 6, 2_000_001)
    Phi = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in z[::1000]])
    tanh = np.exp(log_tanh_interval(np.full(1, -np.inf), z))
    assert np.abs(tanh[::1000] - Phi).max() < 1.7895e-4
    near = np.abs(z - 2.592) < 0.01                                     # computed: 1.789e-4 at |x| = 2.592
    exact = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in z[near]])
    error = np.abs(tanh[near] - exact)
    assert error.max() == pytest.approx(1.789e-4, abs=5e-8)
    assert z[near][error.argmax()] == pytest.approx(2.592, abs=1e-3)


def test_eq13_tanh_has_the_floor_and_the_edges_of_the_released_code():
    assert discretized_log_likelihood(0.0, 1.0, 0.01, cdf="tanh") == math.log(1e-12)
    assert discretized_log_likelihood(0.0, 1.0, 0.01, cdf="erf") < -4000
    inside, edge = discretized_log_likelihood(np.array([0.9985, 0.9995]), 1.5, 0.1, cdf="tanh")
    assert edge > inside + 5                                            # from 0.999 on the tail is included


@pytest.mark.parametrize(["sigma2", "bits"], [(1e-4, 1.71285), (5.45318766e-5, 1.30538)])
def test_eq13_L_0_of_an_exact_mean(sigma2, bits):
    """Computed: −log₂ of the bin's probability, for β_1, and for β̃_2 as in the released code (diffusion_utils_2.py:139-146)."""
    x0 = GRIDS[256][1:-1]
    np.testing.assert_allclose(-discretized_log_likelihood(x0, x0, sigma2**0.5) / math.log(2), bits, atol=5e-6)


@pytest.mark.parametrize(["change", "message"], [
    (dict(cdf="logistic"), "cdf is 'logistic'; expected one of erf, tanh"),
    (dict(levels=1), "levels is 1; expected at least 2"),
    (dict(sigma=np.array([0.1, 0.0])), "sigma is 0 somewhere; expected positive"),
])
def test_eq13_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        discretized_log_likelihood(**dict(x0=np.zeros(2), mean=np.zeros(2), sigma=0.1) | change)
