"""sample.py: Algorithm 2 against its transcription and, for Gaussian data, against the exact law of every x_t."""

import math

import literal
import numpy as np
import pytest

from minddpm.diffusion import Schedule, x0_hat
from minddpm.fast import Workers, parallel
from minddpm.random import rng
from minddpm.sample import image_noise, reverse_process, sample

S = Schedule.linear(T=25, beta_1=0.01, beta_T=0.3)
LIKE = np.zeros(0)                      # float64


def gaussian(s, m, v):
    """The best ε_θ of data N(m, v): E[ε | x_t] = √(1−ᾱ_t) (x_t − √ᾱ_t m) / (ᾱ_t v + 1 − ᾱ_t)."""

    def eps_theta(x_t, t):
        alpha_bar = s.alpha_bar[t]
        return math.sqrt(1 - alpha_bar) * (x_t - math.sqrt(alpha_bar) * m) / (alpha_bar * v + 1 - alpha_bar)

    return eps_theta


def wavy(x_t, t):
    """Some ε_θ that is not linear."""
    return np.sin(3 * x_t) + np.reshape(0.01 * t, (-1,) + (1,) * (x_t.ndim - 1)).astype(x_t.dtype)


def reverse(s, eps_theta, shape, seed, like=LIKE, **how):
    """(t, x_t) for t = T, …, 0 on the way to the samples of a seed."""
    return [(t, x_t) for t, x_t, _ in reverse_process(s, eps_theta, image_noise(shape, seed, like=like), **how)]


def streams(seed, image, T, D):
    """The noise of image number `image`: x_T, and z[t] for t = T..2."""
    stream = rng("sampling", seed, image)
    draws = [stream.standard_normal(D, dtype=np.float32).astype(float).tolist() for _ in range(T)]
    return draws[0], dict(zip(range(T, 1, -1), draws[1:], strict=True))


@pytest.mark.parametrize("sigma2", ["beta", "beta_tilde"])
def test_alg2_is_the_transcribed_one(sigma2):
    steps = reverse(S, wavy, (3, 2, 1, 1), seed=5, sigma2=sigma2, clip=False)
    assert [t for t, _ in steps] == list(range(25, -1, -1))
    for image in range(3):
        x_T, z = streams(5, image, 25, 2)
        sigma = np.sqrt(S.sigma2(sigma2)).tolist()
        expected = literal.alg2(S.beta.tolist(), lambda x, t: wavy(np.array(x), t).tolist(), sigma, x_T, z)
        for t, x_t in steps:
            np.testing.assert_allclose(x_t[image].ravel(), expected[t], rtol=1e-9, atol=1e-9)


def test_eq01_the_reverse_process_is_the_chain_of_its_gaussians():
    """log p_θ(x_{0:T}) of the trajectory is that of its noise, z = (x_{t−1} − μ_θ)/σ_t, less the logarithms of the σ_t."""
    x = {t: x_t[0].ravel().tolist() for t, x_t in reverse(S, wavy, (1, 3), seed=1, clip=False)}
    x_T, z = streams(1, 0, 25, 3)
    beta = S.beta.tolist()
    log_p = literal.eq01(lambda x, t: literal.eq11(beta, lambda x, t: wavy(np.array(x), t).tolist(), x, t),
                         lambda x, t: [beta[t]] * 3, [x[t] for t in range(26)])
    noise = [x_T, *z.values(), [0.0] * 3]                                   # at t = 1: the mean itself
    expected = sum(literal.log_N(z_t, [0.0] * 3, [1.0] * 3) for z_t in noise) - 1.5 * sum(map(math.log, beta[1:]))
    assert log_p == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("clip", [True, False])
def test_alg2_adds_no_noise_at_t_1(clip):
    steps = dict(reverse(S, gaussian(S, 0.3, 0.01), (4, 3), seed=2, clip=clip))
    beta, eps_theta = S.beta.tolist(), gaussian(S, 0.3, 0.01)
    for image in range(4):
        mean = literal.eq11(beta, lambda x, t: eps_theta(np.array(x), t).tolist(), steps[1][image].tolist(), 1)
        np.testing.assert_allclose(steps[0][image], mean, rtol=1e-12, atol=1e-12)


def test_alg2_the_last_step_is_the_same_whatever_the_streams():
    """One step in all, T = 1: from the same x_1, by two seeds.  x_0 is a function of x_1."""
    one = Schedule.constant(T=1, beta=0.4)
    for seed in range(3):
        (_, x_1), (_, x_0) = reverse(one, wavy, (5, 2), seed, clip=False)
        expected = [literal.eq11([0, 0.4], lambda x, t: wavy(np.array(x), t).tolist(), row.tolist(), 1) for row in x_1]
        np.testing.assert_allclose(x_0, expected, rtol=1e-13)


