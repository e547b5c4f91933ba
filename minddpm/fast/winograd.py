"""App. B.  The 3×3 convolution by Winograd's minimal filtering F(m×m, 3×3): F(2×2) has 4/9 of the multiplications, F(4×4) 1/4.

One dimension.  m outputs of a 3-tap filter w, over a = m + 2 inputs d:  y_i = Σ_j d_{i+j} w_j.  Transposed (d from y and w) this
is a product of two polynomials of degrees m−1 and 2, which Toom and Cook compute from its values: evaluate both factors at
m + 1 points and at ∞, multiply there, interpolate.  Transposed back, with `matrices` for the points p:

    y = Aᵀ [ (G w) ∘ (Bᵀ d) ]        a multiplications for m outputs, instead of 3m

Two dimensions: the same along both, Y = Aᵀ [ (G w Gᵀ) ∘ (Bᵀ d B) ] A, or with an a×a tile written as a vector of a² numbers

    Y = (Aᵀ⊗Aᵀ) [ (G⊗G) w ∘ (Bᵀ⊗Bᵀ) d ]

Over many tiles and channels each of the three transforms is one matrix product; and the sum over the channels c of the
products at one point, Σ_c V[t,c] U[c,n], is a matrix product too, one for each of the a² points.

Every step is linear in its argument, so the gradient is the same steps transposed, in opposite order: exact, as for the plain
layer in unet/layers/conv.py, this file's oracle (tests/fast/test_winograd.py).  After Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks" (2016); the points are ours.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from minddpm.fast.matmul import column_sums, matmul_batched, matmul_wide
from minddpm.unet.layers.conv import zero_pad

# The second point must be 1 (see `one` below).  Of the sets tried, the one of the smallest error in float32: 1.5 times less
# than the usual 0, 1, −1, 2, −2.
POINTS = {2: (0, 1, -1), 4: (0, 1, -1, 1/2, -2)}
# Tiles that are worked on at a time: so few that their numbers at one point, BLOCK, stay in the cache, and TILES more, so that
# a wide weight is not read again for too little work.
BLOCK, TILES = 8192, 64


@cache
def matrices(m):
    """Aᵀ (m,a), G (a,3), Bᵀ (a,a) of F(m, 3), float64.  With the points p and f_p = ∏_{q≠p} (p − q):

        Aᵀ[i,p] = pⁱ        G[p,j] = pʲ / f_p        Bᵀ[p,·] = coefficients of ∏_{q≠p} (x − q)

    and for the point ∞ the leading coefficients: Aᵀ[m−1,∞] = 1, G[∞,2] = 1, Bᵀ[∞,·] of ∏_q (x − q).
    """
    points = POINTS[m]
    others = [[q for q in points if q != p] for p in points]
    AT = [[p**i for p in points] + [i == m - 1] for i in range(m)]
    G = [[p**j / math.prod(p - q for q in rest) for j in range(3)] for p, rest in zip(points, others, strict=True)] + [[0, 0, 1]]
    BT = [[*np.poly(rest)[::-1], 0] for rest in others] + [np.poly(points)[::-1]]
    return np.array(AT, dtype=float), np.array(G, dtype=float), np.array(BT, dtype=float)


@cache
def _twice(m, dtype):
    """Aᵀ⊗Aᵀ (m²,a²), G⊗G (a²,9), Bᵀ⊗Bᵀ (a²,a²)."""
    return [np.kron(matrix, matrix).astype(dtype) for matrix in matrices(m)]


class Transformed(NamedTuple):
    """A weight (3,3,C,N) in the transformed domain, and what `winograd_plus` stores for the gradient.

    U (a²,C,N) = (G⊗G) w.  Ut (a²,N,C): its transpose at each point, a view or an array of its own, which is faster.
    keep_points: whether the images' points V are stored, a²/m² times as large as x, or computed again.
    """

    m: int
    U: np.ndarray
    Ut: np.ndarray
    keep_points: bool = False


def transform(w, m, training=False):
    """U = (G⊗G) w, as a Transformed.  The same for every image, so it is computed once for each value of the weights.

    training: the gradient is wanted too.  Stored points and a transpose in memory save it time: little for wide convolutions,
    and at much memory, so they are for narrow ones.
    """
    C, N = w.shape[2:]
    _, GG, _ = _twice(m, w.dtype)
    if not training or max(C, N) > 128:
        U = _transformed(GG, w.reshape(9, C, N))
        return Transformed(m, U, U.swapaxes(1, 2))
    both = _transformed(GG, np.stack([w.reshape(9, C * N), w.swapaxes(2, 3).reshape(9, C * N)], axis=1))
    return Transformed(m, both[:, 0].reshape(-1, C, N), both[:, 1].reshape(-1, N, C), keep_points=C <= 96)


def winograd(p, x, transformed):
    """App. B.  layers.conv2d(p, x) for a 3×3 weight.  Back: dy -> dx, dp.  Keeps: as `winograd_plus`."""
    y, plus_back = winograd_plus(p, x, np.zeros_like(x, shape=(len(x), p["weight"].shape[3])), transformed)

    def winograd_back(dy):
        dx, _, dp = plus_back(dy)
        return dx, dp

    return y, winograd_back


def winograd_plus(p, x, v, transformed):
    """App. B.  layers.conv2d_plus(p, x, v).  weight (3,3,C,N), bias (N,), x (B,H,W,C), v (B,N) -> y (B,H,W,N).

    transformed: `transform` of the weight.  For some images at a time, with T tiles (the last ones padded with zeros where m does
    not divide H or W):

        V = (Bᵀ⊗Bᵀ) tiles(x)    (a²,T,C)        M[k] = V[k] U[k] at each point k        y = untile( (Aᵀ⊗Aᵀ) M ) + bias + v

    Back:  dM = (A⊗A) tile(dy),   dU[k] = V[k]ᵀ dM[k],   dV[k] = dM[k] U[k]ᵀ,   dx = tiles's adjoint of (B⊗B) dV,
           dW = (Gᵀ⊗Gᵀ) dU.  The gradient has conv2d's keys: U is the weight, written another way.
    Keeps: V where transformed.keep_points, otherwise x.
    """
    w, (m, U, Ut, keep_points) = p["weight"], transformed
    B, H, W, C = x.shape
    a2, _, N = U.shape
    rows, columns = -(-H // m), -(-W // m)
    AA, GG, BB = _twice(m, x.dtype)
    count = max(1, min(B, round(B * rows * columns / (BLOCK / max(C, N) + TILES))))
    blocks = [slice(B * i // count, B * (i + 1) // count) for i in range(count)]
    one = m + 3                                     # the point (1, 1), where Aᵀ⊗Aᵀ has ones only: a constant added here
    y = np.empty((B, rows * m, columns * m, N), x.dtype)          # is added to every output of the tile
    kept = []

    def points(block):
        return _transformed(BB, _tiles(x[block], m, rows, columns))

    for block in blocks:
        V = points(block)
        if keep_points:
            kept.append(V)
        M = _products(V, U)
        M[one] += (p["bias"] + v[block]).repeat(rows * columns, axis=0)
        _cells(y[block], m)[...] = _transformed(AA, M).reshape(m, m, -1, rows, columns, N)

    def winograd_plus_back(dy):
        dx, dv, dU = np.empty((B, H, W, C), x.dtype), np.empty((B, N), x.dtype), None
        for block, V in zip(blocks, kept or map(points, blocks), strict=True):
            dM = _transformed(AA.T, _tile(dy[block], m, rows, columns))
            dv[block] = column_sums(dM[one].reshape(-1, rows * columns, N))
            products = _products(V.swapaxes(1, 2), dM)
            dU = np.add(dU, products, out=dU) if block.start else products
            dV = _products(dM, Ut)
            _tiles_back(dx[block], _transformed(BB.T, dV), m, rows, columns)
        dw = np.empty(w.shape, w.dtype)
        matmul_wide(GG.T, dU.reshape(a2, C * N), dw.reshape(9, C * N))
        return dx, dv, {"weight": dw, "bias": dv.sum(axis=0)}

    return y[:, :H, :W], winograd_plus_back


def _empty(k, T, C, dtype):
    """(k,T,C) for a transform's matrix product, with 16 numbers unused after each of the k: at distances of a multiple of
    4096 bytes the k numbers that are multiplied together would share one place in the cache, at half the speed."""
    return np.empty((k, T * C + 16), dtype)[:, :T * C].reshape(k, T, C)


def _transformed(matrix, tiles):
    """A transform of every tile: (k,l), (l,T,C) -> (k,T,C)."""
    out = _empty(len(matrix), *tiles.shape[1:], tiles.dtype)
    matmul_wide(matrix, tiles.reshape(len(tiles), -1), out.reshape(len(out), -1))
    return out


def _products(V, U):
    """The product at every point: (k,T,C), (k,C,N) -> (k,T,N)."""
    out = _empty(*V.shape[:2], U.shape[2], V.dtype)
    matmul_batched(V, U, out)
    return out


def _cells(image, m):
    """A view of (b,R·m,S·m,C) as cells of m×m pixels, (m,m,b,R,S,C)."""
    b, height, width, C = image.shape
    return image.reshape(b, height // m, m, width // m, m, C).transpose(2, 4, 0, 1, 3, 5)


@cache
def _pieces(m):
    """A tile is a cell and the first 2 rows and columns of those beyond: [(where a piece is in the tile, where in `_cells`)]."""
    pieces = (np.s_[:m], np.s_[:], np.s_[:-1]), (np.s_[m:], np.s_[:2], np.s_[1:])
    return [((i, j), (p, q, slice(None), r, s)) for i, p, r in pieces for j, q, s in pieces]


def _tiles(x, m, rows, columns):
    """(b,H,W,C) -> (a²,T,C): every a×a tile of x, padded with zeros; neighbours overlap by 2."""
    b, _, _, C = x.shape
    tiles = _empty((m + 2)**2, b * rows * columns, C, x.dtype)
    places = tiles.reshape(m + 2, m + 2, b, rows, columns, C)
    cells = _cells(zero_pad(x, 1, (rows + 1) * m, (columns + 1) * m), m)
    for in_tile, in_cells in _pieces(m):
        places[in_tile] = cells[in_cells]
    return tiles


def _tiles_back(dx, dtiles, m, rows, columns):
    """The adjoint of `_tiles`, into dx (b,H,W,C): where tiles overlap, their gradients add."""
    b, H, W, C = dx.shape
    dpadded = np.zeros((b, (rows + 1) * m, (columns + 1) * m, C), dx.dtype)
    dplaces, dcells = dtiles.reshape(m + 2, m + 2, b, rows, columns, C), _cells(dpadded, m)
    (in_tile, in_cells), *beyond = _pieces(m)
    dcells[in_cells] = dplaces[in_tile]
    for in_tile, in_cells in beyond:
        dcells[in_cells] += dplaces[in_tile]
    dx[...] = dpadded[:, 1:H + 1, 1:W + 1]


def _tile(dy, m, rows, columns):
    """The adjoint of laying m×m outputs side by side and cutting to (H,W): (b,H,W,N) -> (m²,T,N), zeros beyond the edge."""
    b, H, W, N = dy.shape
    if (H, W) != (rows * m, columns * m):
        dy = zero_pad(dy, 0, rows * m, columns * m)
    tiles = _empty(m * m, b * rows * columns, N, dy.dtype)
    tiles.reshape(m, m, b, rows, columns, N)[...] = _cells(dy, m)
    return tiles
