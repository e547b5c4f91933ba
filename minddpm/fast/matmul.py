"""Matrix products in pieces, and the dense layer by them.

OpenBLAS multiplies small matrices, up to SMALL multiplications, as they lie in memory; larger ones it copies first, which takes
a fifth to a half of the time of narrow products, as those of a U-Net are.  A product whose pieces would be slivers stays whole.
"""

import numpy as np

from minddpm.fast.helper import helper
from minddpm.unet.layers.linear import column_sums

SMALL = 10**6               # 100³: sgemm_small_kernel_permit of OpenBLAS 0.3.31 for processors with AVX-512
SLIVER = 64                 # rows or columns of a piece at least
LARGE = 2**20               # numbers of a batch of weights from which on half of it is worth a helper's waking


def rows_times(a, w):
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


def transposed_times(a, b):
    """aᵀ b for tall a and b: (M,K), (M,N) -> (K,N), some rows at a time."""
    (M, K), N = a.shape, b.shape[1]
    m, whole = _length(M, K * N)
    if not m:
        return a.T @ b
    pieces = np.matmul(a[:whole].reshape(-1, m, K).swapaxes(1, 2), b[:whole].reshape(-1, m, N))
    return pieces.sum(axis=0) + a[whole:].T @ b[whole:]


def times_columns(matrix, x, out):
    """out = matrix x for a wide x: (K,L), (L,M), out (K,M), some columns at a time."""
    m, whole = _length(x.shape[1], matrix.size)

    def pieces(a):
        return a[:, :whole].reshape(len(a), -1, m).swapaxes(0, 1)

    if m:
        np.matmul(matrix, pieces(x), out=pieces(out))
    if whole < x.shape[1]:
        np.matmul(matrix, x[:, whole:], out=out[:, whole:])


def batch_times(a, b, out):
    """out[i] = a[i] b[i]: (k,T,C), (k,C,N), out (k,T,N).  Half of them by the helper, where there is one and b is large."""
    help = helper.get() if b.size >= LARGE else None
    if not help:
        np.matmul(a, b, out=out)
        return
    half = len(a) // 2
    others = help(np.matmul, a[:half], b[:half], out=out[:half])
    np.matmul(a[half:], b[half:], out=out[half:])
    if others.cancel():                             # no thread was idle
        np.matmul(a[:half], b[:half], out=out[:half])
    else:
        others.result()


def _length(M, work):
    """(the length of a piece of M rows with `work` multiplications a row, how many rows are in such pieces); 0 where none are."""
    m = SMALL // work // 16 * 16
    return (m, M - M % m) if SLIVER <= m < M else (0, 0)


def linear_in_pieces(p, x):
    """App. B.  What linear(p, x) is, by the products above.  Back, Keeps: as there."""
    w = p["weight"]
    rows = x.reshape(-1, w.shape[0])
    y = rows_times(rows, w)
    y += p["bias"]

    def linear_in_pieces_back(dy):
        dy_rows = dy.reshape(-1, w.shape[1])
        dx = rows_times(dy_rows, w.T)
        dw = transposed_times(rows, dy_rows)
        return dx.reshape(x.shape), {"weight": dw, "bias": column_sums(dy_rows)}

    return y.reshape(*x.shape[:-1], w.shape[1]), linear_in_pieces_back
