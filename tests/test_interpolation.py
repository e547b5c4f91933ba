"""sample.py: interpolation (Fig. 8, 9), against its transcription and against the exact results of closed-form models."""

import math

import literal
import numpy as np
import oracles
import pytest

from minddpm.diffusion import Schedule, q_sample
from minddpm.random import rng
from minddpm.sample import interpolate

S = Schedule.linear(T=25, beta_1=0.01, beta_T=0.3)
LAM = np.linspace(0, 1, 11)


def images(seed, *shape):
    return np.random.default_rng([seed, 77]).uniform(-1, 1, shape)


def wavy(x_t, t):
    """Some ε_θ that is not linear."""
    return np.sin(3 * x_t) + np.reshape(0.01 * t, (-1,) + (1,) * (x_t.ndim - 1)).astype(x_t.dtype)


def draws(seed, pair, t, D):
    """The noise of a pair: ε, ε', and z[t] for t, …, 2."""
    stream = rng("interpolation", seed, pair)
    eps, eps_prime, *z = (stream.standard_normal(D, dtype=np.float32).astype(float).tolist() for _ in range(t + 1))
    return eps, eps_prime, dict(zip(range(t, 1, -1), z, strict=True))


class Recorded:
    """A model that keeps every (x_t, t) it has seen."""

    def __init__(self, eps_theta):
        self.eps_theta, self.seen = eps_theta, []

    def __call__(self, x_t, t):
        self.seen.append((x_t.copy(), t))
        return self.eps_theta(x_t, t)


def first_x_bar(x0, x0_prime, lam, t, seed=0):
    """x̄_t: the model's first argument."""
    model = Recorded(wavy)
    interpolate(S, model, x0, x0_prime, lam, t, seed)
    assert [t for _, t in model.seen] == list(range(t, 0, -1))
    return model.seen[0][0].reshape(np.shape(lam) + x0.shape)


# The equations of Sec. 4.4 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma2", ["beta", "beta_tilde"])
def test_sec44_is_the_transcribed_one(sigma2):
    """Each image by scalar loops: x_t and x_t' by Eq. (4), mixed, and Alg. 2 on the first t steps of the schedule."""
    x0, x0_prime, t = images(1, 2, 3), images(2, 2, 3), 9
    found = interpolate(S, wavy, x0, x0_prime, LAM, t, seed=4, sigma2=sigma2, clip=False)
    beta, sigma = S.beta.tolist(), np.sqrt(S.sigma2(sigma2)).tolist()
    for pair in range(2):
        eps, eps_prime, z = draws(4, pair, t, 3)
        x_t, x_t_prime = (literal.x_t_of(beta, x[pair].tolist(), e, t) for x, e in ((x0, eps), (x0_prime, eps_prime)))
        for k, lam in enumerate(LAM):
            x_bar = [(1 - lam) * a + lam * b for a, b in zip(x_t, x_t_prime, strict=True)]
            steps = literal.alg2(beta[:t + 1], lambda x, t: wavy(np.array(x), t).tolist(), sigma[:t + 1], x_bar, z)
            np.testing.assert_allclose(found[k, pair], steps[0], rtol=1e-9, atol=1e-9)


def test_sec44_mixes_x_t_and_not_x_0():
    """The paper's printed formula has x_0.  For two equal images it would give the same x̄_t for each λ; x_t's noise differs."""
    x0, t, n = np.zeros((1, 20_000)), 12, 20_000
    x_bar = first_x_bar(x0, x0, [0, 0.25, 0.5, 1], t)[:, 0]
    alpha_bar = literal.alpha_bar(S.beta.tolist(), t)
    for lam, x in zip((0, 0.25, 0.5, 1), x_bar, strict=True):
        assert x.var() == pytest.approx((1 - alpha_bar) * (lam**2 + (1 - lam) ** 2), rel=5 * math.sqrt(2 / n))
    assert abs(np.corrcoef(x_bar[0], x_bar[3])[0, 1]) < 5 / math.sqrt(n)        # ε and ε' are independent


