"""fast/winograd.py against the plain convolution, its oracle, and the definition of F(m, 3); the network with fast layers."""

import numpy as np
import pytest
from gradcheck import GradientError, check_gradient, random_parameters, read_only

from minddpm import tree
from minddpm.fast import ops, ops_for, winograd
from minddpm.unet import UNetConfig, init, parameters, unet
from minddpm.unet.layers import conv2d

SHAPES = [(2, 4, 4, 3, 5), (1, 8, 8, 4, 2), (3, 7, 7, 2, 3), (2, 14, 14, 3, 3), (1, 5, 9, 2, 4), (1, 1, 1, 2, 2),
          (5, 6, 10, 1, 1)]


def draw(shape, dtype=np.float64, seed=0):
    B, H, W, C, N = shape
    rng = np.random.default_rng([seed, *shape])
    p = {"weight": rng.standard_normal((3, 3, C, N)) / np.sqrt(9 * C), "bias": rng.standard_normal(N)}
    x, dy = rng.standard_normal((B, H, W, C)), rng.standard_normal((B, H, W, N))
    return tuple(tree.map(lambda a: a.astype(dtype), value) for value in (p, x, dy))


def fast(p, x, m):
    return winograd.winograd(p, x, winograd.transform(p["weight"], m))


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
    (y, back), (y_plain, back_plain) = fast(p, x, m), conv2d(p, x)
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
    assert relative(fast(p, x, 4)[0], conv2d(p, x)[0]) < 1e-12


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
    for y, back in (conv2d(p, x), fast(p, x, m)):
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
    check_gradient(lambda p, x: fast(p, x, m), p, x, name=f"F({m}x{m})")


@pytest.mark.parametrize("matrix", [0, 1, 2], ids=["AT", "G", "BT"])
def test_a_planted_fault_in_one_matrix_is_found(monkeypatch, matrix):
    """0.1 % off in one entry: the output is no longer the plain layer's."""
    p, x, _ = draw((1, 4, 4, 2, 2))
    faulty = [a.copy() for a in winograd.matrices(4)]
    faulty[matrix][1, 1] *= 1.001
    monkeypatch.setattr(winograd, "_twice", lambda m, dtype: [np.kron(a, a) for a in faulty])
    assert relative(fast(p, x, 4)[0], conv2d(p, x)[0]) > 1e-6


def test_a_planted_fault_in_the_gradient_is_found():
    def faulty(p, x):
        y, back = fast(p, x, 4)

        def faulty_back(dy):
            dx, dp = back(dy)
            return dx, dp | {"weight": dp["weight"] * 1.001}

        return y, faulty_back

    p, x, _ = draw((1, 4, 4, 2, 2))
    with pytest.raises(GradientError, match="weight"):
        check_gradient(faulty, p, x, name="faulty")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size, widths", [(16, (16, 32, 32)), (28, (16, 16)), (20, (16, 16, 16))], ids=str)
def test_the_whole_network_is_the_same_with_fast_layers(size, widths, training):
    cfg = UNetConfig(size, 1, widths, blocks=1, attention=(1,), groups=4)
    p = random_parameters(tree.map(lambda d: d.shape, parameters(cfg)), seed=5)
    rng = np.random.default_rng(6)
    x, t = read_only(rng.standard_normal((2, size, size, 1))), [3, 900]
    fast_layers = ops_for(p, size, training)
    (y, back), (y_plain, back_plain) = unet(cfg, p, x, t, ops=fast_layers), unet(cfg, p, x, t)
    assert sum(transformed is not None for transformed in fast_layers._transformed.values()) > len(widths)
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


@pytest.mark.parametrize("width, stored", [(32, ["points", "transpose"]), (128, ["transpose"]), (256, [])])
def test_narrow_convolutions_store_more_for_their_gradient(width, stored):
    w = draw((1, 1, 1, width, width))[0]["weight"]
    for training in False, True:
        m, U, Ut, keep_points = winograd.transform(w, 4, training)
        assert m == 4 and keep_points == (training and "points" in stored)
        assert np.shares_memory(U, Ut) == (not training or not stored)
        np.testing.assert_array_equal(U, winograd.transform(w, 4).U)
        np.testing.assert_array_equal(Ut, U.swapaxes(1, 2))


def test_the_gradient_uses_the_transpose():
    """A transpose that is wrong changes dx alone."""
    p, x, dy = draw((1, 8, 8, 4, 2))
    right = winograd.transform(p["weight"], 4)
    backs = (winograd.winograd(p, x, right._replace(Ut=k * right.Ut))[1] for k in (1, 2))
    (dx, dp), (dx_twice, dp_twice) = (back(dy) for back in backs)
    np.testing.assert_allclose(dx_twice, 2 * dx, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(dp_twice["weight"], dp["weight"])


def test_what_is_multiplied_together_does_not_lie_at_multiples_of_4096_bytes():
    """Where it does, one place in the cache has to hold all of it: the transforms took 1.7 times as long."""
    for T, C in (320, 32), (64, 256), (192, 64):
        V = winograd._empty(36, T, C, np.float32)
        assert V.shape == (36, T, C) and V.strides[0] % 4096 and V[0].flags.c_contiguous


def test_fast_layers_leave_the_parameters_as_they_were():
    p = init(UNetConfig.tiny(), 0)
    before = tree.flatten(tree.map(np.copy, p))
    ops_for(p, 8, training=True)
    assert list(tree.flatten(p)) == list(before) and all(np.array_equal(a, before[name]) for name, a in tree.flatten(p).items())


def test_the_table_leaves_narrow_and_small_convolutions_plain():
    assert ops.tile_size(32, 3, 128) == ops.tile_size(32, 128, 3) == ops.tile_size(4, 256, 256) == 0
    assert ops.tile_size(8, 256, 256) == ops.tile_size(8, 64, 256) == 2
    assert ops.tile_size(16, 32, 32) == ops.tile_size(16, 256, 256) == ops.tile_size(4, 64, 64) == 4
