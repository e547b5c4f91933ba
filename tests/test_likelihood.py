"""The bound of Eq. (5) against its literal transcription, against exact likelihoods, and against the paper's numbers."""

import math

import literal
import numpy as np
import oracles
import pytest

from minddpm.app.metrics import standard_error
from minddpm.appendix_a import path_bound
from minddpm.diffusion import Schedule
from minddpm.gaussian import discretized_log_likelihood
from minddpm.likelihood import Bound, prior_term, rate_distortion, vlb

LINEAR = Schedule.linear()
B, SHAPE = 3, (3, 2, 2, 1)
D = math.prod(SHAPE[1:])


def short_schedule(T=6):
    return Schedule.linear(T, 0.02, 0.4)


def images(rng, shape=SHAPE, levels=256):
    return rng.choice(np.linspace(-1, 1, levels), shape)


def replay(seed, x0, ts):
    """The draws that vlb or path_bound takes from default_rng(seed): {t: ε}."""
    rng = np.random.default_rng(seed)
    return {t: rng.standard_normal(x0.shape) for t in ts}


def network(channels=1, seed=5):
    """A smooth function of x_t and t, with nothing special about it, on arrays; applied to each image by itself."""
    rng = np.random.default_rng(seed)
    W, b = rng.standard_normal((D, D * channels)) / D**0.5, rng.standard_normal(D * channels)

    def eps_theta(x_t, t):
        y = np.tanh(x_t.reshape(len(x_t), D) @ W + b * np.cos(np.asarray(t) / 3.0).reshape(-1, 1))
        return y.reshape(len(x_t), *SHAPE[1:3], channels)

    return eps_theta


def on_lists(eps_theta):
    """The same network for literal.py: lists of floats in and out."""
    return lambda x, t: eps_theta(np.reshape(x, (1, *SHAPE[1:])), t).ravel().tolist()


def literal_p_theta(s, eps_theta, sigma2, clip, predicts):
    """μ_θ, Σ_θ and x̂_0 on lists, written with literal.py's equations only."""
    beta, raw = s.beta.tolist(), on_lists(eps_theta)

    def output(x_t, t):
        y = raw(x_t, t)
        return y[0::2] if sigma2 == "learned" else y

    def variance(x_t, t):
        if sigma2 == "learned":
            return [math.exp(v) for v in raw(x_t, t)[1::2]]
        if sigma2 == "beta":
            return [beta[t]] * D
        return [literal.eq07(beta, [0.0], [0.0], max(t, 2))[1]] * D         # σ_1² = β̃_2

    def x0_hat(x_t, t):
        if predicts == "eps":
            x0 = literal.eq15(beta, output, x_t, t)
        elif predicts == "x0":
            x0 = output(x_t, t)
        else:                                                               # the x_0 at which Eq. (7)'s mean is the output
            at0, _ = literal.eq07(beta, [0.0] * D, x_t, t)
            at1, _ = literal.eq07(beta, [1.0] * D, x_t, t)
            x0 = [(y - a) / (b - a) for y, a, b in zip(output(x_t, t), at0, at1, strict=True)]
        return [min(max(x, -1.0), 1.0) for x in x0] if clip else x0

    def mu(x_t, t):
        if predicts == "mu" and not clip:
            return output(x_t, t)
        if predicts == "eps" and not clip:
            return literal.eq11(beta, output, x_t, t)
        return literal.eq07(beta, x0_hat(x_t, t), x_t, t)[0]

    return mu, variance, x0_hat