def test_sec44_x_t_are_draws_of_q():
    x0, x0_prime = images(5, 3, 2), images(6, 3, 2)
    ends = first_x_bar(x0, x0_prime, [0.0, 1.0], 7, seed=3)
    for pair in range(3):
        eps, eps_prime, _ = draws(3, pair, 7, 2)
        np.testing.assert_array_equal(ends[0, pair], q_sample(S, x0[pair:pair + 1], 7, np.array([eps]))[0])
        np.testing.assert_array_equal(ends[1, pair], q_sample(S, x0_prime[pair:pair + 1], 7, np.array([eps_prime]))[0])


# Fig. 8: the noise is the same for each λ ---------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1, 2, 13, 25])
def test_fig08_of_a_linear_model_is_linear_in_lambda(t):
    """Gaussian data: ε* is linear, so is the reverse process, and x̄_0 is exactly the mix of its ends if all noise is fixed."""
    x0, x0_prime = images(1, 4, 3, 3, 1), images(2, 4, 3, 3, 1)
    x_bar = interpolate(S, oracles.gaussian(S, 0.3, 0.2), x0, x0_prime, LAM, t, seed=1, clip=False)
    column = LAM.reshape(-1, 1, 1, 1, 1)
    np.testing.assert_allclose(x_bar, (1 - column) * x_bar[0] + column * x_bar[-1], rtol=1e-10, atol=1e-12)
    assert np.abs(x_bar[0] - x_bar[-1]).max() > 0.1 or t == S.T


def test_fig08_is_continuous_in_lambda():
    """With a model that is not linear: a step of 1e-6 in λ moves no pixel far.  New noise would move each by σ."""
    x0, x0_prime = images(3, 2, 4, 4, 1), images(4, 2, 4, 4, 1)
    a, b = interpolate(S, wavy, x0, x0_prime, [0.4, 0.4 + 1e-6], 12)
    assert 0 < np.abs(a - b).max() < 1e-2


def test_fig08_each_lambda_is_the_same_alone_or_with_others():
    x0, x0_prime = images(3, 2, 4, 4, 1), images(4, 2, 4, 4, 1)
    together = interpolate(S, wavy, x0, x0_prime, LAM, 12, seed=9)
    for lam, x in zip(LAM.tolist(), together, strict=True):
        np.testing.assert_array_equal(interpolate(S, wavy, x0, x0_prime, lam, 12, seed=9), x)
    assert interpolate(S, wavy, x0, x0_prime, LAM[:6].reshape(2, 3), 12, seed=9).shape == (2, 3, 2, 4, 4, 1)
    np.testing.assert_array_equal(interpolate(S, wavy, x0, x0_prime, [0.1], 12, seed=9)[0], together[1])


def test_fig08_ends_are_the_reconstructions_of_the_two_images():
    """λ = 0 does not depend on x_0', nor λ = 1 on x_0; ε* of the two images gives them back where t is small."""
    x0, x0_prime, other = images(1, 2, 6), images(2, 2, 6), images(3, 2, 6)
    ends = interpolate(S, wavy, x0, x0_prime, [0, 1], 12)
    np.testing.assert_array_equal(interpolate(S, wavy, x0, other, 0, 12), ends[0])
    np.testing.assert_array_equal(interpolate(S, wavy, other, x0_prime, 1, 12), ends[1])
    x0, x0_prime = np.full((1, 64), 0.8), np.full((1, 64), -0.6)
    x_bar = interpolate(S, oracles.finite(S, np.concatenate([x0, x0_prime])), x0, x0_prime, [0, 1], 8)
    np.testing.assert_allclose(x_bar, np.stack([x0, x0_prime]), atol=1e-9)


def test_fig08_of_a_finite_data_set_every_image_between_is_one_of_the_set():
    """The exact posterior mean of three images: the interpolation jumps from one to the next, and never blends."""
    data = np.stack([np.full(64, 0.9), np.full(64, -0.9), np.linspace(-0.9, 0.9, 64)])
    x_bar = interpolate(S, oracles.finite(S, data), data[:1], data[1:2], np.linspace(0, 1, 41), 10)[:, 0]
    distance = np.abs(x_bar[:, None] - data).max(2)
    assert distance.min(1).max() < 1e-6
    nearest = distance.argmin(1)
    assert nearest[0] == 0 and nearest[-1] == 1 and (np.diff(nearest) != 0).sum() <= 2


# Fig. 9: from the pixels to new samples -----------------------------------------------------------------------------------


