"""sample.py's progressive estimates and shared latents (Fig. 6, 7, 10, 14)."""

import math

import literal
import numpy as np
import oracles
import pytest

from minddpm.diffusion import Schedule
from minddpm.sample import image_noise, progressive, reverse_process, sample, shared_latents

S = Schedule.linear(T=25, beta_1=0.01, beta_T=0.3)
LIKE = np.zeros(0)                      # float64


def wavy(x_t, t):
    """Some ε_θ that is not linear."""
    return np.sin(3 * x_t) + np.reshape(0.01 * t, (-1,) + (1,) * (x_t.ndim - 1)).astype(x_t.dtype)


# Fig. 6, 14: progressive generation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [True, False])
def test_fig06_is_eq15_at_every_x_t_of_algorithm_2(clip):
    x = {t: x_t for t, x_t, _ in reverse_process(S, wavy, image_noise((2, 3), 5, like=LIKE), clip=clip)}
    estimates = list(progressive(S, wavy, (2, 3), seed=5, clip=clip, like=LIKE))
    assert [t for t, _ in estimates] == list(range(25, 0, -1))
    outside = 0
    for t, x0_hat in estimates:
        for image in range(2):
            expected = np.array(literal.eq15(S.beta.tolist(), lambda x, t: wavy(np.array(x), t).tolist(),
                                             x[t][image].tolist(), t))
            outside += (np.abs(expected) > 1).sum()
            np.testing.assert_allclose(x0_hat[image], np.clip(expected, -1, 1) if clip else expected, rtol=1e-9, atol=1e-9)
    assert outside > 20                                                         # the clip has something to do


@pytest.mark.parametrize("predicts", ["eps", "mu", "x0"])
@pytest.mark.parametrize("clip", [True, False])
def test_fig06_the_last_frame_is_the_sample(clip, predicts):
    how = dict(clip=clip, predicts=predicts, sigma2="beta_tilde", like=LIKE)
    *_, (t, x0_hat) = progressive(S, wavy, (2, 3), 5, **how)
    assert t == 1
    np.testing.assert_allclose(x0_hat, sample(S, wavy, (2, 3), 5, **how), rtol=1e-9, atol=1e-12)


def test_fig06_of_one_known_image_is_that_image_from_the_first_step_on():
    x0 = np.linspace(-0.9, 0.9, 6).reshape(1, 6)
    for _, x0_hat in progressive(S, oracles.point(S, x0), (1, 6), 0, like=LIKE):
        np.testing.assert_allclose(x0_hat, x0, atol=1e-9)


def test_fig06_calls_the_network_once_a_step():
    seen = []
    list(progressive(S, lambda x_t, t: seen.append(t) or wavy(x_t, t), (2, 3), 0))
    assert seen == list(range(25, 0, -1))


def test_fig14_image_k_is_the_same_whatever_the_batch():
    whole = [x for _, x in progressive(S, wavy, (5, 2), 3)]
    part = [x for _, x in progressive(S, wavy, (2, 2), 3, first=3)]
    np.testing.assert_array_equal(np.stack(part), np.stack(whole)[:, 3:])


def test_fig10_estimates_spread_from_the_mean_of_the_data_to_the_data():
    """Gaussian data N(m, v): x̂_0 = E[x_0 | x_t] has variance v · ᾱ_t v / (ᾱ_t v + 1 − ᾱ_t) where x_t is as q has it."""
    s, m, v = Schedule.linear(), 0.3, 0.25
    spread = {t: x.std() for t, x in progressive(s, oracles.gaussian(s, m, v), (5, 1000), 0, clip=False, like=LIKE)
              if t in (1000, 700, 400, 100, 1)}
    for t, found in spread.items():
        signal = s.alpha_bar[t] * v
        assert found == pytest.approx(math.sqrt(v * signal / (signal + 1 - s.alpha_bar[t])), rel=0.05, abs=0.005), t
    assert list(spread.values()) == sorted(spread.values())


# Fig. 7: shared latents ---------------------------------------------------------------------------------------------------