@pytest.mark.parametrize(["sigma2", "clip", "predicts", "levels", "cdf"], [
    ("beta", False, "eps", 256, "erf"),
    ("beta", True, "eps", 256, "tanh"),
    ("beta_tilde", False, "eps", 17, "erf"),
    ("beta_tilde", True, "eps", 256, "tanh"),
    ("beta", False, "mu", 256, "erf"),
    ("beta_tilde", True, "mu", 17, "tanh"),
    ("beta", False, "x0", 256, "erf"),
    ("beta", True, "x0", 17, "tanh"),
    ("learned", False, "eps", 256, "erf"),
    ("learned", True, "mu", 256, "tanh"),
])
def test_eq05_every_term_equals_the_scalar_transcription(sigma2, clip, predicts, levels, cdf):
    s, seed, x0 = short_schedule(), 11, images(np.random.default_rng(3), levels=levels)
    eps_theta = network(2 if sigma2 == "learned" else 1)
    bound = vlb(s, eps_theta, x0, np.random.default_rng(seed), sigma2, clip, predicts=predicts, levels=levels, cdf=cdf)
    assert bound.L.shape == bound.mse.shape == (B, s.T + 1) and bound.L.dtype == bound.mse.dtype == np.float64

    beta, eps = s.beta.tolist(), replay(seed, x0, range(s.T, 0, -1))
    mu, variance, x0_hat = literal_p_theta(s, eps_theta, sigma2, clip, predicts)

    def log_p_x0(x_0, x_1):
        one = literal.eq13_tanh if cdf == "tanh" else lambda x, m, sd, n: literal.eq13_log([x], [m], sd, n)
        return sum(one(x, m, v**0.5, levels) for x, m, v in zip(x_0, mu(x_1, 1), variance(x_1, 1), strict=True))

    for i in range(B):
        x = [x0[i].ravel().tolist()]
        x += [literal.x_t_of(beta, x[0], eps[t][i].ravel().tolist(), t) for t in range(1, s.T + 1)]
        expected = np.array(literal.eq05(beta, mu, variance, x, log_p_x0)) / (D * math.log(2))
        np.testing.assert_allclose(bound.L[i], expected, rtol=1e-12, atol=1e-12)
        assert bound.total[i] == pytest.approx(sum(expected), rel=1e-12)
        mse = [0.0] + [literal.norm2(np.subtract(x[0], x0_hat(x[t], t)).tolist()) / D for t in range(1, s.T + 1)]
        np.testing.assert_allclose(bound.mse[i], mse, rtol=1e-11, atol=1e-12)


def test_eq03_along_a_trajectory_equals_the_scalar_transcription():
    s, seed, x0, eps_theta = short_schedule(), 12, images(np.random.default_rng(4)), network()
    bits = path_bound(s, eps_theta, x0, np.random.default_rng(seed), "beta", clip=False)
    beta, eps = s.beta.tolist(), replay(seed, x0, range(1, s.T + 1))
    mu, variance, _ = literal_p_theta(s, eps_theta, "beta", False, "eps")
    for i in range(B):
        x = [x0[i].ravel().tolist()]
        for t in range(1, s.T + 1):
            mean, var = literal.eq02(beta, x[-1], t)
            x.append([m + math.sqrt(var) * e for m, e in zip(mean, eps[t][i].ravel().tolist(), strict=True)])
        nats = literal.eq03(beta, mu, variance, x, lambda x_0, x_1: literal.eq13_log(x_0, mu(x_1, 1), beta[1] ** 0.5))
        assert bits[i] == pytest.approx(nats / (D * math.log(2)), rel=1e-12)


# The paper's numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(["mean_square", "bits"], [(0.2, 5.82e-6), (0.25, 7.28e-6), (0.3, 8.73e-6), (1.0, 2.91e-5)])
def test_sec4_L_T_is_about_1e_5(mean_square, bits):
    x0 = np.full((1, 4), mean_square**0.5)
    assert prior_term(LINEAR, x0)[0] == pytest.approx(bits, abs=5e-9 if bits < 1e-5 else 5e-8)


def exact(x0):
    """vlb with ε* for images each of which is the whole data set: what no network can do better."""
    return lambda sigma2, **more: vlb(LINEAR, oracles.point(LINEAR, x0), x0, np.random.default_rng(0), sigma2, **more)


