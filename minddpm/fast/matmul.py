"""Matrix products in pieces, and the dense layer by them.

OpenBLAS multiplies small matrices, up to SMALL multiplications, as they lie in memory; it copies larger ones first, which takes
a fifth to a half of the time of narrow products, as those of a U-Net are.  A product whose pieces would have fewer than MIN_ROWS
rows stays whole.
"""

from contextvars import ContextVar
from functools import cache

import numpy as np

SMALL = 10**6               # 100³: sgemm_small_kernel_permit of OpenBLAS 0.3.31 for processors with AVX-512
MIN_ROWS = 64               # of a piece
MIN_WEIGHTS_TO_SPLIT = 2**20        # numbers of a batch of weights from which on half of it is worth another thread's waking

# A function that starts f(*args) in a spare thread and returns its future, or None: set by Workers.helping for a batch with too
# few images for all threads, as when a single image is sampled.
spare_thread = ContextVar("spare_thread", default=None)


def matmul_tall(a, w):
    """a w for a tall a: (M,K), (K,N) -> (M,N), some rows at a time."""
    (M, K), N = a.shape, w.shape[1]
    m, whole = _length(M, K * N)
    if not m:
        return a @ w
    w, y = np.ascontiguousarray(w), np.empty((M, N), np.result_type(a, w))
    np.matmul(a[:whole].reshape(-1, m, K), w, out=y[:whole].reshape(-1, m, N))
    if whole < M:
        np.matmul(a[whole:], w, out=y[whole:])
    return y


def matmul_tn(a, b):
    """aᵀ b for tall a and b: (M,K), (M,N) -> (K,N), some rows at a time."""
    (M, K), N = a.shape, b.shape[1]
    m, whole = _length(M, K * N)
    if not m:
        return a.T @ b
    pieces = np.matmul(a[:whole].reshape(-1, m, K).swapaxes(1, 2), b[:whole].reshape(-1, m, N))
    return pieces.sum(axis=0) + a[whole:].T @ b[whole:]


def matmul_wide(matrix, x, out):
    """out = matrix x for a wide x: (K,L), (L,M), out (K,M), some columns at a time."""
    m, whole = _length(x.shape[1], matrix.size)

    def pieces(a):
        return a[:, :whole].reshape(len(a), -1, m).swapaxes(0, 1)

    if m:
        np.matmul(matrix, pieces(x), out=pieces(out))
    if whole < x.shape[1]:
        np.matmul(matrix, x[:, whole:], out=out[:, whole:])


def matmul_batched(a, b, out):
    """out[i] = a[i] b[i]: (k,T,C), (k,C,N), out (k,T,N).  Half of them in the spare thread, where there is one and b is large."""
    start = spare_thread.get() if b.size >= MIN_WEIGHTS_TO_SPLIT else None
    if not start:
        np.matmul(a, b, out=out)
        return
    half = len(a) // 2
    others = start(np.matmul, a[:half], b[:half], out=out[:half])
    np.matmul(a[half:], b[half:], out=out[half:])
    if others.cancel():                             # no thread was idle
        np.matmul(a[:half], b[:half], out=out[:half])
    else:
        others.result()


def _length(M, work):
    """(the length of a piece of M rows with `work` multiplications a row, how many rows are in such pieces); 0 where none are."""
    m = SMALL // work // 16 * 16
    return (m, M - M % m) if MIN_ROWS <= m < M else (0, 0)


def column_sums(rows):
    """Σ over the rows of (…,M,N) -> (…,N), as the product 1ᵀ·rows: several times faster than sum(axis=-2)."""
    return _ones(rows.shape[-2], rows.dtype) @ rows


@cache
def _ones(n, dtype):
    ones = np.ones(n, dtype)
    ones.setflags(write=False)
    return ones


def linear(p, x):
    """App. B.  layers.linear(p, x), by the products above.  Back, Keeps: as there."""
    w = p["weight"]
    rows = x.reshape(-1, w.shape[0])
    y = matmul_tall(rows, w)
    y += p["bias"]

    def linear_back(dy):
        dy_rows = dy.reshape(-1, w.shape[1])
        dx = matmul_tall(dy_rows, w.T)
        dw = matmul_tn(rows, dy_rows)
        return dx.reshape(x.shape), {"weight": dw, "bias": column_sums(dy_rows)}

    return y.reshape(*x.shape[:-1], w.shape[1]), linear_back


def conv1x1(p, x, linear=linear):
    """App. B.  layers.conv2d(p, x) with k = 1: the dense layer on each pixel.  weight (1,1,C,N), x (B,H,W,C) -> y (B,H,W,N)."""
    w = p["weight"]
    y, linear_back = linear({"weight": w[0, 0], "bias": p["bias"]}, x)

    def conv1x1_back(dy):
        dx, dp = linear_back(dy)
        return dx, {"weight": dp["weight"].reshape(w.shape), "bias": dp["bias"]}

    return y, conv1x1_back