# Gaussian data N(m, v), for which the chain is linear:  x_{t−1} = A_t x_t + C_t + σ_t z,  with
#     A_t = (1 − β_t / (ᾱ_t v + 1 − ᾱ_t)) / √α_t,        C_t = √ᾱ_t β_t / (ᾱ_t v + 1 − ᾱ_t) m / √α_t,
# from Eq. (11) and ε* above.  Mean M_t and variance V_t of every x_t follow from M_T = 0, V_T = 1.


def exact_law(beta, sigma2, m, v):
    """[M_0..M_T], [V_0..V_T]."""
    T = len(beta) - 1
    M, V = [0.0] * (T + 1), [1.0] * (T + 1)
    for t in range(T, 0, -1):
        alpha_bar = literal.alpha_bar(beta, t)
        gain = beta[t] / (alpha_bar * v + 1 - alpha_bar)
        A, C = (1 - gain) / math.sqrt(1 - beta[t]), math.sqrt(alpha_bar) * gain * m / math.sqrt(1 - beta[t])
        M[t - 1] = A * M[t] + C
        V[t - 1] = A**2 * V[t] + (sigma2[t] if t > 1 else 0.0)
    return M, V


def law_of_the_chain(s, eps_theta, sigma2):
    """Mean and variance of every x_t, exactly: number 0 gets no noise, number k the k-th draw alone, and the chain is linear."""
    draws, M, V = np.eye(s.T + 1)[1:, None], {}, {}                         # draw k = 1..T is 1 for number k and 0 for the others
    for t, x_t, _ in reverse_process(s, eps_theta, iter(draws), sigma2=sigma2, clip=False):
        M[t], V[t] = x_t[0, 0], ((x_t[0, 1:] - x_t[0, 0]) ** 2).sum()
    return [M[t] for t in range(s.T + 1)], [V[t] for t in range(s.T + 1)]


