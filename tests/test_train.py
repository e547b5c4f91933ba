"""train.py: Algorithm 1: its batches, its gradient however the batch is cut, and its step."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from minddpm import data, optim, train, tree
from minddpm.app.settings import Settings
from minddpm.diffusion import q_sample
from minddpm.errors import UserError
from minddpm.fast import Workers
from minddpm.fast.training import gradient_by, update_by
from minddpm.train import TrainingState, gradient, update
from minddpm.unet import UNetConfig, init, unet

DIGITS = data.load("digits")
SETTINGS = Settings(data="digits", preset="tiny", batch=24, lr=1e-3, lr_final=1e-5, warmup=3, steps=12, ema=0.9, T=20, threads=2,
                    dropout=0.3, flips=True, save_every=4, sample_every=0)


def small(channels=1, dropout=0.3):
    """A network of 9 thousand parameters for 8x8 images."""
    return UNetConfig(8, channels, widths=(8, 16), blocks=1, attention=(1,), groups=4, dropout=dropout)


def random_params(cfg, dtype=np.float64, seed=0):
    """Weights without a layer at zero: at the paper's initialisation almost no gradient flows."""
    rng = np.random.default_rng(seed)
    return tree.map(lambda a: (a + rng.normal(0, 0.1, a.shape)).astype(dtype), init(cfg, seed))


def draw_batch(settings, dataset, step):
    """The batch of a step, as train.train draws it: a gradient that keeps it and ends the training."""
    seen = []

    def keep(objective, cfg, s, params, batch, *rest):
        seen.append(batch)
        return 0.0, None

    state = TrainingState(step - 1, None, None, None, None)
    next(train.train(replace(settings, steps=step), None, settings.schedule(), state, dataset, keep, lambda *_: (0.0, 0.0)))
    return seen[0]


def batch_of(settings, step=1, dtype=np.float64):
    batch = draw_batch(settings, DIGITS, step)
    return batch._replace(x0=batch.x0.astype(dtype), eps=batch.eps.astype(dtype))


def close(a, b, tolerance):
    """Every leaf within tolerance of its own largest number; to_k.bias, whose gradient is 0 by theory, of the tree's."""
    a, b = tree.flatten(a), tree.flatten(b)
    assert a.keys() == b.keys()
    largest = {name: np.abs(leaf).max() for name, leaf in b.items()}
    for name in a:
        error = np.abs(a[name] - b[name]).max() / max(largest[name], 1e-3 * max(largest.values()))
        assert error < tolerance, f"{name}: relative difference {error:.1e}"


def equal(a, b):
    tree.map(np.testing.assert_array_equal, a, b)


def copied(state):
    return TrainingState(state.step, *(tree.map(np.copy, part) for part in (state.params, state.m, state.v, state.ema)))


# ---- the batch ----------------------------------------------------------------------------------------------------------


def test_alg1_a_batch_is_a_function_of_seed_and_step():
    batches = {}
    for step in 5, 1, 3, 5, 4, 1:                                                       # in any order, as often as one likes
        batch = draw_batch(SETTINGS, DIGITS, step)
        equal(batches.setdefault(step, list(batch)), list(batch))
        data.sets._epoch.cache_clear()
    other = draw_batch(replace(SETTINGS, seed=1), DIGITS, 5)
    for another in batches[1], batches[4], other:
        for a, b in zip(batches[5], another, strict=True):
            assert not np.array_equal(a, b)
    equal(batches[5], list(draw_batch(replace(SETTINGS, threads=1, steps=99, lr=0.5, dropout=0.0, ema=0.5), DIGITS, 5)))


def test_alg1_batch_shapes_dtypes_and_ranges():
    x0, t, eps, seeds = draw_batch(SETTINGS, DIGITS, 1)
    assert x0.shape == eps.shape == (24, 8, 8, 1) and x0.dtype == eps.dtype == np.float32
    assert t.shape == seeds.shape == (24,) and t.dtype.kind == seeds.dtype.kind == "i"
    assert x0.min() == -1 and x0.max() == 1 and seeds.min() >= 0 and len(set(seeds.tolist())) == 24


@pytest.mark.parametrize("T", [1, 2, 7])
def test_alg1_t_is_uniform_on_1_to_T(T):
    t = np.concatenate([draw_batch(replace(SETTINGS, T=T, batch=1000), DIGITS, step).t for step in range(1, 8)])
    values, counts = np.unique(t, return_counts=True)
    assert values.tolist() == list(range(1, T + 1))
    expected = len(t) / T
    assert ((counts - expected) ** 2 / expected).sum() < T + 5 * np.sqrt(2 * T)         # χ² with T − 1 degrees of freedom


