"""layers/products.py and layers/thin.py: products in pieces against NumPy's whole ones, the helper, and what the plan chooses."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from minddpm.fast import helper
from minddpm.fast import matmul as products
from minddpm.fast import ops as plan
from minddpm.fast.ops import linear as planned_linear
from minddpm.unet.layers import conv
from minddpm.unet.layers.linear import linear

ROWS = [1, 63, 64, 65, 128, 200, 257]


def draw(*shape):
    return np.random.default_rng(shape).standard_normal(shape)


@pytest.fixture
def short(monkeypatch):
    """Pieces of 64 rows for factors of 3 and 2."""
    monkeypatch.setattr(products, "SMALL", 64 * 6)


@pytest.mark.parametrize("M", ROWS)
@pytest.mark.usefixtures("short")
def test_products_in_pieces_are_the_products(M):
    a, b, w, wide, matrix = draw(M, 3), draw(M, 2), draw(3, 2), draw(3, M), draw(2, 3)
    np.testing.assert_allclose(products.rows_times(a, w), a @ w, rtol=0, atol=1e-14 * np.sqrt(M))
    np.testing.assert_allclose(products.rows_times(b, w.T), b @ w.T, rtol=0, atol=1e-14 * np.sqrt(M))
    np.testing.assert_allclose(products.transposed_times(a, b), a.T @ b, rtol=0, atol=1e-14 * np.sqrt(M))
    gaps = np.full((3, M + 5), np.nan)
    gaps[:, :M] = wide
    out = np.full((2, M + 3), np.nan)
    products.times_columns(matrix, gaps[:, :M], out[:, :M])
    np.testing.assert_allclose(out[:, :M], matrix @ wide, rtol=0, atol=1e-14)
    assert np.isnan(out[:, M:]).all()


@pytest.mark.usefixtures("short")
def test_pieces_are_as_long_as_the_limit_allows_and_slivers_are_not_cut():
    assert products._length(200, 6) == (64, 192)
    assert products._length(64, 6) == products._length(200, 7) == (0, 0)
    assert products._length(200, 1) == (0, 0)                   # 384 rows would be one piece


@pytest.mark.usefixtures("short")
def test_the_rows_of_a_part_of_a_wider_array_are_right():
    both = draw(200, 5)
    np.testing.assert_allclose(products.rows_times(both[:, 1:4], draw(3, 2)), both[:, 1:4] @ draw(3, 2), rtol=0, atol=1e-13)


@pytest.mark.parametrize("large", [0, 10**9], ids=["helped", "alone"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_helper_computes_half_of_a_large_batch(monkeypatch, k, large):
    monkeypatch.setattr(products, "LARGE", large)
    a, b, out, threads = draw(k, 4, 3), draw(k, 3, 2), np.full((k, 4, 2), np.nan), []
    with ThreadPoolExecutor(1) as pool:
        def helping(f, *args, **how):
            threads.append(threading.get_ident())
            return pool.submit(lambda: (time.sleep(0.02), f(*args, **how)))         # later than the other half

        before = helper.helper.set(helping)
        try:
            products.batch_times(a, b, out)
            found = out.copy()
        finally:
            helper.helper.reset(before)
    np.testing.assert_allclose(found, a @ b, rtol=0, atol=1e-14)
    assert len(threads) == (1 if large == 0 else 0)


def test_nobody_helps_unless_asked():
    assert helper.helper.get() is None


@pytest.mark.parametrize("M, C, N", [(8192, 32, 64), (4096, 96, 32), (777, 64, 64)])
def test_the_dense_layer_in_float32_is_as_exact_as_the_plain_one(M, C, N):
    p, x, dy = {"weight": draw(C, N) / np.sqrt(C), "bias": draw(N)}, draw(M, C), draw(M, N)
    exact, exact_back = linear(p, x)
    exact = exact, exact_back(dy)[0], exact_back(dy)[1]["weight"]
    p, x, dy = {name: a.astype(np.float32) for name, a in p.items()}, x.astype(np.float32), dy.astype(np.float32)
    errors = []
    for layer in (linear, products.linear_in_pieces):
        y, back = layer(p, x)
        dx, dp = back(dy)
        errors.append([np.abs(a - e).max() / e.std() for a, e in zip((y, dx, dp["weight"]), exact, strict=True)])
    print(f"{M}x{C} -> {N}: largest error of y, dx, dW over their deviation: plain {errors[0]}, in pieces {errors[1]}")
    assert (np.array(errors[1]) < 3 * np.array(errors[0])).all()


def test_the_plan_takes_the_thin_convolution_for_few_channels_out_and_the_switch_puts_it_back(monkeypatch):
    called = []
    for name in "thin_conv2d", "plain_conv2d", "linear_in_pieces", "plain_linear":
        monkeypatch.setattr(plan, name, lambda *args, name=name: called.append(name))
    x, wide, dense = draw(1, 4, 4, 8), {"weight": draw(3, 3, 8, 3)}, {"weight": draw(8, 8), "bias": draw(8)}
    thin = {"weight": draw(3, 3, 8, 2)}

    def choose():
        called.clear()
        plan.conv2d(thin, x)
        plan.conv2d(thin, x, 2)
        plan.conv2d(wide, x)
        planned_linear(dense, x)
        return list(called)

    assert choose() == ["thin_conv2d", "plain_conv2d", "plain_conv2d", "linear_in_pieces"]
    monkeypatch.setenv("MINDDPM_KERNELS", "0")
    assert choose() == ["plain_conv2d", "plain_conv2d", "plain_conv2d", "plain_linear"]


def test_the_thin_convolutions_patches_are_of_the_few_channels(monkeypatch):
    """Neither pass makes patches of the C channels of x: that is what it is for."""
    widths = []
    plain = conv.im2col
    monkeypatch.setitem(plan.thin_conv2d.__globals__, "im2col", lambda x, *rest: widths.append(x.shape[-1]) or plain(x, *rest))
    _, back = plan.thin_conv2d({"weight": draw(3, 3, 8, 2), "bias": draw(2)}, draw(1, 4, 4, 8))
    back(draw(1, 4, 4, 2))
    assert widths == [2]
