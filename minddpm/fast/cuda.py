"""App. B.  The layers on a GPU, where launches cost more than arithmetic: kernels.cu's kernels, each instead of many array calls.

Each function computes what the function of the same name in unet.layers does, to rounding.  OPS has all of them, each with
the plain one for arrays that the kernels do not take.  Nothing here waits for the GPU.
"""

import functools
import math
from importlib import resources
from types import SimpleNamespace

import numpy as np

from minddpm.device import cupy, is_cuda, to_host
from minddpm.unet import layers

THREADS = 256               # a block
MOST_THREADS = 1024         # a block at most, as in kernels.cu
BLOCKS = 4096               # a grid at most: kernels stride over what is left
WORKSPACE = 256 * 2**20     # bytes of patches that a convolution makes at a time


def fits(*arrays):
    """Whether the kernels take these arrays: CuPy's, float32, of fewer than 2³¹ numbers."""
    return all(is_cuda(a) and a.dtype == np.float32 and a.size < 2**31 for a in arrays)


@functools.cache
def module():
    """kernels.cu, which CuPy compiles for the GPU at hand and keeps in its own cache on disk."""
    source = resources.files("minddpm.fast").joinpath("kernels.cu").read_text(encoding="utf-8")
    return cupy().RawModule(code=source)


def launch(name, blocks, threads, *args):
    """Run a kernel.  Python's ints are C's, its floats are float32; other arguments as CuPy takes them."""
    as_c = {int: np.int32, float: np.float32}
    args = tuple(as_c.get(type(a), lambda a: a)(a) for a in args)
    module().get_function(name)((max(1, min(blocks, BLOCKS)),), (threads,), args)


