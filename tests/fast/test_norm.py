"""fast/norm.py against the plain layers, its oracle: block by block, far from zero, in float32, and for views."""

import numpy as np
import pytest

from minddpm import tree
from minddpm.fast import norm
from minddpm.unet import layers

SHAPES = [(5, 8, 8, 32, 8), (3, 7, 5, 12, 4), (1, 1, 1, 8, 1), (2, 3, 1, 6, 6), (4, 16, 16, 64, 1)]


def draw(shape, dtype=np.float64, offset=0.0):
    B, H, W, C, groups = shape
    rng = np.random.default_rng(shape)
    p = {"weight": rng.standard_normal(C), "bias": rng.standard_normal(C)}
    x, dy = offset + rng.standard_normal((B, H, W, C)), rng.standard_normal((B, H, W, C))
    return (*(tree.map(lambda a: a.astype(dtype), value) for value in (p, x, dy)), groups)


def both(f, p, x, dy, groups):
    """The output and every gradient, of arrays that cannot be written to."""
    tree.map(lambda a: a.setflags(write=False), [p, x, dy])
    y, back = f(p, x, groups)
    dx, dp = back(dy)
    again, _ = back(dy)
    np.testing.assert_array_equal(dx, again)
    return {"y": y, "dx": dx, **dp}


@pytest.mark.parametrize("block", [1, 700, 2**19], ids=["image by image", "with a remainder", "whole"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_plain_layers_in_float64(monkeypatch, shape, offset, block):
    monkeypatch.setattr(norm, "BLOCK", block)
    args = draw(shape, offset=offset)
    ours, plain = both(norm.norm_swish, *args), both(layers.norm_swish, *args)
    assert ours.keys() == plain.keys()
    for name in plain:
        scale = max(np.abs(plain[name]).max(), np.abs(plain["dx"]).max())
        assert np.abs(ours[name] - plain[name]).max() < (1e-12 if offset == 0 else 1e-10) * scale, name


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[4]], ids=str)
def test_float32_error_within_ten_times_the_plain_layers(shape, offset):
    p, x, dy, groups = draw(shape, np.float32, offset)
    exact = both(layers.norm_swish, *tree.map(np.float64, [p, x, dy]), groups)
    for name, found in both(norm.norm_swish, p, x, dy, groups).items():
        plain = both(layers.norm_swish, p, x, dy, groups)[name]
        ours, theirs = (np.sqrt(np.mean((a - exact[name]) ** 2)) for a in (found, plain))
        print(f"{shape}, mean {offset:g}, {name}: error {ours:.1e}, of the plain layers {theirs:.1e}")
        assert found.dtype == np.float32 and ours < 10 * theirs


@pytest.mark.parametrize("bias", [0, -10, -25])
def test_the_error_in_float32_is_that_of_a_number_as_large_as_what_goes_into_swish(bias):
    """1 + tanh is rounded at 1: far below 0 the error is no longer small beside y, but never large."""
    p, x, dy, groups = draw(SHAPES[4], np.float32)
    p = {"weight": np.ones_like(p["weight"]), "bias": np.full_like(p["bias"], bias)}
    exact = both(layers.norm_swish, *tree.map(np.float64, [p, x, dy]), groups)["y"]
    error = np.abs(both(norm.norm_swish, p, x, dy, groups)["y"] - exact).max()
    assert error < 2.0**-24 * 4 * (abs(bias) + 5)


def test_an_image_that_is_a_view_of_another_layout_is_right():
    """NHWC seen through a transpose: `empty_like` would take over the order of its axes."""
    p, x, dy, groups = draw(SHAPES[0])
    x_view, dy_view = (np.ascontiguousarray(a.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1) for a in (x, dy))
    assert not x_view.flags.c_contiguous
    for name, expected in both(norm.norm_swish, p, x, dy, groups).items():
        np.testing.assert_allclose(both(norm.norm_swish, p, x_view, dy_view, groups)[name], expected, rtol=0, atol=1e-13)


def test_large_and_negative_numbers_are_finite():
    p = {"weight": np.full(2, 200, np.float32), "bias": np.zeros(2, np.float32)}
    x = np.linspace(-1, 1, 32, dtype=np.float32).reshape(1, 4, 4, 2)
    for found in both(norm.norm_swish, p, x, np.ones_like(x), 1).values():
        assert np.isfinite(found).all()