def test_eq05_floor_of_the_rate_with_sigma2_beta():
    x0 = np.linspace(-1, 1, 256)[[[100, 130, 200]]]
    bound = exact(x0)("beta")
    assert bound.L[0, 1] == pytest.approx(0.175125, abs=5e-7)               # t = 2
    assert bound.L[0, 2] == pytest.approx(0.0746195, abs=5e-8)              # t = 3
    assert bound.L[0, 1:-1].sum() == pytest.approx(0.48642, abs=5e-6)
    assert bound.rate[0] == pytest.approx(0.48642 + bound.L_T[0], abs=5e-6)
    for t in 2, 3, 500, 1000:                                               # the KL's floor at each t
        ratio = LINEAR.beta_tilde[t] / LINEAR.beta[t]
        assert bound.L[0, t - 1] == pytest.approx((ratio - 1 - math.log(ratio)) / 2 / math.log(2), rel=1e-6)
    np.testing.assert_allclose(exact(x0)("beta_tilde").L[0, 1:-1], 0, atol=1e-12)


def test_eq13_L_0_of_the_bound_for_each_choice_of_sigma_1():
    x0 = np.linspace(-1, 1, 256)[[[100, 130, 200]]]
    assert exact(x0)("beta").distortion[0] == pytest.approx(1.71285, abs=5e-6)
    assert exact(x0)("beta_tilde").distortion[0] == pytest.approx(1.30538, abs=5e-6)
    released = exact(x0)("beta", decoder_var=LINEAR.beta_tilde[2])
    assert released.distortion[0] == pytest.approx(1.30538, abs=5e-6) and released.L[0, 1] > 0.17


def test_eq15_mse_of_two_models_in_closed_form():
    x0 = images(np.random.default_rng(1), (2, 50))
    np.testing.assert_allclose(exact(x0)("beta").mse, 0, atol=1e-12)        # x̂_0 = x_0
    s = short_schedule()
    mse = vlb(s, lambda x_t, t: x_t * 0, x0, np.random.default_rng(2), clip=False).mse
    eps = replay(2, x0, range(s.T, 0, -1))
    assert np.all(mse[:, 0] == 0)
    for t in range(1, s.T + 1):                                             # ε_θ = 0: x̂_0 = x_t / √ᾱ_t
        np.testing.assert_allclose(mse[:, t], (1 - s.alpha_bar[t]) / s.alpha_bar[t] * (eps[t] ** 2).mean(1))


# Never below the exact negative log-likelihood ----------------------------------------------------------------------------


@pytest.mark.parametrize("sigma2", ["beta", "beta_tilde"])
def test_eq05_each_image_costs_at_least_its_exact_nll(sigma2):
    """For one x_0 at a time: E[vlb | x_0] ≥ −log p_θ(x_0), where p_θ(x_0) of a linear ε_θ is a Gaussian, here in closed form."""
    s, (m, v) = short_schedule(10), (0.1, 0.09)
    eps_theta = oracles.gaussian(s, m, v)
    mean, var = oracles.marginal_of_linear_model(s, eps_theta, s.sigma2(sigma2))
    for value in np.linspace(-1, 1, 17)[[3, 8, 12, 16]]:
        x0 = np.full((4000, 1), value)
        bound = vlb(s, eps_theta, x0, np.random.default_rng(0), sigma2, clip=False, levels=17).total
        nll = -discretized_log_likelihood(value, mean, var**0.5, 17) / math.log(2)
        assert bound.mean() + 4 * standard_error(bound) > nll, value
        assert bound.mean() < 1.2 * nll + 0.2, value                        # and it is no trivial bound


def test_eq05_converges_to_the_entropy_of_gaussian_data_as_T_grows():
    """Levels so fine that Eq. (13) is density times bin width: the bound may be compared with the differential entropy.

    x_0 ~ N(0, 0.04) lies in [−1, 1] up to 5 σ.  β_t T is the same function of t/T for each T, as in the paper's at T = 1000.
    """
    sigma, levels, gaps = 0.2, 10**5 + 1, []
    x0 = sigma * np.random.default_rng(1).standard_normal((4000, 2))
    nll = -discretized_log_likelihood(x0, 0.0, sigma, levels).mean(1) / math.log(2)         # of the data's own density
    entropy = math.log2(sigma * math.sqrt(2 * math.pi * math.e)) - math.log2(2 / (levels - 1))
    assert nll.mean() == pytest.approx(entropy, abs=4 * standard_error(nll))
    for T in 25, 50, 100, 200:
        s = Schedule.linear(T, 0.1 / T, 20 / T)
        gap = vlb(s, oracles.gaussian(s, 0.0, sigma**2), x0, np.random.default_rng(2), clip=False, levels=levels).total - nll
        gaps.append(gap.mean())
        assert gap.mean() > -4 * standard_error(gap), T
    assert all(b < 0.65 * a for a, b in zip(gaps, gaps[1:], strict=False)) and gaps[-1] < 0.07, gaps       # as 1/T, so to 0


