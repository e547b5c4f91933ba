"""unet/layers: each forward pass against its scalar-loop twin, each gradient by projection."""

import math

import numpy as np
import pytest
import twins
from gradcheck import Case, check_gradient, random_parameters, read_only

from minddpm.unet import layers

SEEDS = [3, 2**64 - 1]                  # dropout: one for each of two images


def draw(*shape, seed=0, offset=0.0, scale=1.0):
    return read_only(offset + scale * np.random.default_rng([seed, *shape]).standard_normal(shape))


def dense(c, n):
    return random_parameters({"weight": (c, n), "bias": (n,)}, seed=1)


def kernel(k, c, n):
    return random_parameters({"weight": (k, k, c, n), "bias": (n,)}, seed=2)


def norm(c):
    return random_parameters({"weight": (c,), "bias": (c,)}, seed=3)


LINEAR, CONV = "minddpm.unet.layers.linear", "minddpm.unet.layers.conv"
NORM, SWISH = "minddpm.unet.layers.norm", "minddpm.unet.layers.swish"
ATTENTION, UPSAMPLE, DROPOUT = "minddpm.unet.layers.attention", "minddpm.unet.layers.upsample", "minddpm.unet.layers.dropout"

CASES = {
    "linear":                Case(LINEAR, lambda m: lambda p, x: m.linear(p, x), (dense(3, 5), draw(4, 3))),
    "linear one row":        Case(LINEAR, lambda m: lambda p, x: m.linear(p, x), (dense(3, 1), draw(1, 3))),
    "linear on pixels":      Case(LINEAR, lambda m: lambda p, x: m.linear(p, x), (dense(4, 2), draw(2, 3, 5, 4))),
    "conv2d_plus":           Case(CONV, lambda m: lambda p, x, v: m.conv2d_plus(p, x, v),
                                  (kernel(3, 2, 3), draw(2, 4, 3, 2), draw(2, 3))),
    **{f"conv2d k={k} stride={stride} {B}x{H}x{W}":
       Case(CONV, lambda m, stride=stride: lambda p, x: m.conv2d(p, x, stride), (kernel(k, 3, 2), draw(B, H, W, 3)))
       for k in (1, 3, 5) for stride, B, H, W in ((1, 2, 4, 4), (1, 1, 5, 3), (1, 1, 1, 1), (2, 2, 4, 6), (2, 1, 2, 2))},
    **{f"conv2d k={k} stride=2 odd size":
       Case(CONV, lambda m: lambda p, x: m.conv2d(p, x, 2), (kernel(k, 2, 2), draw(1, 5, 7, 2))) for k in (1, 3)},
    **{f"group_norm groups={groups}":
       Case(NORM, lambda m, groups=groups: lambda p, x: m.group_norm(p, x, groups), (norm(6), draw(2, 3, 4, 6)))
       for groups in (1, 2, 3, 6)},
    "group_norm one image":  Case(NORM, lambda m: lambda p, x: m.group_norm(p, x, 2), (norm(4), draw(1, 3, 1, 4))),
    "group_norm offset 300": Case(NORM, lambda m: lambda p, x: m.group_norm(p, x, 2), (norm(4), draw(2, 3, 3, 4, offset=300))),
    "group_norm small x":    Case(NORM, lambda m: lambda p, x: m.group_norm(p, x, 2, eps=1e-2),
                                  (norm(4), draw(2, 3, 3, 4, scale=0.1))),
    "swish":                 Case(SWISH, lambda m: lambda x: m.swish(x), (draw(3, 4, scale=3),)),
    "norm_swish":            Case(NORM, lambda m: lambda p, x: m.norm_swish(p, x, 2), (norm(4), draw(2, 3, 3, 4))),
    "attention":             Case(ATTENTION, lambda m: lambda q, k, v: m.attention(q, k, v),
                                  (draw(2, 5, 4), draw(2, 5, 4, seed=1), draw(2, 5, 4, seed=2))),
    "attention one image":   Case(ATTENTION, lambda m: lambda q, k, v: m.attention(q, k, v),
                                  (draw(1, 3, 1), draw(1, 3, 1, seed=1), draw(1, 3, 1, seed=2))),
    "attention peaked":      Case(ATTENTION, lambda m: lambda q, k, v: m.attention(q, k, v),
                                  (draw(1, 4, 3, scale=3), draw(1, 4, 3, seed=1, scale=3), draw(1, 4, 3, seed=2))),
    "upsample":              Case(UPSAMPLE, lambda m: lambda x: m.upsample(x), (draw(2, 3, 2, 3),)),
    "dropout":               Case(DROPOUT, lambda m: lambda x: m.dropout(x, 0.3, SEEDS, 5), (draw(2, 3, 3, 2),)),
    "dropout rate 0":        Case(DROPOUT, lambda m: lambda x: m.dropout(x, 0.0, SEEDS, 5), (draw(2, 3, 3, 2),)),
}


