"""fast/matmul.py, narrow_conv.py: products in pieces against NumPy's whole ones, and the spare thread."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from minddpm.fast import matmul, narrow_conv
from minddpm.unet.layers import linear
from minddpm.unet.layers.conv import im2col

ROWS = [1, 63, 64, 65, 128, 200, 257]


def draw(*shape):
    return np.random.default_rng(shape).standard_normal(shape)


@pytest.fixture
def short(monkeypatch):
    """Pieces of 64 rows for factors of 3 and 2."""
    monkeypatch.setattr(matmul, "SMALL", 64 * 6)


@pytest.mark.parametrize("M", ROWS)
@pytest.mark.usefixtures("short")
def test_products_in_pieces_are_the_products(M):
    a, b, w, wide, matrix = draw(M, 3), draw(M, 2), draw(3, 2), draw(3, M), draw(2, 3)
    np.testing.assert_allclose(matmul.matmul_tall(a, w), a @ w, rtol=0, atol=1e-14 * np.sqrt(M))
    np.testing.assert_allclose(matmul.matmul_tall(b, w.T), b @ w.T, rtol=0, atol=1e-14 * np.sqrt(M))
    np.testing.assert_allclose(matmul.matmul_tn(a, b), a.T @ b, rtol=0, atol=1e-14 * np.sqrt(M))
    gaps = np.full((3, M + 5), np.nan)
    gaps[:, :M] = wide
    out = np.full((2, M + 3), np.nan)
    matmul.matmul_wide(matrix, gaps[:, :M], out[:, :M])
    np.testing.assert_allclose(out[:, :M], matrix @ wide, rtol=0, atol=1e-14)
    assert np.isnan(out[:, M:]).all()


@pytest.mark.usefixtures("short")
def test_pieces_are_as_long_as_the_limit_allows_and_a_product_with_short_pieces_stays_whole():
    assert matmul._length(200, 6) == (64, 192)
    assert matmul._length(64, 6) == matmul._length(200, 7) == (0, 0)
    assert matmul._length(200, 1) == (0, 0)                   # 384 rows would be one piece


@pytest.mark.usefixtures("short")
def test_the_rows_of_a_part_of_a_wider_array_are_right():
    both = draw(200, 5)
    np.testing.assert_allclose(matmul.matmul_tall(both[:, 1:4], draw(3, 2)), both[:, 1:4] @ draw(3, 2), rtol=0, atol=1e-13)


@pytest.mark.parametrize("large", [0, 10**9], ids=["shared", "alone"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_spare_thread_computes_half_of_a_large_batch(monkeypatch, k, large):
    monkeypatch.setattr(matmul, "MIN_WEIGHTS_TO_SPLIT", large)
    a, b, out, threads = draw(k, 4, 3), draw(k, 3, 2), np.full((k, 4, 2), np.nan), []
    with ThreadPoolExecutor(1) as pool:
        def start(f, *args, **how):
            threads.append(threading.get_ident())
            return pool.submit(lambda: (time.sleep(0.02), f(*args, **how)))         # later than the other half

        before = matmul.spare_thread.set(start)
        try:
            matmul.matmul_batched(a, b, out)
            found = out.copy()
        finally:
            matmul.spare_thread.reset(before)
    np.testing.assert_allclose(found, a @ b, rtol=0, atol=1e-14)
    assert len(threads) == (1 if large == 0 else 0)


def test_there_is_no_spare_thread_unless_a_worker_lends_one():
    assert matmul.spare_thread.get() is None


@pytest.mark.parametrize("M, C, N", [(8192, 32, 64), (4096, 96, 32), (777, 64, 64)])
def test_the_dense_layer_in_float32_is_as_exact_as_the_plain_one(M, C, N):
    p, x, dy = {"weight": draw(C, N) / np.sqrt(C), "bias": draw(N)}, draw(M, C), draw(M, N)
    exact, exact_back = linear(p, x)
    exact = exact, exact_back(dy)[0], exact_back(dy)[1]["weight"]
    p, x, dy = {name: a.astype(np.float32) for name, a in p.items()}, x.astype(np.float32), dy.astype(np.float32)
    errors = []
    for layer in (linear, matmul.linear):
        y, back = layer(p, x)
        dx, dp = back(dy)
        errors.append([np.abs(a - e).max() / e.std() for a, e in zip((y, dx, dp["weight"]), exact, strict=True)])
    print(f"{M}x{C} -> {N}: largest error of y, dx, dW over their deviation: plain {errors[0]}, in pieces {errors[1]}")
    assert (np.array(errors[1]) < 3 * np.array(errors[0])).all()


def test_a_narrow_convolutions_patches_are_of_the_few_channels(monkeypatch):
    """Neither pass makes patches of the C channels of x: that is the reason for this form."""
    widths = []
    monkeypatch.setattr(narrow_conv, "im2col", lambda x, *rest: widths.append(x.shape[-1]) or im2col(x, *rest))
    _, back = narrow_conv.narrow_conv2d({"weight": draw(3, 3, 8, 2), "bias": draw(2)}, draw(1, 4, 4, 8))
    back(draw(1, 4, 4, 2))
    assert widths == [2]
