"""objective.py and Algorithm 1: the loss against its transcription, its gradient by projection, what one training step draws."""

import random
from types import SimpleNamespace

import literal
import numpy as np
import pytest
from gradcheck import Case, check_gradient, read_only

from minddpm import train
from minddpm.data import Dataset
from minddpm.diffusion import Schedule
from minddpm.objective import l_simple

S = Schedule.linear(T=20, beta_T=0.2)
BETA = S.beta.tolist()


def draw(*shape, seed=0):
    return read_only(np.random.default_rng([seed, *shape]).standard_normal(shape))


EPS = draw(3, 4, 2, 2)
CASES = {
    "l_simple": Case("minddpm.objective", lambda m: lambda eps_theta: m.l_simple(EPS, eps_theta), (draw(3, 4, 2, 2, seed=1),)),
    "l_simple, one number": Case("minddpm.objective", lambda m: lambda eps_theta: m.l_simple(EPS[:1, 0, 0, :1], eps_theta),
                                 (draw(1, 1, seed=1),)),
}


@pytest.mark.parametrize("name", CASES)
def test_eq14_gradient(name):
    case = CASES[name]
    check_gradient(case.f(), *case.args, name=name)


def test_eq14_is_the_squared_error_of_the_noise():
    x0, eps, W = draw(3, 5, seed=2), draw(3, 5, seed=3), draw(5, 5, seed=4)
    t = [1, 7, 20]
    x_t = np.array([literal.x_t_of(BETA, x0[b].tolist(), eps[b].tolist(), t[b]) for b in range(3)])
    loss, _ = l_simple(eps, x_t @ W)
    for b in range(3):
        expected = literal.eq14(BETA, lambda x, t: (np.array(x) @ W).tolist(), x0[b].tolist(), eps[b].tolist(), t[b])
        assert loss[b] == pytest.approx(expected / 5, rel=1e-12)            # per number: the mean over D


def test_eq14_known_answers_and_dtype():
    loss, back = l_simple(np.array([[1.0, 2.0], [0.0, 0.0]], np.float32), np.array([[1.0, 0.0], [0.0, 3.0]], np.float32))
    np.testing.assert_array_equal(loss, [2, 4.5])
    np.testing.assert_array_equal(back(np.array([1, 10], np.float32)), [[0, -2], [0, 30]])
    assert loss.dtype == back(loss).dtype == np.float32


# Algorithm 1


def batches(T=7, B=7000, seed=0, steps=(1,), n=None):
    """The batches that Alg. 1 draws for these training steps, from a data set of n images; nothing is learned from them."""
    pixels = (np.arange(2 * (n or B)) % 251).reshape(-1, 1, 2, 1).astype(np.uint8)
    dataset, drawn = Dataset("pixels", pixels, pixels[:0]), []
    state = train.TrainingState(steps[0] - 1, {}, {}, {}, {})
    settings = SimpleNamespace(batch=B, seed=seed, steps=steps[-1], flips=False, objective="simple", sigma2="beta")

    def gradient(objective, cfg, s, params, batch, sigma2, levels):
        drawn.append(batch)
        return 0.0, {}

    def update(settings, state, gradient):
        state.step += 1
        return 0.0, 0.0

    metrics = train.train(settings, None, Schedule.linear(T), state, dataset, gradient, update)
    assert [m.step for m in metrics] == list(steps)
    return drawn


def test_alg1_t_is_uniform_on_exactly_1_to_T():
    T, B = 7, 7000
    t = np.concatenate([batch.t for batch in batches(T, B, steps=range(1, 11))])
    assert t.shape == (10 * B,) and t.dtype.kind == "i"
    values, counts = np.unique(t, return_counts=True)
    assert values.tolist() == [1, 2, 3, 4, 5, 6, 7]
    chi2 = ((counts - 10 * B / T) ** 2 / (10 * B / T)).sum()
    assert chi2 < 38                                                        # 6 degrees of freedom: p = 1e-6


def test_alg1_t_reaches_both_ends_of_the_papers_1000():
    t = np.concatenate([batch.t for batch in batches(1000, 20_000, steps=(1, 2))])
    assert t.min() == 1 and t.max() == 1000 and len(np.unique(t)) == 1000
    [batch] = batches(T=1, B=9)
    assert (batch.t == 1).all()