def elementwise(name, n, *args):
    """Run a kernel that has work for n threads."""
    launch(name, -(-n // THREADS), THREADS, *args)


def contiguous(a):
    """The array itself, or a C-contiguous copy of it."""
    return np.ascontiguousarray(a, like=a)


# Convolution ---------------------------------------------------------------------------------------------------------------


def conv2d(p, x, stride=1):
    """App. B.  layers.conv2d: patches of at most WORKSPACE bytes at a time, their product with the weight, and both adjoints.

    Back: dy -> dx, dp.  Keeps: x.
    """
    w, x = p["weight"], contiguous(x)
    k, _, C, N = w.shape
    B, H, W, _ = x.shape
    total = max(k - stride, 0)
    OH, OW = ((size + total - k) // stride + 1 for size in (H, W))
    sizes = (H, W, C, OH, OW, k, stride, total // 2)
    pixels, taps = OH * OW, k * k * C
    images = max(1, WORKSPACE // (4 * pixels * taps))
    parts = [slice(b, min(b + images, B)) for b in range(0, B, images)]
    matrix = w.reshape(taps, N)

    def patches(part):
        rows = np.empty_like(x, shape=((part.stop - part.start) * pixels, taps))
        elementwise("im2col", rows.size, x[part], rows, rows.size, *sizes)
        return rows

    def of(part, rows):
        return rows[part.start * pixels:part.stop * pixels]

    y = np.empty_like(x, shape=(B * pixels, N))
    for part in parts:
        np.matmul(patches(part), matrix, out=of(part, y))
    y += p["bias"]

    def conv2d_back(dy):
        rows, dx, dw = contiguous(dy).reshape(B * pixels, N), np.empty_like(x), None
        for part in parts:
            dw_part = patches(part).T @ of(part, rows)
            dw = dw_part if dw is None else dw + dw_part
            dpatches = of(part, rows) @ matrix.T
            elementwise("col2im", dx[part].size, dpatches, dx[part], dx[part].size, *sizes)
        return dx, {"weight": dw.reshape(w.shape), "bias": rows.sum(axis=0)}

    return y.reshape(B, OH, OW, N), conv2d_back


# Group normalisation ---------------------------------------------------------------------------------------------------------


def group_norm(p, x, groups, eps=1e-6, swish=False):
    """App. B.  layers.group_norm, and where swish is true layers.norm_swish.  Back: dy -> dx, dp.  Keeps: x, the mean and r."""
    if x.shape[-1] // groups > MOST_THREADS:
        return (layers.norm_swish if swish else layers.group_norm)(p, x, groups, eps)
    gamma, beta, x = p["weight"], p["bias"], contiguous(x)
    B, H, W, C = x.shape
    size = C // groups
    threads = max(1, THREADS // size) * size
    y, (mean, r) = np.empty_like(x), np.empty_like(x, shape=(2, B, groups))
    launch("norm_forward", B * groups, threads, x, gamma, beta, y, mean, r, B, H * W, C, groups, eps, int(swish))

    def group_norm_back(dy):
        dx, sums = np.empty_like(x), np.empty_like(x, shape=(2, B, C))
        launch("norm_backward", B * groups, threads, contiguous(dy), x, gamma, beta, mean, r, dx, sums, B, H * W, C, groups,
               int(swish))
        dgamma, dbeta = sums.sum(axis=1)
        return dx, {"weight": dgamma, "bias": dbeta}

    return y, group_norm_back


# The rest --------------------------------------------------------------------------------------------------------------------


def swish(x):
    """App. B.  layers.swish.  Back: dy -> dx.  Keeps: x."""
    x = contiguous(x)
    y = np.empty_like(x)
    elementwise("swish", x.size, x, y, x.size)

    def swish_back(dy):
        dx = np.empty_like(x)
        elementwise("swish_backward", x.size, contiguous(dy), x, dx, x.size)
        return dx

    return y, swish_back


def timestep_embedding(t, dim, like):
    """App. B.  layers.timestep_embedding."""
    t, half = np.asarray(t, dtype=np.float64, like=like), dim // 2
    y = np.empty_like(like, shape=(len(t), dim))
    elementwise("timestep_embedding", len(t) * half, t, y, len(t) * half, half)
    return y


def attention(q, k, v):
    """App. B.  layers.attention.  Back: do -> dq, dk, dv.  Keeps: P and the three arguments."""
    T, scale = k.shape[1], 1 / math.sqrt(q.shape[-1])
    P = contiguous(np.matmul(q, k.swapaxes(1, 2)))
    rows, threads = P.size // T, min(T, THREADS)
    launch("softmax", rows, threads, P, rows, T, scale)
    o = np.matmul(P, v)

    def attention_back(do):
        dv = np.matmul(P.swapaxes(1, 2), do)
        dS = contiguous(np.matmul(do, v.swapaxes(1, 2)))
        launch("softmax_backward", rows, threads, dS, P, rows, T, scale)        # dP becomes dS
        dq = np.matmul(dS, k)
        dk = np.matmul(dS.swapaxes(1, 2), q)
        return dq, dk, dv

    return o, attention_back


def dropout(x, rate, seeds, layer):
    """App. B.  layers.dropout, with the same masks.  Back: dy -> dx.  Keeps: seeds (B,), on the GPU."""
    seeds, n = np.asarray(seeds, dtype=np.uint64, like=x), x[0].size
    blocks = -(-n // 16)

    def masked(x):
        x = contiguous(x)
        y = np.empty_like(x)
        elementwise("dropout", len(x) * blocks, x, y, seeds, np.uint64(layer), len(x), n, blocks, round(rate * 2**16),
                    1 / (1 - rate))
        return y

    return masked(x), masked


def norm_swish(p, x, groups, eps=1e-6):
    """App. B.  layers.norm_swish.  Back: dy -> dx, dp.  Keeps: x, the mean and r."""
    return group_norm(p, x, groups, eps, swish=True)


def conv2d_plus(p, x, v):
    """App. B.  layers.conv2d_plus.  Back: dy -> dx, dv, dp.  Keeps: x."""
    y, conv_back = conv2d(p, x)
    y = y + v[:, None, None]

    def conv2d_plus_back(dy):
        dx, dp = conv_back(dy)
        return dx, dy.sum(axis=(1, 2)), dp

    return y, conv2d_plus_back


def _or_plain(name):
    """The kernel of this name for arrays that `fits` takes, the plain layer for others and where there is no kernel."""
    kernel, plain = globals().get(name), getattr(layers, name)

    def layer(*args, **options):
        *_, x = (a for a in (*args, *options.values()) if getattr(a, "dtype", np.dtype(int)).kind == "f")
        if fits(x):
            return kernel(*args, **options)
        return plain(*(to_host(a) if is_cuda(a) and a.dtype.kind in "iu" else a for a in args), **options)     # dropout's seeds

    return layer if kernel else plain


OPS = SimpleNamespace(**{name: _or_plain(name) for name in layers.__all__})
