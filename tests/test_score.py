"""Sec. 3.2, App. C: ε_θ as a score, and Langevin dynamics beside Alg. 2 on data with known answers."""

import math

import numpy as np
import oracles
import pytest

from minddpm.diffusion import Schedule, q_marginal, q_sample
from minddpm.gaussian import log_density
from minddpm.objective import l_simple
from minddpm.sample import sample
from minddpm.score import langevin, score, score_matching

LINEAR = Schedule.linear()


def gradient(f, x, h=1e-5):
    return (f(x + h) - f(x - h)) / (2 * h)


@pytest.mark.parametrize("t", [1, 10, 500, 1000])
def test_sec32_the_noise_is_the_score_of_q(t):
    rng = np.random.default_rng(0)
    x0, eps = rng.uniform(-1, 1, (3, 4)), rng.standard_normal((3, 4))
    x_t, (mean, var) = q_sample(LINEAR, x0, t, eps), q_marginal(LINEAR, x0, t)
    h = 1e-5 * math.sqrt(var)
    slope = gradient(lambda x: log_density(x, mean, var), x_t, h)               # coordinates are independent
    np.testing.assert_allclose(score(LINEAR, x_t, t, eps), slope, rtol=1e-6, atol=1e-6 / math.sqrt(var))


@pytest.mark.parametrize("t", [5, 300, 900])
def test_sec32_the_best_eps_theta_is_the_score_of_q_x_t(t):
    """Not of q(x_t | x_0): averaged over x_0, for a mixture of two points and for Gaussian data."""
    x = np.linspace(-2, 2, 41).reshape(-1, 1)
    a, b = math.sqrt(LINEAR.alpha_bar[t]), 1 - LINEAR.alpha_bar[t]
    data = np.array([[-0.7], [0.4]])
    log_q = {
        "finite": lambda x: np.logaddexp(log_density(x, -0.7 * a, b), log_density(x, 0.4 * a, b)),
        "gaussian": lambda x: log_density(x, 0.2 * a, a * a * 0.3 + b),
    }
    models = {"finite": oracles.finite(LINEAR, data), "gaussian": oracles.gaussian(LINEAR, 0.2, 0.3)}
    for name, eps_theta in models.items():
        found, slope = score(LINEAR, x, t, eps_theta(x, t)), gradient(log_q[name], x, 1e-6)
        np.testing.assert_allclose(found, slope, rtol=1e-5, atol=1e-5 * np.abs(slope).max(), err_msg=name)


@pytest.mark.parametrize("t", [1, 300, np.array([1, 50, 1000])])
def test_sec32_denoising_score_matching_is_l_simple_with_another_weight(t):
    rng = np.random.default_rng(1)
    x0, eps, eps_theta = rng.uniform(-1, 1, (3, 2, 2, 1)), *rng.standard_normal((2, 3, 2, 2, 1))
    x_t = q_sample(LINEAR, x0, t, eps)
    by_hand = np.array([np.mean((score(LINEAR, x_t, t, eps_theta)[i] - score(LINEAR, x_t, t, eps)[i]) ** 2) for i in range(3)])
    found = score_matching(LINEAR, x_t, t, eps, eps_theta)
    np.testing.assert_allclose(found, by_hand, rtol=1e-12)
    np.testing.assert_allclose((1 - LINEAR.alpha_bar[t]) * found, l_simple(eps, eps_theta)[0], rtol=1e-12)
    # and Eq. (12)'s weight: L_{t−1} − C = β_t² / (2σ_t² α_t) times it, here with σ_t² = β_t, a mean over D instead of a sum
    weight = LINEAR.beta[t] ** 2 / (2 * LINEAR.beta[t] * LINEAR.alpha[t])
    eq12 = LINEAR.beta[t] ** 2 / (2 * LINEAR.beta[t] * LINEAR.alpha[t] * (1 - LINEAR.alpha_bar[t])) * l_simple(eps, eps_theta)[0]
    np.testing.assert_allclose(weight * found, eq12, rtol=1e-12)


