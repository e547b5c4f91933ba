"""App. B.  The 3×3 convolution in a quarter of the multiplications: Winograd's minimal filtering F(m×m, 3×3).

One dimension.  m outputs of a 3-tap filter w, over a = m + 2 inputs d:  y_i = Σ_j d_{i+j} w_j.  Transposed (d from y and w) this
is a product of two polynomials of degrees m−1 and 2, which Toom and Cook compute from its values: evaluate both factors at
m + 1 points and at ∞, multiply there, interpolate.  Transposed back, with `matrices` for the points p:

    y = Aᵀ [ (G w) ∘ (Bᵀ d) ]        a multiplications for m outputs, instead of 3m

Two dimensions: the same along both, Y = Aᵀ [ (G w Gᵀ) ∘ (Bᵀ d B) ] A, or with an a×a tile written as a vector of a² numbers

    Y = (Aᵀ⊗Aᵀ) [ (G⊗G) w ∘ (Bᵀ⊗Bᵀ) d ]

Over many tiles and channels each of the three transforms is one matrix product; and the sum over the channels c of the
products at one point, Σ_c V[t,c] U[c,n], is a matrix product too, one for each of the a² points.

Every step is linear in what it is given, so the gradient is the same steps transposed, in opposite order: exact, as for
the plain layer in conv.py, which is this file's oracle (tests/test_winograd.py).  After Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks" (2016); the points are ours.
"""

import math
from functools import cache

import numpy as np

from minddpm.layers.linear import column_sums

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


def transform(w, m):
    """U = (G⊗G) w: weight (3,3,C,N) -> (a²,C,N).  The same for every image, so it is made once a step and shared."""
    C, N = w.shape[2:]
    _, GG, _ = _twice(m, w.dtype)
    return (GG @ w.reshape(9, C * N)).reshape(-1, C, N)


def winograd(p, x, keep=False):
    """App. B.  3×3 convolution, stride 1: what conv2d(p, x) is.  weight (3,3,C,N), bias (N,), winograd: U of `transform`,
    x (B,H,W,C) -> y (B,H,W,N).

    For some images at a time, with T tiles (the last ones padded with zeros where m does not divide H or W):

        V = (Bᵀ⊗Bᵀ) tiles(x)    (a²,T,C)        M[k] = V[k] U[k] at each point k        y = untile( (Aᵀ⊗Aᵀ) M ) + bias

    Back:  dM = (A⊗A) tile(dy),   dU[k] = V[k]ᵀ dM[k],   dV[k] = dM[k] U[k]ᵀ,   dx = tiles's adjoint of (B⊗B) dV,
           dW = (Gᵀ⊗Gᵀ) dU.  The gradient has conv2d's keys: U is the weight, written another way.
    Keeps: V where keep is true, to save time in training; otherwise x: V is a²/m² times as large, and is made again.
    """
    w, U = p["weight"], p["winograd"]
    B, H, W, C = x.shape
    a2, _, N = U.shape
    m = round(a2**0.5) - 2
    rows, columns = -(-H // m), -(-W // m)
    AA, GG, BB = _twice(m, x.dtype)
    images = max(1, round((BLOCK / max(C, N) + TILES) / (rows * columns)))
    blocks = [slice(b, b + images) for b in range(0, B, images)]
    one = m + 3                                     # the point (1, 1), where Aᵀ⊗Aᵀ has ones only: a constant added here
    y = np.empty((B, rows * m, columns * m, N), x.dtype)          # is added to every output of the tile
    kept = []

    def points(block):
        return _points(BB, _tiles(x[block], m, rows, columns))

    for block in blocks:
        V = points(block)
        if keep:
            kept.append(V)
        M = np.matmul(V, U)
        M[one] += p["bias"]
        _untile(y[block], AA @ M.reshape(a2, -1), m)

    def winograd_back(dy):
        dx, dU, db = np.empty((B, H, W, C), x.dtype), np.zeros_like(U), np.zeros_like(p["bias"])
        for block, V in zip(blocks, kept or map(points, blocks), strict=True):
            dM = _points(AA.T, _tile(dy[block], m, rows, columns))
            db += column_sums(dM[one])
            dU += np.matmul(V.swapaxes(1, 2), dM)
            dV = np.matmul(dM, U.swapaxes(1, 2))
            _tiles_back(dx[block], BB.T @ dV.reshape(a2, -1), m, rows, columns)
        dw = GG.T @ dU.reshape(a2, C * N)
        return dx, {"weight": dw.reshape(w.shape), "bias": db}

    return y[:, :H, :W], winograd_back


def _points(matrix, tiles):
    """A transform of every tile: (k,l) @ (l,T,C) -> (k,T,C)."""
    return (matrix @ tiles.reshape(len(tiles), -1)).reshape(-1, *tiles.shape[1:])


def _tiles(x, m, rows, columns):
    """(b,H,W,C) -> (a²,T,C): every a×a tile of x, padded with zeros; neighbours overlap by 2."""
    b, H, W, C = x.shape
    padded = np.zeros((b, rows * m + 2, columns * m + 2, C), x.dtype)
    padded[:, 1:H + 1, 1:W + 1] = x
    tiles = np.empty(((m + 2)**2, b, rows, columns, C), x.dtype)
    for k, place in enumerate(_places(m, rows, columns)):
        tiles[k] = padded[place]
    return tiles.reshape(len(tiles), -1, C)


def _tiles_back(dx, dtiles, m, rows, columns):
    """The adjoint of `_tiles`, into dx (b,H,W,C): where tiles overlap, their gradients add."""
    b, H, W, C = dx.shape
    dpadded = np.zeros((b, rows * m + 2, columns * m + 2, C), dx.dtype)
    for dtile, place in zip(dtiles.reshape(-1, b, rows, columns, C), _places(m, rows, columns), strict=True):
        dpadded[place] += dtile
    dx[...] = dpadded[:, 1:H + 1, 1:W + 1]


@cache
def _places(m, rows, columns):
    """For each place in an a×a tile, the slice of the padded image where the tiles have it."""
    return [np.s_[:, i:i + m * (rows - 1) + 1:m, j:j + m * (columns - 1) + 1:m] for i in range(m + 2) for j in range(m + 2)]


def _untile(y, outputs, m):
    """(m²,T·N) -> y (b,m·rows,m·columns,N), in place: the m×m outputs of each tile side by side."""
    b, height, width, N = y.shape
    for k, output in enumerate(outputs.reshape(m * m, b, height // m, width // m, N)):
        y[:, k // m::m, k % m::m] = output


def _tile(dy, m, rows, columns):
    """The adjoint of `_untile` and of the cut to (H,W): (b,H,W,N) -> (m²,T,N), zeros beyond the edge."""
    b, H, W, N = dy.shape
    if (H, W) != (rows * m, columns * m):
        dy = np.pad(dy, ((0, 0), (0, rows * m - H), (0, columns * m - W), (0, 0)))
    tiles = np.empty((m * m, b, rows, columns, N), dy.dtype)
    for k in range(m * m):
        tiles[k] = dy[:, k // m::m, k % m::m]
    return tiles.reshape(m * m, -1, N)