def test_alg1_noise_is_standard_normal_and_of_every_number_its_own():
    [batch] = batches(B=5000)
    eps, n = batch.eps.astype(np.float64).ravel(), 10_000
    assert batch.eps.shape == batch.x0.shape == (5000, 1, 2, 1)
    assert abs(eps.mean()) < 5 / n**0.5 and abs((eps**2).mean() - 1) < 5 * (2 / n) ** 0.5
    pairs = batch.eps.reshape(5000, 2).astype(np.float64)
    assert abs((pairs[:, 0] * pairs[:, 1]).mean()) < 5 / 5000**0.5
    x0 = batch.x0.astype(np.float64).ravel()
    assert abs(np.corrcoef(x0, eps)[0, 1]) < 5 / n**0.5
    assert len(np.unique(batch.seeds)) == 5000


def test_alg1_a_step_is_a_function_of_seed_and_number():
    [first], [again] = (batches(B=20, n=50, seed=3, steps=(9,)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    _, after_8 = batches(B=20, n=50, seed=3, steps=(8, 9))
    assert all(np.array_equal(a, b) for a, b in zip(first, after_8, strict=True))
    for [other] in batches(B=20, n=50, seed=3, steps=(10,)), batches(B=20, n=50, seed=4, steps=(9,)):
        assert all(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def toy(p, x, t):
    """A linear model of each number: ε_θ = a x + c t, with its gradient with respect to a and c."""
    t = np.broadcast_to(t, len(x)).reshape(-1, 1, 1, 1)
    eps_theta = p["a"] * x + p["c"] * t

    def back(deps):
        return deps * p["a"], {"a": np.array(np.sum(deps * x)), "c": np.array(np.sum(deps * t))}

    return eps_theta, back


def test_alg1_one_step_is_the_transcribed_one(monkeypatch):
    """The loss and the gradient of a step of train.train against line 5: the same ε must form x_t and be the target."""
    monkeypatch.setattr(train, "unet", lambda cfg, p, x, t, seeds, ops, policy: toy(p, x, t))
    p = {"a": np.array(0.7), "c": np.array(-0.02)}
    B, D, drawn, found = 5, 6, [], {}
    dataset = SimpleNamespace(batch=lambda size, step, seed, flips: draw(size, 2, 3, 1, seed=5), levels=256)
    settings = SimpleNamespace(batch=B, seed=6, steps=1, flips=False, objective="simple", sigma2="beta")

    def gradient(objective, cfg, s, params, batch, *more):
        drawn.append(batch._replace(eps=batch.eps.astype(np.float64)))
        return train.gradient(objective, cfg, s, params, drawn[0], *more)

    def update(settings, state, gradient):
        state.step = 1
        found.update(gradient)
        return 0.0, 0.0

    [metrics] = train.train(settings, None, S, train.TrainingState.begin(p), dataset, gradient, update)
    [(x0, t, eps, _)] = drawn
    assert len(set(t)) > 2

    new = np.zeros(2)
    losses = []
    for b in range(B):
        numbers = iter(eps[b].ravel().tolist())
        theta = literal.alg1(
            BETA, [0.7, -0.02], lambda theta, x, t: [theta[0] * x_i + theta[1] * t for x_i in x],
            q_x0=lambda b=b: x0[b].ravel().tolist(), uniform=lambda low, high, b=b: int(t[b]), normal=lambda n=numbers: next(n),
            learning_rate=1.0)
        new += np.array(theta) / B
        losses.append(literal.eq14(BETA, lambda x, t: [0.7 * x_i - 0.02 * t for x_i in x], x0[b].ravel().tolist(),
                                   eps[b].ravel().tolist(), int(t[b])) / D)
    assert metrics.loss == pytest.approx(np.mean(losses), rel=1e-12)
    expected = (np.array([0.7, -0.02]) - new) / D                           # the mean over D, where the paper has the sum
    np.testing.assert_allclose([found["a"], found["c"]], expected, rtol=1e-7)


def test_alg1_transcription_learns_the_noise_of_a_point():
    """With x_0 = 0 the best a of ε_θ = a x is 1/√(1 − ᾱ_t): the transcription's own steps find it for T = 1."""
    rng = random.Random(1)
    beta, theta = [0.0, 0.36], [0.0]
    for _ in range(400):
        theta = literal.alg1(beta, theta, lambda theta, x, t: [theta[0] * x[0]], q_x0=lambda: [0.0],
                             uniform=rng.randint, normal=lambda: rng.gauss(0, 1), learning_rate=0.2)
    assert theta[0] == pytest.approx(1 / 0.6, rel=1e-3)