@pytest.mark.parametrize("step", [0.05, 1.0])
def test_appc_langevin_comes_to_rest_where_it_must(step):
    """On Gaussian data the stationary law of the discretised dynamics is known: N(√ᾱ_t m, V / (1 − a_t / 4V))."""
    s, t, (m, v) = Schedule.linear(10, 0.1, 0.5), 4, (0.5, 0.3)
    eps_theta, last = oracles.gaussian(s, m, v), []

    def watched(x, t):
        last.append(x)
        return eps_theta(x, t)

    langevin(s, watched, (10_000, 1), np.random.default_rng(0), [t], steps=200, step=step)
    V = s.alpha_bar[t] * v + 1 - s.alpha_bar[t]
    V_stationary = V / (1 - step * (1 - s.alpha_bar[t]) / (4 * V))
    x = last[-1]
    assert x.dtype == np.float32
    assert x.mean() == pytest.approx(math.sqrt(s.alpha_bar[t]) * m, abs=4 * math.sqrt(V / len(x)))
    assert x.var() == pytest.approx(V_stationary, rel=4 * math.sqrt(2 / len(x)))


def shares_of(x, data):
    nearest = np.argmin(((x[:, None] - data[None]) ** 2).sum(2), axis=1)
    return np.bincount(nearest, minlength=len(data)) / len(x)


def test_appc_langevin_and_ancestral_sampling_draw_from_the_same_finite_data_set():
    """The exact posterior mean as denoiser: both samplers return the data themselves, each image as often as the others."""
    s, n = Schedule.linear(50, 1e-4, 0.4), 1500
    data = np.array([[-0.8, -0.5], [0.7, -0.6], [0.1, 0.9]])
    eps_theta = oracles.finite(s, data)
    drawn = {
        "Alg. 2": sample(s, eps_theta, (n, 2), seed=1, like=np.zeros(0)),
        "Langevin": langevin(s, eps_theta, (n, 2), np.random.default_rng(2), range(50, 0, -2), 20, 0.3, like=np.zeros(0)),
    }
    for name, x in drawn.items():
        distance = np.sqrt(((x[:, None] - data[None]) ** 2).sum(2)).min(1)
        assert distance.max() < 1e-3, name
        shares = shares_of(x, data)
        assert np.abs(shares - 1 / 3).max() < 5 * math.sqrt(2 / 9 / n), (name, shares)


def test_appc_langevin_and_ancestral_sampling_on_gaussian_data():
    s, (m, v) = Schedule.linear(50, 1e-3, 0.3), (0.3, 0.05)
    eps_theta = oracles.gaussian(s, m, v)
    sigma2 = s.beta.copy()
    sigma2[1] = 0                                                               # Alg. 2 adds no noise at the last step
    mean, var = oracles.marginal_of_linear_model(s, eps_theta, sigma2)
    x = sample(s, eps_theta, (2000, 1), seed=3, clip=False, like=np.zeros(0))
    assert x.mean() == pytest.approx(mean, abs=4 * math.sqrt(var / len(x)))
    assert x.var() == pytest.approx(var, rel=4 * math.sqrt(2 / len(x)))
    assert mean == pytest.approx(m, abs=0.01) and var == pytest.approx(v, rel=0.3)       # which is as near as T = 50 comes

    times, few, many = range(50, 0, -1), dict(steps=8, step=0.3), dict(steps=1000, step=0.1)
    x = langevin(s, eps_theta, (10_000, 1), np.random.default_rng(4), times, **few, like=np.zeros(0))
    mean, var = langevin_on_gaussian(s, m, v, times, **few)
    assert x.mean() == pytest.approx(mean, abs=4 * math.sqrt(var / len(x)))
    assert x.var() == pytest.approx(var, rel=4 * math.sqrt(2 / len(x)))
    assert langevin_on_gaussian(s, m, v, times, **many) == pytest.approx((m, v), rel=0.01)     # exact, given enough steps


def langevin_on_gaussian(s, m, v, times, steps, step):
    """Mean and variance of what `langevin` returns for N(m, v) data and ε*: each step is linear in x, with noise added."""
    mean, var = 0.0, 1.0
    for t in times:
        a_bar = s.alpha_bar[t]
        a_t, centre, V = step * (1 - a_bar), math.sqrt(a_bar) * m, a_bar * v + 1 - a_bar
        for _ in range(steps):
            keep = 1 - a_t / (2 * V)
            mean, var = centre + keep * (mean - centre), keep**2 * var + a_t
    gain = math.sqrt(a_bar) * v / V                                             # E[x_0 | x_t] = m + gain (x_t − √ᾱ_t m)
    return m + gain * (mean - centre), gain**2 * var