def test_fig09_t_0_mixes_the_pixels():
    def never(x_t, t):
        raise AssertionError("t = 0 needs no model")

    x0, x0_prime = images(1, 2, 3), images(2, 2, 3)
    for lam in 0.0, 0.3, 1.0:
        np.testing.assert_array_equal(interpolate(S, never, x0, x0_prime, lam, 0), (1 - lam) * x0 + lam * x0_prime)


def test_fig09_small_t_is_close_to_the_mix_of_the_pixels_and_larger_t_further():
    """The paper's schedule, and data so wide that ε* has nothing to add: what moves x̄_0 is the noise of so many steps."""
    s = Schedule.linear()
    x0, x0_prime = images(1, 2, 200), images(2, 2, 200)
    mix = 0.5 * x0 + 0.5 * x0_prime
    far = [np.sqrt(((interpolate(s, oracles.gaussian(s, 0, 0.3), x0, x0_prime, 0.5, t, clip=False) - mix) ** 2).mean())
           for t in (1, 10, 100, 400)]
    assert far[0] < 0.02
    assert far == sorted(far) and far[-1] > 0.3


def test_fig09_t_T_has_forgotten_the_images():
    """The paper's last row: x̄_0 of other images is the same to what √ᾱ_T lets through, and differs with the seed."""
    s = Schedule.linear()
    a, b, c, d = (images(k, 1, 100) for k in range(4))
    model = oracles.gaussian(s, 0, 0.3)
    one, two = (interpolate(s, model, *pair, 0.5, s.T, seed=2, clip=False) for pair in ((a, b), (c, d)))
    assert 0 < np.abs(one - two).max() < 0.02
    assert np.abs(one - interpolate(s, model, a, b, 0.5, s.T, seed=3, clip=False)).max() > 0.5


def test_fig09_rows_share_the_noise_of_the_forward_process():
    """x_t is made of the same ε at each t, so that the rows of Fig. 9 differ by t alone."""
    x0, zero = images(1, 1, 5), np.zeros((1, 5))
    eps = [first_x_bar(zero, x0, 0.0, t) / math.sqrt(1 - S.alpha_bar[t]) for t in (3, 9, 25)]
    np.testing.assert_allclose(eps[0], eps[1], rtol=1e-12)
    np.testing.assert_allclose(eps[0], eps[2], rtol=1e-12)


# As the sampler -----------------------------------------------------------------------------------------------------------


def test_fig08_pair_k_is_the_same_whatever_the_batch():
    x0, x0_prime = images(1, 5, 2, 2, 1), images(2, 5, 2, 2, 1)
    whole = interpolate(S, wavy, x0, x0_prime, [0.2, 0.7], 12, seed=6)
    part = interpolate(S, wavy, x0[3:], x0_prime[3:], [0.2, 0.7], 12, seed=6, first=3)
    np.testing.assert_array_equal(part, whole[:, 3:])


def test_fig08_clips_and_keeps_the_dtype():
    x0, x0_prime = images(1, 2, 3).astype(np.float32), images(2, 2, 3).astype(np.float32)
    model = Recorded(lambda x_t, t: -4 * x_t)                                   # x̂_0 far outside
    clipped = interpolate(S, model, x0, x0_prime, LAM, 12)
    assert clipped.dtype == np.float32 and {x.dtype for x, _ in model.seen} == {np.dtype(np.float32)}
    assert np.abs(clipped).max() <= 1 < np.abs(interpolate(S, model, x0, x0_prime, LAM, 12, clip=False)).max()


def test_fig08_t_is_the_papers_500_by_default():
    x0, x0_prime = images(1, 1, 2), images(2, 1, 2)
    s, model = Schedule.linear(), Recorded(wavy)
    interpolate(s, model, x0, x0_prime, 0.5)
    assert model.seen[0][1] == 500 and len(model.seen) == 500


def test_fig08_refuses_what_makes_no_sense():
    x0 = images(1, 2, 3)
    with pytest.raises(ValueError, match=r"x0_prime has shape \(1, 3\)"):
        interpolate(S, wavy, x0, x0[:1], 0.5, 12)
    for t in (-1, 26):
        with pytest.raises(ValueError, match=r"expected 0\.\.25"):
            interpolate(S, wavy, x0, x0, 0.5, t)