@pytest.mark.parametrize("sigma2", ["beta", "beta_tilde"])
def test_eq05_is_at_least_the_entropy_of_a_finite_data_set(sigma2):
    data = images(np.random.default_rng(8), (8, 4))
    s = Schedule.linear(100, 1e-3, 0.2)
    x0 = np.tile(data, (50, 1))
    bound = vlb(s, oracles.finite(s, data), x0, np.random.default_rng(9), sigma2).total
    entropy = math.log2(8) / 4                                              # no code is shorter than log₂ 8 bits an image
    assert bound.mean() > entropy


# Sec. 4.3: rate and distortion --------------------------------------------------------------------------------------------


def test_table4_fig5_rate_is_cumulative_and_the_error_on_the_scale_of_bytes():
    L = np.array([[4.0, 2.0, 1.0, 0.5], [6.0, 2.0, 3.0, 0.5]])              # L_0 … L_3 of two images
    mse = np.array([[0.0, 0.01, 0.04, 0.16], [0.0, 0.03, 0.04, 0.34]])
    bound = Bound(L, mse)
    rate, rmse = rate_distortion(bound)
    np.testing.assert_allclose(rate, [9.5, 4.5, 2.5, 0.5])
    np.testing.assert_allclose(rmse, 127.5 * np.sqrt([0, 0.02, 0.04, 0.25]))
    np.testing.assert_allclose(rate[1], bound.rate.mean())
    np.testing.assert_allclose(bound.total, bound.rate + bound.distortion)


# Contracts ----------------------------------------------------------------------------------------------------------------


def test_eq05_works_in_float64_although_the_network_is_float32():
    s, x0 = LINEAR, images(np.random.default_rng(1), (2, 64)).astype(np.float32)
    seen = set()

    def eps_theta(x_t, t):
        seen.add(x_t.dtype)
        return oracles.point(s, x0.astype(np.float64))(x_t.astype(np.float64), t).astype(np.float32)

    bound = vlb(s, eps_theta, x0, np.random.default_rng(0), "beta_tilde", clip=False)
    assert seen == {np.dtype(np.float32)} and bound.L.dtype == np.float64
    assert 0 <= bound.L[:, 1:-1].min() and bound.L[:, 1:-1].sum(1).max() < 1e-6      # float32 throughout would have 1e-4
    double = vlb(s, lambda x_t, t: eps_theta(x_t.astype(np.float32), t), x0.astype(np.float64), np.random.default_rng(0),
                 "beta_tilde", clip=False)
    np.testing.assert_allclose(bound.L, double.L, rtol=1e-12)               # the same arithmetic from x_0 on


def test_eq05_images_and_steps_have_noise_of_their_own():
    s, x0 = short_schedule(), np.zeros((2, 5))
    seen = []
    vlb(s, lambda x_t, t: seen.append(x_t) or x_t, x0, np.random.default_rng(0))
    draws = np.concatenate(seen)
    assert len(np.unique(draws)) == draws.size
    steps = []
    vlb(s, lambda x_t, t: x_t, x0, np.random.default_rng(0), on_step=steps.append)
    assert steps == [6, 5, 4, 3, 2, 1]


def test_eq05_refuses():
    s, x0, rng = short_schedule(), np.zeros((2, 3)), np.random.default_rng(0)
    with pytest.raises(ValueError, match="sigma2 is 'other'"):
        vlb(s, lambda x_t, t: x_t, x0, rng, "other")