@pytest.mark.parametrize("name", CASES)
def test_gradient(name):
    case = CASES[name]
    for seed in range(3):
        check_gradient(case.f(), *case.args, name=name, seed=seed, zero=case.zero)


@pytest.mark.parametrize("name", CASES)
def test_forward_equals_its_scalar_loop(name):
    case = CASES[name]
    y, _ = case.f()(*case.args)
    np.testing.assert_allclose(y, case.f(twins)(*case.args), rtol=1e-10, atol=1e-10)


def test_every_layer_has_a_case_and_a_twin():
    called = set()

    class Recorder:
        def __getattr__(self, name):
            called.add(name)
            return getattr(layers, name)

    for case in CASES.values():
        case.f(Recorder())(*case.args)
    assert called == set(layers.__all__) - {"timestep_embedding"}           # t is data: it has no gradient
    assert all(hasattr(twins, name) for name in layers.__all__)


@pytest.mark.parametrize("name", CASES)
def test_float32_stays_float32(name):
    case = CASES[name]
    args = [{k: v.astype(np.float32) for k, v in arg.items()} if isinstance(arg, dict) else arg.astype(np.float32)
            for arg in case.args]
    y, back = case.f()(*args)
    gradients = back(y)
    found = [g for gradient in (gradients if isinstance(gradients, tuple) else (gradients,))
             for g in (gradient.values() if isinstance(gradient, dict) else [gradient])]
    assert y.dtype == np.float32 and all(g.dtype == np.float32 for g in found)


def test_conv2d_stride_2_pads_at_the_bottom_and_right_only():
    weight = np.zeros((3, 3, 1, 1))
    weight[0, 0] = 1                                    # the top left corner of the kernel: it must meet pixel (2h, 2w) itself
    x = np.arange(16.0).reshape(1, 4, 4, 1)
    y, _ = layers.conv2d({"weight": weight, "bias": np.zeros(1)}, x, 2)
    np.testing.assert_array_equal(y[0, :, :, 0], [[0, 2], [8, 10]])