def test_alg1_eps_is_standard_normal():
    eps = draw_batch(replace(SETTINGS, batch=1000), DIGITS, 1).eps
    n = eps.size
    assert abs(eps.mean()) < 5 / np.sqrt(n) and abs(eps.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((eps[:-1] * eps[1:]).mean()) < 5 / np.sqrt(n)                            # and images have noise of their own


def test_alg1_an_epoch_shows_every_image_once():
    n = 100
    few = data.Dataset("few", DIGITS.train[:n], DIGITS.held_out, DIGITS.levels)
    seen = [draw_batch(replace(SETTINGS, batch=20, flips=False), few, step).x0 for step in range(1, 11)]
    for epoch in seen[:5], seen[5:]:
        shown, there = np.concatenate(epoch), data.scale(few.train, few.levels)
        assert sorted(x.tobytes() for x in shown) == sorted(x.tobytes() for x in there)
    assert not np.array_equal(seen[0], seen[5])


def test_flips_mirror_half_of_the_images_and_change_nothing_else():
    settings = replace(SETTINGS, batch=1000)
    plain, flipped = (draw_batch(replace(settings, flips=flips), DIGITS, 2) for flips in (False, True))
    equal(list(plain[1:]), list(flipped[1:]))
    mirrored = 0
    for a, b in zip(plain.x0, flipped.x0, strict=True):
        if not np.array_equal(a, b):
            np.testing.assert_array_equal(a[:, ::-1], b)
            mirrored += 1
    assert 420 < mirrored < 580


# ---- the gradient -------------------------------------------------------------------------------------------------------


def test_alg1_the_loss_is_the_mean_of_eq14_over_the_batch():
    cfg, s, batch = small(dropout=0.0), SETTINGS.schedule(), batch_of(SETTINGS)
    params = random_params(cfg)
    loss, _ = gradient("simple", cfg, s, params, batch)
    squares = []
    for x0, t, eps, _ in zip(*batch, strict=True):
        x_t = np.sqrt(s.alpha_bar[t]) * x0 + np.sqrt(1 - s.alpha_bar[t]) * eps
        eps_theta, _ = unet(cfg, params, x_t[None], int(t))
        squares.append(((eps - eps_theta[0]) ** 2).mean())
    assert loss == pytest.approx(np.mean(squares), rel=1e-12)


def test_alg1_gradient_by_random_projection():
    """⟨∇L, v⟩ against (L(θ + hv) − L(θ − hv)) / 2h, whole batch, dropout on."""
    cfg, s, batch, h = small(), SETTINGS.schedule(), batch_of(SETTINGS), 1e-6
    params, v = random_params(cfg), random_params(cfg, seed=9)
    _, grad = gradient("simple", cfg, s, params, batch)
    plus, minus = (gradient("simple", cfg, s, tree.map(lambda p, v, k=k: p + k * v, params, v), batch)[0] for k in (h, -h))
    by_hand = sum(tree.leaves(tree.map(np.vdot, grad, v)))
    assert by_hand == pytest.approx((plus - minus) / (2 * h), rel=1e-6)


def test_the_gradient_writes_to_no_weight_and_no_batch():
    cfg, batch = small(), batch_of(SETTINGS, dtype=np.float32)
    params = random_params(cfg, np.float32)
    before = [np.copy(a) for a in (*tree.leaves(params), *batch)]
    for a in (*tree.leaves(params), *batch):
        a.setflags(write=False)
    gradient("simple", cfg, SETTINGS.schedule(), params, batch)
    with Workers(2) as workers:
        gradient_by(workers)("simple", cfg, SETTINGS.schedule(), params, batch)
    equal([*tree.leaves(params), *batch], before)


# ---- the step -----------------------------------------------------------------------------------------------------------


def test_an_untrained_network_has_loss_1():
    """ε_θ = 0 at the paper's initialisation, and the mean of ε² is 1."""
    settings = replace(SETTINGS, batch=500)
    loss, _ = gradient("simple", small(), settings.schedule(), init(small(), 0), draw_batch(settings, DIGITS, 1))
    assert loss == pytest.approx(1, abs=0.02)


def literal_step(settings, cfg, s, state, batch):
    """Alg. 1 with Adam as printed in Kingma and Ba, Algorithm 1, leaf by leaf, nothing in place."""
    x_t = q_sample(s, batch.x0, batch.t, batch.eps)
    eps_theta, unet_back = unet(cfg, state.params, x_t, batch.t, batch.seeds)
    _, grad = unet_back(2 / eps_theta.size * (eps_theta - batch.eps))
    norm = np.sqrt(sum((g**2).sum() for g in tree.leaves(grad)))
    grad = tree.map(lambda g: g * min(1, settings.grad_clip / norm), grad)
    i = state.step + 1
    lr = optim.learning_rate(i, settings.lr, settings.warmup, settings.lr_final, settings.steps)
    m = tree.map(lambda m, g: 0.9 * m + 0.1 * g, state.m, grad)
    v = tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, state.v, grad)
    params = tree.map(lambda p, m, v: p - lr * (m / (1 - 0.9**i)) / (np.sqrt(v / (1 - 0.999**i)) + 1e-8), state.params, m, v)
    ema = params if i == 1 else tree.map(lambda a, p: settings.ema * a + (1 - settings.ema) * p, state.ema, params)
    return TrainingState(i, params, m, v, ema), norm, lr