def test_fig07_the_draws_share_x_t_exactly_and_nothing_else():
    trajectory, seen = {t: x_t for t, x_t, _ in reverse_process(S, wavy, image_noise((2, 3), 7, like=LIKE))}, []

    def eps_theta(x_t, t):
        seen.append((t, x_t.copy()))
        return wavy(x_t, t)

    found = list(shared_latents(S, eps_theta, (2, 3), 7, (5, 25, 12), 4, like=LIKE))
    assert [t for t, *_ in found] == [25, 12, 5]
    for t, x_t, x0 in found:
        np.testing.assert_array_equal(x_t, trajectory[t])
        starts = [x for at, x in seen if at == t and len(x) == 8]               # four draws of two images, one after another
        assert any((x == np.concatenate([x_t] * 4)).all() for x in starts)
        assert x0.shape == (4, 2, 3)
        assert len(np.unique(x0.reshape(8, 3), axis=0)) == 8
        assert not np.isclose(x0, sample(S, wavy, (2, 3), 7, like=LIKE)).all(axis=2).any()     # nor the trajectory's own end


def test_fig07_draws_follow_p_theta_given_x_t():
    """Gaussian data: x_0 given x_t is normal, its mean linear in x_t and its variance known; the draws are independent."""
    draws, D, t, m, v = 40, 100, 12, 0.5, 0.2
    [(_, x_t, x0)] = shared_latents(S, oracles.gaussian(S, m, v), (3, D), 2, [t], draws, clip=False, like=LIKE)
    A, C, V = 1.0, 0.0, 0.0
    for k in range(t, 0, -1):
        gain = S.beta[k] / (S.alpha_bar[k] * v + 1 - S.alpha_bar[k])
        a = (1 - gain) / math.sqrt(S.alpha[k])
        A, V = a * A, a * a * V + (S.beta[k] if k > 1 else 0)
        C = a * C + math.sqrt(S.alpha_bar[k]) * gain * m / math.sqrt(S.alpha[k])
    z = ((x0 - (A * x_t + C)) / math.sqrt(V)).swapaxes(1, 2).reshape(-1, 3)     # standard normal
    n = draws * D
    assert np.abs(z.mean(0)).max() < 5 / math.sqrt(n)
    assert np.abs((z**2).mean(0) - 1).max() < 5 * math.sqrt(2 / n)
    assert np.abs(np.corrcoef(z.T) - np.eye(3)).max() < 5 / math.sqrt(n)
    assert abs(np.mean(z.reshape(draws, D, 3)[1:] * z.reshape(draws, D, 3)[:-1])) < 5 / math.sqrt(3 * n)


@pytest.mark.parametrize("t", [25, 12])
def test_fig07_the_noise_after_x_t_is_not_the_noise_before_it(t):
    """Over many trajectories what the draws add to x_t has nothing to do with the trajectory's own noise, nor with each other."""
    shape, model = (40, 100), oracles.gaussian(S)
    x_T = next(image_noise(shape, 1, like=LIKE))
    [(_, x_t, x0)] = shared_latents(S, model, shape, 1, [t], 2, clip=False, like=LIKE)
    own = sample(S, model, shape, 1, clip=False, like=LIKE)
    slope = (x0 * x_t).mean() / (x_t**2).mean()
    correlation = np.corrcoef([x.ravel() for x in (x_T, own - slope * x_t, *(x0 - slope * x_t))])
    for draw in 2, 3:
        assert np.abs(np.delete(correlation[draw], draw)).max() < 5 / math.sqrt(x_t.size)


def test_fig07_the_smaller_t_is_the_more_the_draws_have_in_common():
    data_set = np.random.default_rng(0).choice([-0.8, 0.8], (40, 16))
    model = oracles.finite(S, data_set)
    spread = [x0.std(0).mean() for _, _, x0 in shared_latents(S, model, (6, 16), 0, (25, 15, 8, 2, 0), 8, like=LIKE)]
    assert spread == sorted(spread, reverse=True) and spread[0] > 0.5 and spread[-2] < 1e-6 and spread[-1] == 0


def test_fig07_trajectory_k_is_the_same_whatever_the_batch():
    whole = list(shared_latents(S, wavy, (4, 3), 5, (20, 6), 2))
    part = list(shared_latents(S, wavy, (2, 3), 5, (20, 6), 2, first=2))
    for (t, x_t, x0), (t_part, x_t_part, x0_part) in zip(whole, part, strict=True):
        assert t == t_part
        np.testing.assert_array_equal(x_t_part, x_t[2:])
        np.testing.assert_array_equal(x0_part, x0[:, 2:])


def test_fig07_refuses_a_t_that_is_none():
    with pytest.raises(ValueError, match=r"expected 0\.\.25"):
        list(shared_latents(S, wavy, (1, 2), 0, (26, 3), 1))