def test_group_norm_normalises_and_keeps_its_precision_far_from_zero():
    x = draw(2, 4, 4, 6, offset=1000)
    y, _ = layers.group_norm({"weight": np.ones(6), "bias": np.zeros(6)}, x, 3)
    by_group = y.reshape(2, 16, 3, 2).transpose(0, 2, 1, 3).reshape(6, 32)
    np.testing.assert_allclose(by_group.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(by_group.var(axis=1), 1, atol=1e-5)
    y32, _ = layers.group_norm({"weight": np.ones(6, np.float32), "bias": np.zeros(6, np.float32)}, x.astype(np.float32), 3)
    np.testing.assert_allclose(y32, y, atol=1e-3)


def test_swish_is_finite_at_the_ends_of_float32():
    x = np.array([-3e38, -1000, -90, 0, 90, 3e38], np.float32)
    y, back = layers.swish(x)
    np.testing.assert_allclose(y, [0, 0, 0, 0, 90, 3e38], atol=1e-30)
    np.testing.assert_allclose(back(np.ones_like(x)), [0, 0, 0, 0.5, 1, 1], atol=1e-30)


def test_attention_does_not_overflow_and_its_weights_sum_to_one():
    q, k = draw(1, 4, 3, scale=1e3), draw(1, 4, 3, seed=1, scale=1e3)
    o, back = layers.attention(q, k, np.ones((1, 4, 3)))
    np.testing.assert_allclose(o, 1, rtol=1e-12)
    assert all(np.isfinite(g).all() for g in back(draw(1, 4, 3, seed=2)))


def test_upsampling_copies_pixels():
    y, _ = layers.upsample(np.array([[1.0, 2.0]]).reshape(1, 1, 2, 1))
    np.testing.assert_array_equal(y[0, :, :, 0], [[1, 1, 2, 2], [1, 1, 2, 2]])


# timestep embedding


@pytest.mark.parametrize("dim", [4, 6, 32, 128])
def test_timestep_embedding_equals_its_scalar_loop(dim):
    t = np.array([1, 2, 500, 1000])
    found = layers.timestep_embedding(t, dim, like=np.zeros(0))
    np.testing.assert_allclose(found, twins.timestep_embedding(t, dim), rtol=1e-10, atol=1e-12)
    assert layers.timestep_embedding(t, dim, like=np.zeros(0, np.float32)).dtype == np.float32


def test_timestep_embedding_counts_from_zero():
    found = layers.timestep_embedding(np.array([1, 2]), 8, like=np.zeros(0))
    np.testing.assert_array_equal(found[0], [0, 0, 0, 0, 1, 1, 1, 1])       # the paper's t = 1 is the released code's 0
    np.testing.assert_allclose(found[1, [0, 3, 4, 7]], [math.sin(1), math.sin(1e-4), math.cos(1), math.cos(1e-4)], rtol=1e-12)


# dropout


def ones(*shape):
    return np.ones(shape, np.float32)


def test_dropout_draws_the_same_mask_for_the_same_seed_and_layer():
    x = ones(2, 8, 8, 3)
    first, _ = layers.dropout(x, 0.5, SEEDS, 7)
    again, _ = layers.dropout(x, 0.5, np.array(SEEDS, np.uint64), 7)
    np.testing.assert_array_equal(first, again)
    other_layer, _ = layers.dropout(x, 0.5, SEEDS, 8)
    other_seed, _ = layers.dropout(x, 0.5, [4, SEEDS[1]], 7)
    assert (first != other_layer).mean() > 0.4
    assert (first[0] != other_seed[0]).mean() > 0.4 and (first[1] == other_seed[1]).all()
    assert (first[0] != first[1]).mean() > 0.4


def test_dropout_masks_do_not_depend_on_the_rest_of_the_batch():
    whole, _ = layers.dropout(ones(5, 6, 6, 2), 0.3, [10, 11, 12, 13, 14], 2)
    part, _ = layers.dropout(ones(2, 6, 6, 2), 0.3, [13, 11], 2)
    np.testing.assert_array_equal(part, whole[[3, 1]])


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_dropout_rate_and_mean(rate):
    n = 200_000
    y, back = layers.dropout(ones(2, n // 2), rate, SEEDS, 0)
    dropped = (y == 0).sum()
    assert abs(dropped - rate * n) < 5 * math.sqrt(n * rate * (1 - rate)) + n / 2**16
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)
    assert abs(y.mean() - 1) < 5 * math.sqrt(rate / (1 - rate) / n) + 1 / (1 - rate) / 2**16
    np.testing.assert_array_equal(back(ones(2, n // 2)), y)                 # the gradient passes where the value passed
    neighbours = (y[:, 1:] == 0) & (y[:, :-1] == 0)                         # each number for itself
    assert abs(neighbours.mean() - rate**2) < 5 * math.sqrt(3 * rate**2 / n)
