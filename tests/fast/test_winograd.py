"""layers/winograd.py and the plan table against the plain convolution, their oracle, and against the definition of F(m, 3)."""

import numpy as np
import pytest
from gradcheck import GradientError, check_gradient, random_parameters, read_only

from minddpm import tree
from minddpm.fast import ops as plan
from minddpm.fast import winograd
from minddpm.fast.ops import conv2d, prepare
from minddpm.unet import UNetConfig, init, parameters, unet

SHAPES = [(2, 4, 4, 3, 5), (1, 8, 8, 4, 2), (3, 7, 7, 2, 3), (2, 14, 14, 3, 3), (1, 5, 9, 2, 4), (1, 1, 1, 2, 2),
          (5, 6, 10, 1, 1)]


def draw(shape, dtype=np.float64, seed=0):
    B, H, W, C, N = shape
    rng = np.random.default_rng([seed, *shape])
    p = {"weight": rng.standard_normal((3, 3, C, N)) / np.sqrt(9 * C), "bias": rng.standard_normal(N)}
    x, dy = rng.standard_normal((B, H, W, C)), rng.standard_normal((B, H, W, N))
    return tuple(tree.map(lambda a: a.astype(dtype), value) for value in (p, x, dy))


def fast(p, m):
    return p | {"winograd": winograd.transform(p["weight"], m)}


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("m", [2, 4])
def test_the_matrices_filter(m):
    """Aᵀ [ (G w) ∘ (Bᵀ d) ] is the 3-tap filter for every unit vector w and d."""
    AT, G, BT = winograd.matrices(m)
    for tap in range(3):
        for place in range(m + 2):
            expected = [1 if place == i + tap else 0 for i in range(m)]
            assert AT @ (G[:, tap] * BT[:, place]) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("block", [1, 8192], ids=["image by image", "whole"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_plain_layer_in_float64(monkeypatch, shape, block, m):
    monkeypatch.setattr(winograd, "BLOCK", block)
    monkeypatch.setattr(winograd, "TILES", 0)
    p, x, dy = draw(shape)
    (y, back), (y_plain, back_plain) = winograd.winograd(fast(p, m), x), conv2d(p, x)
    assert relative(y, y_plain) < 1e-12
    (dx, dp), (dx_plain, dp_plain) = back(dy), back_plain(dy)
    assert relative(dx, dx_plain) < 1e-12 and dp.keys() == dp_plain.keys()
    for name in dp:
        assert relative(dp[name], dp_plain[name]) < 1e-12, name


def test_a_remainder_block_is_not_lost(monkeypatch):
    """Five images in blocks of two: the last block is one image."""
    p, x, dy = draw((5, 4, 4, 2, 2))
    monkeypatch.setattr(winograd, "BLOCK", 4)                   # one tile an image, 2 channels
    monkeypatch.setattr(winograd, "TILES", 0)
    assert relative(winograd.winograd(fast(p, 4), x)[0], conv2d(p, x)[0]) < 1e-12


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("shape", [(4, 16, 16, 32, 32), (2, 8, 8, 64, 64), (2, 14, 14, 64, 32)], ids=str)
def test_float32_error_within_ten_times_the_plain_layers(shape, m):
    """Root mean square error against float64, over the result's standard deviation."""
    p, x, dy = draw(shape)
    exact, exact_back = conv2d(p, x)
    exact = (exact, *_gradients(exact_back(dy)))
    single = lambda a: a.astype(np.float32)  # noqa: E731
    p, x, dy = tree.map(single, p), single(x), single(dy)
    errors = []
    for y, back in (conv2d(p, x), winograd.winograd(fast(p, m), x)):
        found = (y, *_gradients(back(dy)))
        assert all(a.dtype == np.float32 for a in found)
        errors.append([np.sqrt(np.mean((a - e) ** 2)) / e.std() for a, e in zip(found, exact, strict=True)])
    plain, ours = map(np.array, errors)
    print(f"F({m}x{m}) {shape}: y, dx, dW  plain {plain}  Winograd {ours}")
    assert (ours < 10 * plain).all()


def _gradients(result):
    dx, dp = result
    return dx, dp["weight"]


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("shape", [(2, 4, 4, 2, 3), (1, 5, 3, 2, 2)], ids=str)
def test_gradient(shape, m):
    p, x, _ = draw(shape)
    check_gradient(lambda p, x: winograd.winograd(fast(p, m), x), p, x, name=f"F({m}x{m})")


@pytest.mark.parametrize("matrix", [0, 1, 2], ids=["AT", "G", "BT"])
def test_a_planted_fault_in_one_matrix_is_found(monkeypatch, matrix):
    """0.1 % off in one entry: the output is no longer the plain layer's."""
    p, x, _ = draw((1, 4, 4, 2, 2))
    faulty = [a.copy() for a in winograd.matrices(4)]
    faulty[matrix][1, 1] *= 1.001
    monkeypatch.setattr(winograd, "_twice", lambda m, dtype: [np.kron(a, a) for a in faulty])
    assert relative(winograd.winograd(fast(p, 4), x)[0], conv2d(p, x)[0]) > 1e-6


def test_a_planted_fault_in_the_gradient_is_found():
    def faulty(p, x):
        y, back = winograd.winograd(fast(p, 4), x)

        def faulty_back(dy):
            dx, dp = back(dy)
            return dx, dp | {"weight": dp["weight"] * 1.001}

        return y, faulty_back

    p, x, _ = draw((1, 4, 4, 2, 2))
    with pytest.raises(GradientError, match="weight"):
        check_gradient(faulty, p, x, name="faulty")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size, widths", [(16, (16, 32, 32)), (28, (16, 16)), (20, (16, 16, 16))], ids=str)
def test_the_whole_network_is_the_same_with_prepared_weights(size, widths, training):
    cfg = UNetConfig(size, 1, widths, blocks=1, attention=(1,), groups=4)
    p = random_parameters(tree.map(lambda d: d.shape, parameters(cfg)), seed=5)
    rng = np.random.default_rng(6)
    x, t = read_only(rng.standard_normal((2, size, size, 1))), [3, 900]
    ready = prepare(p, size, training=training)
    assert sum("winograd" in name for name in tree.flatten(ready)) > len(widths)
    (y, back), (y_plain, back_plain) = unet(cfg, ready, x, t), unet(cfg, p, x, t)
    assert relative(y, y_plain) < 1e-12
    (dx, dp), (dx_plain, dp_plain) = back(y_plain), back_plain(y_plain)
    assert relative(dx, dx_plain) < 1e-11
    found, expected = tree.flatten(dp), tree.flatten(dp_plain)
    assert found.keys() == expected.keys() == tree.flatten(p).keys()
    for name in found:
        if name.endswith("to_k.bias"):              # adds the same to all scores of a row: its gradient is zero but for rounding
            assert np.abs(found[name]).max() < 1e-13
        else:
            assert relative(found[name], expected[name]) < 1e-10, name


@pytest.mark.parametrize("width, more", [
    (32, {"winograd", "winograd_transposed", "keep_points"}), (128, {"winograd", "winograd_transposed"}), (256, {"winograd"})])
def test_narrow_convolutions_are_prepared_for_their_gradient(width, more):
    cfg = UNetConfig(16, 1, (width,), blocks=1, attention=(), groups=4)
    p = tree.map(lambda d: np.ones(d.shape, np.float32), parameters(cfg))
    for training, expected in (True, more), (False, {"winograd"}):
        conv = prepare(p, 16, training=training)["mid_block"]["resnets"][0]["conv1"]
        assert conv.keys() - {"weight", "bias"} == expected
    if "winograd_transposed" in more:
        conv["weight"] = draw((1, 1, 1, width, width))[0]["weight"]
        U, Ut = winograd.transform_both(conv["weight"], 4)
        np.testing.assert_array_equal(U, winograd.transform(conv["weight"], 4))
        np.testing.assert_array_equal(Ut, U.swapaxes(1, 2))


def test_the_transpose_is_what_the_gradient_uses():
    """A transpose that is wrong is seen in dx alone."""
    p, x, dy = draw((1, 8, 8, 4, 2))
    U, Ut = winograd.transform_both(p["weight"], 4)
    backs = (winograd.winograd(p | {"winograd": U, "winograd_transposed": k * Ut}, x)[1] for k in (1, 2))
    (dx, dp), (dx_twice, dp_twice) = (back(dy) for back in backs)
    np.testing.assert_allclose(dx_twice, 2 * dx, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(dp_twice["weight"], dp["weight"])


def test_what_is_multiplied_together_does_not_lie_at_multiples_of_4096_bytes():
    """Where it does, one place in the cache has to hold all of it: the transforms took 1.7 times as long."""
    for T, C in (320, 32), (64, 256), (192, 64):
        V = winograd._empty(36, T, C, np.float32)
        assert V.shape == (36, T, C) and V.strides[0] % 4096 and V[0].flags.c_contiguous


def test_preparing_leaves_the_parameters_as_they_were():
    cfg = UNetConfig.tiny()
    p = init(cfg, 0)
    names = list(tree.flatten(p))
    prepare(p, cfg.image_size)
    assert list(tree.flatten(p)) == names


def test_the_plan_leaves_thin_and_small_convolutions_plain():
    assert plan.tile_size(32, 3, 128) == plan.tile_size(32, 128, 3) == plan.tile_size(4, 256, 256) == 0
    assert plan.tile_size(8, 256, 256) == plan.tile_size(8, 64, 256) == 2
    assert plan.tile_size(16, 32, 32) == plan.tile_size(16, 256, 256) == plan.tile_size(4, 64, 64) == 4