@pytest.mark.parametrize("sigma2", ["beta", "beta_tilde"])
@pytest.mark.parametrize("m, v", [(0.0, 1.0), (0.5, 0.2), (-3.0, 4.0), (0.7, 0.0)])
def test_alg2_has_the_exact_mean_and_variance_at_every_t(m, v, sigma2):
    for s in S, Schedule.linear():                                          # the second is the paper's: T = 1000
        M, V = law_of_the_chain(s, gaussian(s, m, v), sigma2)
        exact_M, exact_V = exact_law(s.beta.tolist(), s.sigma2(sigma2).tolist(), m, v)
        np.testing.assert_allclose(M, exact_M, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(V, exact_V, rtol=1e-9, atol=1e-12)


def test_sec32_beta_is_optimal_for_standard_normal_data():
    """σ_t² = β_t for x_0 ~ N(0, I): every x_t has variance 1 exactly, until the last step, which adds no noise."""
    s = Schedule.linear()
    M, V = law_of_the_chain(s, gaussian(s, 0.0, 1.0), "beta")
    np.testing.assert_allclose(M, 0, atol=1e-15)
    np.testing.assert_allclose(V[1:], 1, rtol=1e-12)
    assert V[0] == pytest.approx(1 - s.beta[1], rel=1e-12)


def test_sec32_beta_tilde_is_optimal_for_one_fixed_point():
    """σ_t² = β̃_t for x_0 = m: x_t is as q(x_t | x_0 = m), but for what p(x_T) differs from q(x_T | m), and x_0 is m exactly."""
    s, m = Schedule.linear(), 0.7
    M, V = law_of_the_chain(s, gaussian(s, m, 0.0), "beta_tilde")
    np.testing.assert_allclose(M, np.sqrt(s.alpha_bar) * m, atol=1.01 * math.sqrt(s.alpha_bar[-1]) * m)
    np.testing.assert_allclose(V, 1 - s.alpha_bar, atol=1.01 * s.alpha_bar[-1])
    assert M[0] == pytest.approx(m, rel=1e-12) and V[0] < 1e-25
    _, too_much = law_of_the_chain(s, gaussian(s, m, 0.0), "beta")
    assert too_much[1] > 1.5 * V[1]                                         # and β_t is too large for it


@pytest.mark.parametrize("sigma2", ["beta", "beta_tilde"])
def test_alg2_samples_follow_that_law(sigma2):
    m, v, B, D = 0.5, 0.2, 1500, 4
    M, V = exact_law(S.beta.tolist(), S.sigma2(sigma2).tolist(), m, v)
    for t, x_t in reverse(S, gaussian(S, m, v), (B, D), seed=8, like=None, sigma2=sigma2, clip=False):
        n, x = B * D, x_t.astype(np.float64)
        assert abs(x.mean() - M[t]) < 5 * math.sqrt(V[t] / n), t
        assert abs(((x - M[t]) ** 2).mean() / V[t] - 1) < 5 * math.sqrt(2 / n), t
        assert abs(np.mean((x[1:] - M[t]) * (x[:-1] - M[t]))) < 5 * V[t] / math.sqrt(n), t     # images are independent
        assert abs(np.mean((x[:, 1:] - M[t]) * (x[:, :-1] - M[t]))) < 5 * V[t] / math.sqrt(n), t


# Clipping: the released code's, not the paper's


def test_clip_changes_nothing_where_x0_hat_stays_inside():
    eps_theta = gaussian(S, 0.3, 0.01)
    printed, clipped = (dict(reverse(S, eps_theta, (6, 4), seed=3, clip=clip)) for clip in (False, True))
    for t in range(1, 26):
        assert np.abs(x0_hat(S, printed[t], t, eps_theta(printed[t], t))).max() < 1
    for t in printed:
        np.testing.assert_allclose(clipped[t], printed[t], rtol=1e-9, atol=1e-9)


def test_clip_puts_the_clipped_x0_hat_into_eq07():
    steps = dict(reverse(S, wavy, (2, 3), seed=4, clip=True))
    beta, sigma, active = S.beta.tolist(), np.sqrt(S.beta), 0
    for image in range(2):
        _, z = streams(4, image, 25, 3)
        for t in range(25, 0, -1):
            x_t = steps[t][image].tolist()
            x0 = literal.eq15(beta, lambda x, t: wavy(np.array(x), t).tolist(), x_t, t)
            active += sum(abs(value) > 1 for value in x0)
            mean, _ = literal.eq07(beta, [min(max(value, -1), 1) for value in x0], x_t, t)
            noise = sigma[t] * np.array(z[t]) if t > 1 else 0
            np.testing.assert_allclose(steps[t - 1][image], np.array(mean) + noise, rtol=1e-9, atol=1e-9)
    assert active > 20
    assert np.abs(steps[0]).max() <= 1                                      # at t = 1 the mean is x̂_0 itself


# Reproducibility


def test_image_k_is_the_same_whatever_the_batch():
    shape = (4, 4, 1)
    whole = sample(S, wavy, (7, *shape), seed=6)
    np.testing.assert_array_equal(sample(S, wavy, (3, *shape), seed=6), whole[:3])
    np.testing.assert_array_equal(sample(S, wavy, (2, *shape), seed=6, first=5), whole[5:])
    np.testing.assert_array_equal(np.concatenate([sample(S, wavy, (1, *shape), seed=6, first=k) for k in range(7)]), whole)
    assert len(np.unique(whole.reshape(7, -1), axis=0)) == 7


def test_seeds_differ_and_repeat():
    a, b, c = (sample(S, wavy, (2, 3), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.isclose(a, c).any()
    assert not np.isclose(sample(S, wavy, (1, 3), seed=1, first=1), sample(S, wavy, (1, 3), seed=2, first=0)).any()


def test_sample_is_the_last_of_the_reverse_process():
    *_, (t, x_0, estimate) = reverse_process(S, wavy, image_noise((2, 3), 9), sigma2="beta_tilde")
    np.testing.assert_array_equal(sample(S, wavy, (2, 3), 9, "beta_tilde"), x_0)
    assert t == 0 and estimate is x_0


def test_dtype_and_the_t_that_the_network_sees():
    seen = []

    def eps_theta(x_t, t):
        seen.append(t)
        return 0.1 * x_t

    assert sample(S, eps_theta, (2, 3), 0).dtype == np.float32
    assert seen == list(range(25, 0, -1))
    assert sample(S, eps_theta, (2, 3), 0, like=LIKE).dtype == np.float64


def test_an_unknown_sigma2_is_refused():
    with pytest.raises(ValueError, match="sigma2"):
        sample(S, wavy, (1, 2), 0, sigma2="small")


def test_parallel_computes_the_same():
    with Workers(2, part=2) as workers:
        found = sample(S, parallel(wavy, workers), (5, 2, 2, 1), seed=3)
    np.testing.assert_array_equal(found, sample(S, wavy, (5, 2, 2, 1), seed=3))
