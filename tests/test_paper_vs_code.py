"""Where the paper and its released code differ: both ways, and how far apart they are (differences.py has the table)."""

import math
from types import SimpleNamespace

import numpy as np
import oracles
import pytest

from minddpm import optim, tree
from minddpm.diffusion import Schedule, q_posterior
from minddpm.likelihood import vlb
from minddpm.reverse import p_theta
from minddpm.sample import sample
from minddpm.train import Batch, TrainingState, gradient, update
from minddpm.unet import UNetConfig, init, unet

S = Schedule.linear(25, 0.01, 0.3)
WIDE = oracles.gaussian(S, 0.0, 9.0)                # the denoiser of data far wider than [−1, 1]


def test_alg2_clipping_changes_the_samples_and_the_bound():
    clipped, printed = (sample(S, WIDE, (50, 6), seed=1, clip=clip) for clip in (True, False))
    assert np.abs(clipped).max() == 1 and np.abs(printed).max() > 3
    x0 = np.random.default_rng(0).choice([-1.0, 1.0], (20, 6))
    bits = [vlb(S, WIDE, x0, np.random.default_rng(2), clip=clip).total.mean() for clip in (True, False)]
    assert bits[0] < bits[1] - 0.1                  # data are in [−1, 1], and clipping uses that


def test_table2_clipping_under_mu_prediction():
    rng = np.random.default_rng(0)
    x_t, output, t = rng.normal(0, 2, (4, 5)), rng.normal(0, 2, (4, 5)), np.array([1, 2, 12, 25])
    free, clipped = (p_theta(S, x_t, t, output, clip=clip, predicts="mu") for clip in (False, True))
    np.testing.assert_array_equal(free.mean, output)                                            # the released code's mean, always
    np.testing.assert_allclose(clipped.mean, q_posterior(S, np.clip(free.x0, -1, 1), x_t, t)[0])
    np.testing.assert_array_equal(clipped.x0, np.clip(free.x0, -1, 1))                          # the same in both
    assert np.abs(clipped.mean - output).max() > 1


def test_appb_ema_that_begins_with_a_copy_forgets_the_initial_weights():
    """Begun at θ_0 instead, the average differs by 0.9999ⁿ (θ_0 − θ_1) after n steps: 0.6 % of it after 50,000."""
    thetas = np.random.default_rng(0).normal(size=(41, 3))
    copied, begun = {"w": np.full(3, 1e9)}, {"w": thetas[0].copy()}
    for step, theta in enumerate(thetas[1:], 1):
        optim.ema(copied, {"w": theta}, step, 0.9)
        optim.ema(begun, {"w": theta}, step + 1, 0.9)
        np.testing.assert_allclose(begun["w"] - copied["w"], 0.9**step * (thetas[0] - thetas[1]), rtol=1e-6, atol=1e-12)


def clipped(g, norm):
    return tree.map(lambda a: a * min(1, norm / optim.global_norm(g)), g)


def test_appb_clipping_by_shard_is_not_clipping_of_the_sum():
    """Two shards, each clipped to norm 1/2 before they are added, against the batch's gradient clipped to norm 1."""
    cfg, rng = UNetConfig(8, 1, widths=(8, 16), blocks=1, attention=(1,), groups=4), np.random.default_rng(0)
    params = tree.map(lambda a: 3 * (a + rng.normal(0, 0.1, a.shape)), init(cfg, 0))
    x0, eps = rng.uniform(-1, 1, (4, 8, 8, 1)), rng.standard_normal((4, 8, 8, 1))
    eps = eps * np.array([10, 10, 1, 1]).reshape(4, 1, 1, 1)                                    # one shard is harder
    batch = Batch(x0, np.array([3, 20, 9, 14]), eps, np.arange(4))
    whole, *shards = (gradient("simple", cfg, S, params, Batch(*(a[images] for a in batch)))[1]
                      for images in (slice(0, 4), slice(0, 2), slice(2, 4)))
    state = TrainingState.begin(tree.map(np.copy, params))
    update(SimpleNamespace(lr=1e-3, lr_final=None, warmup=0, steps=1, grad_clip=1.0, ema=0.9), state, whole)
    mean = tree.map(lambda a, b: (a + b) / 2, *shards)
    for found, expected in zip(tree.leaves(whole), tree.leaves(mean), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * optim.global_norm(mean))
    assert min(map(optim.global_norm, shards)) > 1                                              # both clips are active
    ours, theirs = clipped(whole, 1), tree.map(np.add, *(clipped(tree.map(lambda a: a / 2, g), 0.5) for g in shards))
    assert optim.global_norm(tree.map(lambda m, g: m - 0.1 * g, state.m, ours)) < 1e-6          # what update did
    assert optim.global_norm(tree.map(np.subtract, ours, theirs)) > 0.1
    assert optim.global_norm(theirs) < 1                                          # directions differ: it is shorter


def test_appb_weights_of_1e_10_let_every_gradient_through():
    """With weights of 0 in their place only conv_out would learn from the first step."""
    cfg, rng = UNetConfig(8, 1, widths=(8, 16), blocks=1, attention=(1,), groups=4), np.random.default_rng(0)
    released = tree.map(np.float64, init(cfg, 0))
    tiny = {name for name, a in tree.flatten(released).items() if 0 < np.abs(a).max() < 1e-4}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in tiny} == {"conv2", "0", "conv_out"}          # 0: of to_out.0
    zeros = tree.unflatten({name: a * (name not in tiny) for name, a in tree.flatten(released).items()})

    def learning(params):
        _, back = unet(cfg, params, rng.standard_normal((2, 8, 8, 1)), np.array([3, 700]))
        return {name for name, g in tree.flatten(back(rng.standard_normal((2, 8, 8, 1)))[1]).items() if np.abs(g).max() > 1e-30}

    names = set(tree.flatten(released))
    assert names - learning(released) <= {name for name in names if name.endswith("to_k.bias")}             # 0 by theory
    assert learning(zeros) == {"conv_out.weight", "conv_out.bias"}


def test_appb_adams_epsilon_is_tensorflows_after_rescaling():
    """TensorFlow 1: θ ← θ − lr √(1 − β₂ⁿ)/(1 − β₁ⁿ) m / (√v + ε).  The same as ours with ε / √(1 − β₂ⁿ), and not with ε."""
    rng, eps = np.random.default_rng(0), 0.3
    theirs, m, v = 0.0, 0.0, 0.0
    ours, plain = ([{"w": np.zeros(1)} for _ in range(3)] for _ in range(2))
    for n in range(1, 30):
        g = float(rng.normal())
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        theirs -= 0.01 * math.sqrt(1 - 0.999**n) / (1 - 0.9**n) * m / (math.sqrt(v) + eps)
        optim.adam(*ours, {"w": np.array([g])}, n, 0.01, eps=eps / (1 - 0.999**n) ** 0.5)
        optim.adam(*plain, {"w": np.array([g])}, n, 0.01, eps=eps)
        assert ours[0]["w"].item() == pytest.approx(theirs, rel=1e-9)
    assert abs(plain[0]["w"].item() - theirs) > 0.1 * abs(theirs)