@pytest.mark.parametrize("grad_clip", [0.05, 1e6])
@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
def test_alg1_steps_against_the_literal_ones(grad_clip, fast):
    settings, cfg = replace(SETTINGS, grad_clip=grad_clip), small()
    s = settings.schedule()
    state = TrainingState.begin(random_params(cfg))
    expected = copied(state)
    with Workers(2) as workers:
        line5 = (gradient_by(workers), update_by(workers)) if fast else (gradient, update)
        steps = train.train(settings, cfg, s, state, DIGITS, *line5)
        for metrics in islice(steps, 5):
            batch = draw_batch(settings, DIGITS, metrics.step)
            expected, norm, lr = literal_step(settings, cfg, s, expected, batch)
            assert state.step == metrics.step and metrics.lr == pytest.approx(lr, rel=1e-12)
            assert metrics.grad_norm == pytest.approx(norm, rel=1e-9)                   # the norm before clipping
            for name in "params", "m", "v", "ema":
                close(getattr(state, name), getattr(expected, name), 1e-6)
    assert state.step == 5


@pytest.mark.parametrize("grad_clip, scale", [(1e6, 1.0), (5.0, 1.0), (2.5, 0.5), (0.05, 0.01), (0.0, 0.0)])
@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
def test_gradient_clipping_scales_down_to_the_norm(grad_clip, scale, fast):
    g = {"a": np.array([3.0, 0.0]), "b": [np.array([[-4.0]])]}                          # of norm 5
    state = TrainingState.begin(tree.map(np.ones_like, g))
    with Workers(2) as workers:
        norm, _ = (update_by(workers) if fast else update)(replace(SETTINGS, grad_clip=grad_clip), state, g)
    assert norm == 5
    tree.map(lambda m, g: np.testing.assert_allclose(m, 0.1 * scale * g, rtol=1e-12), state.m, g)
    tree.map(lambda v, g: np.testing.assert_allclose(v, 0.001 * (scale * g) ** 2, rtol=1e-12), state.v, g)


def nan_loss(example, output):
    return np.full(len(output), np.nan), lambda dloss: 0 * output


def infinite_gradient(example, output):
    return np.ones(len(output)), lambda dloss: np.full_like(output, np.inf)


def overflowing_gradient(example, output):
    return np.ones(len(output)), lambda dloss: np.full_like(output, 1e30)                     # finite, but its norm is not


@pytest.mark.parametrize("objective", [nan_loss, infinite_gradient, overflowing_gradient])
def test_a_loss_that_is_not_finite_is_reported_with_its_step(monkeypatch, objective):
    cfg, s = small(), SETTINGS.schedule()
    state = TrainingState.begin(random_params(cfg, np.float32))
    with Workers(2) as workers:
        steps = train.train(SETTINGS, cfg, s, state, DIGITS, gradient_by(workers), update_by(workers))
        for _ in 1, 2, 3:
            next(steps).checked()
        monkeypatch.setitem(train.OBJECTIVES, "simple", objective)
        with pytest.raises(UserError, match=r"^step 4: the loss is (1|nan) and the gradient's norm (0|nan|inf), "
                                            r"at learning rate 0\.0009\d+; expected finite numbers \(.*\)$"):
            next(steps).checked()


def test_weights_that_are_not_finite_are_noticed():
    cfg = small()
    state = TrainingState.begin(random_params(cfg, np.float32))
    state.params["conv_in"]["weight"][0, 0, 0, 0] = np.nan
    with Workers(1) as workers, pytest.raises(UserError, match="^step 1: the loss is nan"):
        next(train.train(SETTINGS, cfg, SETTINGS.schedule(), state, DIGITS, gradient_by(workers), update_by(workers))).checked()


def test_learning_reduces_the_loss_on_digits():
    settings = Settings(data="digits", batch=32, steps=80, lr=4e-3, warmup=10, ema=0.9, T=100).resolved((8, 8, 1))
    cfg, s = small(dropout=0.0), settings.schedule()
    state = TrainingState.begin(init(cfg, 0))
    unseen = draw_batch(replace(settings, batch=179, seed=7), data.Dataset("held out", DIGITS.held_out, DIGITS.train, 17), 1)
    with Workers(2) as workers:
        steps = train.train(settings, cfg, s, state, DIGITS, gradient_by(workers), update_by(workers))
        losses = [metrics.checked().loss for metrics in steps]
        held_out, _ = gradient_by(workers)("simple", cfg, s, state.ema, unseen)
    assert losses[0] == pytest.approx(1, abs=0.1)
    assert np.mean(losses[-20:]) < 0.6
    assert held_out < 0.6                                               # the average of the weights, on images never trained on
