"""optim.py: Adam, warm-up, clipping and the average of the weights, against scalar loops."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from minddpm import optim, train, tree
from minddpm.diffusion import Schedule
from minddpm.unet import UNetConfig, parameters


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def a_tree(seed=0):
    return {"a": draw(3, 2, seed=seed), "b": [draw(4, seed=seed), {"c": draw(1, seed=seed)}]}


def scalar_adam(theta, gradients, lr, beta1, beta2, eps):
    """Kingma and Ba, Algorithm 1, for one number."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        theta = theta - lr * m_hat / (math.sqrt(v_hat) + eps)
    return theta, m, v


@pytest.mark.parametrize("constants", [{}, dict(beta1=0.5, beta2=0.9, eps=0.1)])
def test_appB_adam_is_the_scalar_loop(constants):
    params, gradients = a_tree(), [a_tree(seed) for seed in range(1, 9)]
    begun = tree.map(np.copy, params)
    m, v = tree.zeros_like(params), tree.zeros_like(params)
    for step, gradient in enumerate(gradients, start=1):
        optim.adam(params, m, v, gradient, step, lr=0.01, **constants)
    full = dict(beta1=0.9, beta2=0.999, eps=1e-8) | constants
    flat = [tree.flatten(gradient) for gradient in gradients]
    for name, start in tree.flatten(begun).items():
        for place in np.ndindex(*start.shape):
            expected = scalar_adam(start[place], [gradient[name][place] for gradient in flat], 0.01, **full)
            found = [tree.flatten(part)[name][place] for part in (params, m, v)]
            assert found == pytest.approx(expected, rel=1e-12)


def test_appB_adams_first_step_is_the_learning_rate_against_the_sign():
    params = {"w": np.zeros(4)}
    gradient = {"w": np.array([1e3, -1e-3, 5.0, -2e6])}
    optim.adam(params, tree.zeros_like(params), tree.zeros_like(params), gradient, 1, lr=0.02)
    np.testing.assert_allclose(params["w"], [-0.02, 0.02, -0.02, 0.02], rtol=1e-4)


def test_appB_adam_works_in_place_on_its_own_arrays_alone():
    params, gradient = {"w": np.ones(3, np.float32)}, {"w": np.array([1, 0, -1], np.float32)}
    m, v = tree.zeros_like(params), tree.zeros_like(params)
    w = params["w"]
    gradient["w"].setflags(write=False)
    optim.adam(params, m, v, gradient, 1, lr=0.5)
    assert params["w"] is w and w.dtype == m["w"].dtype == v["w"].dtype == np.float32
    assert w[1] == 1                                                        # no gradient, no step: 0 / (0 + eps)
    np.testing.assert_allclose(w, [0.5, 1, 1.5], rtol=1e-6)


def test_appB_adam_finds_the_minimum_of_a_bowl():
    params = {"w": np.array([3.0, -2.0])}
    m, v = tree.zeros_like(params), tree.zeros_like(params)
    for step in range(1, 2001):
        optim.adam(params, m, v, {"w": np.array([1.0, 30.0]) * (params["w"] - 1)}, step, lr=0.02)
    np.testing.assert_allclose(params["w"], 1, atol=1e-3)


# Learning rate


def test_warm_up_is_linear_and_then_constant():
    rates = [optim.learning_rate(step, peak=2e-4, warmup=5000) for step in (1, 2500, 5000, 5001, 10**6)]
    assert rates == pytest.approx([2e-4 / 5000, 1e-4, 2e-4, 2e-4, 2e-4], rel=1e-12)
    assert optim.learning_rate(1, peak=3e-4) == 3e-4


