"""gaussian.py: KL and log-density against scipy and against numerical integration."""

import math

import literal
import numpy as np
import pytest
from scipy import integrate, stats

from minddpm.gaussian import kl, log_density

PAIRS = [(0.0, 1.0, 0.0, 1.0), (0.3, 0.5, -0.4, 2.0), (-2.0, 3.0, 1.0, 0.7), (0.0, 1e-4, 0.001, 2e-4), (5.0, 1e4, 0.0, 1.0)]


@pytest.mark.parametrize("mean1, var1, mean2, var2", PAIRS)
def test_kl_is_the_integral_of_its_definition(mean1, var1, mean2, var2):
    def integrand(x):
        log_p, log_q = (stats.norm.logpdf(x, m, math.sqrt(v)) for m, v in ((mean1, var1), (mean2, var2)))
        return math.exp(log_p) * (log_p - log_q)

    width = 12 * math.sqrt(var1)
    expected, error = integrate.quad(integrand, mean1 - width, mean1 + width, epsabs=1e-10, epsrel=1e-10)
    assert kl(mean1, var1, mean2, var2) == pytest.approx(expected, rel=1e-8, abs=1e-9)
    assert kl(mean1, var1, mean2, var2) == pytest.approx(literal.KL_N([mean1], [var1], [mean2], [var2]), rel=1e-12, abs=1e-15)


def test_kl_known_answers_and_shapes():
    assert kl(1.0, 2.0, 1.0, 2.0) == 0
    assert kl(0.0, 1.0, 3.0, 1.0) == 4.5
    assert kl(0.0, 1.0, 0.0, math.e) == pytest.approx((1 + math.exp(-1) - 1) / 2)
    mean = np.arange(6.0).reshape(2, 3)
    assert kl(mean, 1.0, 0.0, np.array([[1.0], [2.0]])).shape == (2, 3)                # elementwise, and broadcast
    assert (kl(mean, np.array([0.5, 1, 2]), mean.T[:1, :1], 1.5) >= 0).all()
    assert kl(mean.astype(np.float32), np.float32(1), np.float32(0), np.float32(1)).dtype == np.float32


def test_kl_is_exact_near_zero():
    """Var ratio 1 + δ: KL = δ²/4 + O(δ³), the size of the terms that L_{t−1} is made of near t = T."""
    delta = 1e-5
    assert kl(0.0, 1 + delta, 0.0, 1.0) == pytest.approx(delta**2 / 4, rel=1e-3)


@pytest.mark.parametrize("mean, _, x, var", PAIRS)
def test_log_density_is_scipys(mean, _, x, var):
    assert log_density(x, mean, var) == pytest.approx(stats.norm.logpdf(x, mean, math.sqrt(var)), rel=1e-12)
    assert log_density(x, mean, var) == pytest.approx(literal.log_N([x], [mean], [var]), rel=1e-12)


def test_log_density_broadcasts_and_stays_finite_in_the_tail():
    x = np.linspace(-40, 40, 9).reshape(3, 3)
    np.testing.assert_allclose(log_density(x, 0.0, 1.0), stats.norm.logpdf(x), rtol=1e-13)
    assert log_density(x, x[0], np.array([[1.0], [2.0], [3.0]])).shape == (3, 3)
    assert log_density(np.float32(1), np.float32(0), np.float32(1)).dtype == np.float32


# The transcription of Eq. (13) against known answers


def test_literal_eq13_probabilities_of_all_levels_add_to_one():
    for levels in 256, 17:
        grid = [2 * k / (levels - 1) - 1 for k in range(levels)]
        for mean, sigma in (0.1, 0.01), (-0.99, 0.3), (3.0, 1.0):
            assert sum(literal.eq13_integral(x, mean, sigma, levels) for x in grid) == pytest.approx(1, rel=1e-12)
            product = literal.eq13(grid[:3], [mean] * 3, sigma, levels)
            assert product == pytest.approx(math.prod(literal.eq13_integral(x, mean, sigma, levels) for x in grid[:3]))


def test_literal_eq13_bits_of_the_papers_decoder_with_the_exact_mean():
    """L_0 for σ_1 = √β̃_2 and σ_1 = √β_1, a mean that is exactly x_0: computed as −log₂ of the bin's probability."""
    for sigma2, bits in (5.45318766e-5, "1.30538"), (1e-4, "1.71285"):
        assert f"{-literal.eq13_log([17 / 127.5 - 1], [17 / 127.5 - 1], math.sqrt(sigma2)) / math.log(2):.5f}" == bits


def test_literal_eq13_tail_and_tanh():
    assert literal.eq13_log([1.0], [-1.0], 0.1) == pytest.approx(stats.norm.logsf((2 - 1 / 255) / 0.1), rel=1e-10)
    assert literal.eq13_log([0.6], [-0.4], 0.05) == pytest.approx(literal.eq13_log([-0.6], [0.4], 0.05), rel=1e-12)
    for x in -1.0, -127 / 255, 1 / 255, 1.0:
        assert math.exp(literal.eq13_tanh(x, 0.0, 0.3)) == pytest.approx(literal.eq13_integral(x, 0.0, 0.3), abs=4e-4)
    assert literal.eq13_tanh(1.0, -1.0, 0.01) == math.log(1e-12)