def test_the_decay_is_half_a_cosine_from_the_end_of_warm_up():
    def rate(step):
        return optim.learning_rate(step, peak=1.0, warmup=100, final=0.2, steps=500)

    assert [rate(step) for step in (50, 100, 300, 500, 900)] == pytest.approx([0.5, 1.0, 0.6, 0.2, 0.2], rel=1e-12)
    for step in range(101, 500):
        assert rate(step) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * (step - 100) / 400)) / 2, rel=1e-12)
        assert rate(step) < rate(step - 1)
    assert optim.learning_rate(7, peak=1.0, warmup=7, final=0.1, steps=7) == 1.0      # warm-up only: no division by zero
    assert optim.learning_rate(8, peak=1.0, warmup=7, final=0.1, steps=7) == pytest.approx(0.1)


# Clipping


def test_the_global_norm_is_over_all_leaves():
    assert optim.global_norm({"a": np.array([3.0]), "b": [np.array([[4.0, 0], [0, 12]])]}) == pytest.approx(13)
    gradient = a_tree()
    assert optim.global_norm(gradient) == pytest.approx(math.sqrt(sum(g**2 for leaf in tree.leaves(gradient) for g in leaf.flat)))
    large = {"w": np.full(10**6, 0.1, np.float32)}
    assert optim.global_norm(large) == pytest.approx(100, rel=1e-3)


CFG = UNetConfig(4, 1, widths=(4,), blocks=1, attention=(), groups=2)


def one_step(grad_clip):
    """The state after one real step, and the gradient's norm."""
    rng = np.random.default_rng(0)
    params = tree.map(lambda d: 0.3 * rng.standard_normal(d.shape) + 1, parameters(CFG))
    state = train.TrainingState.begin(params)
    settings = SimpleNamespace(lr=0.01, lr_final=None, warmup=0, steps=9, grad_clip=grad_clip, ema=0.9)
    batch = train.Batch(draw(3, 4, 4, 1), np.array([1, 5, 9]), draw(3, 4, 4, 1, seed=1), np.arange(3))
    _, gradient = train.gradient("simple", CFG, Schedule.linear(T=9), params, batch)
    norm, _ = train.update(settings, state, gradient)
    return state, norm


def test_clipping_scales_a_large_gradient_to_the_norm_and_leaves_a_small_one():
    free, norm = one_step(grad_clip=1e9)
    assert optim.global_norm(free.m) == pytest.approx(0.1 * norm, rel=1e-9)                     # m = (1 − β₁) g
    for times in 1.5, 7:
        clipped, clipped_norm = one_step(grad_clip=norm / times)
        assert clipped_norm == norm                                         # what is reported is the norm before clipping
        assert optim.global_norm(clipped.m) == pytest.approx(0.1 * norm / times, rel=1e-9)
        for a, b in zip(tree.leaves(free.m), tree.leaves(clipped.m), strict=True):
            np.testing.assert_allclose(b, a / times, rtol=1e-9)             # the direction stays
    at_the_edge, _ = one_step(grad_clip=norm)
    assert all(map(np.array_equal, tree.leaves(at_the_edge.m), tree.leaves(free.m)))


# Moving average


def test_the_average_copies_on_the_first_step_and_then_follows():
    params = [a_tree(seed) for seed in range(5)]
    average = tree.map(lambda a: np.full_like(a, 1e3), params[0])           # whatever was there leaves no trace
    optim.ema(average, params[0], 1, decay=0.9)
    for found, expected in zip(tree.leaves(average), tree.leaves(params[0]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        assert found is not expected
    for step in range(2, 6):
        optim.ema(average, params[step - 1], step, decay=0.9)
    for name, found in tree.flatten(average).items():
        for place in np.ndindex(*found.shape):
            a = tree.flatten(params[0])[name][place]
            for k in range(1, 5):
                a = 0.9 * a + (1 - 0.9) * tree.flatten(params[k])[name][place]
            assert found[place] == pytest.approx(a, rel=1e-12)


def test_the_average_copies_bit_for_bit_from_zeros():
    params = tree.map(np.float32, a_tree())
    average = tree.zeros_like(params)
    optim.ema(average, params, 1, decay=0.9999)
    assert all(map(np.array_equal, tree.leaves(average), tree.leaves(params)))
    assert all(leaf.dtype == np.float32 for leaf in tree.leaves(average))
