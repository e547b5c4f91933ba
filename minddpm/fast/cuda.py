"""App. B.  The layers on a GPU, where launches cost more than arithmetic: kernels.cu's kernels, each instead of many array calls.

Each function here answers as its plain twin of the same name in this folder does, to rounding, and is chosen for it by plan.py
where `fits` says so.  The environment variable MINDDPM_KERNELS=0 switches all of them off.  Nothing here waits for the device.
"""

import functools
import math
from importlib import resources

import numpy as np

from minddpm import device as backend

THREADS = 256               # a block
MOST_THREADS = 1024         # a block at most, as in kernels.cu
BLOCKS = 4096               # a grid at most: kernels stride over what is left
WORKSPACE = 256 * 2**20     # bytes of patches that a convolution makes at a time


def fits(*arrays):
    """Whether the kernels are for these arrays: float32, on a device, of fewer than 2³¹ numbers; and not switched off."""
    return (all(backend.is_cuda(a) and a.dtype == np.float32 and a.size < 2**31 for a in arrays)
            and backend.fast())


@functools.cache
def module():
    """kernels.cu, which CuPy compiles for the device at hand and keeps in its own cache on disk."""
    source = resources.files("minddpm.fast").joinpath("kernels.cu").read_text(encoding="utf-8")
    return backend.cupy().RawModule(code=source)


def launch(name, blocks, threads, *args):
    """Run a kernel.  Python's ints are C's, its floats are float32; other arguments as CuPy takes them."""
    as_c = {int: np.int32, float: np.float32}
    args = tuple(as_c.get(type(a), lambda a: a)(a) for a in args)
    module().get_function(name)((max(1, min(blocks, BLOCKS)),), (threads,), args)


def elementwise(name, n, *args):
    """Run a kernel that has work for n threads."""
    launch(name, -(-n // THREADS), THREADS, *args)


def dense(a):
    """The array itself, or a C-contiguous copy of it."""
    return np.ascontiguousarray(a, like=a)


# Convolution ---------------------------------------------------------------------------------------------------------------


def conv2d(p, x, stride=1):
    """App. B.  conv.conv2d: patches of at most WORKSPACE bytes at a time, their product with the weight, and both adjoints.

    Back: dy -> dx, dp.  Keeps: x.
    """
    w, x = p["weight"], dense(x)
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
        rows, dx, dw = dense(dy).reshape(B * pixels, N), np.empty_like(x), None
        for part in parts:
            dw_part = patches(part).T @ of(part, rows)
            dw = dw_part if dw is None else dw + dw_part
            dpatches = of(part, rows) @ matrix.T
            elementwise("col2im", dx[part].size, dpatches, dx[part], dx[part].size, *sizes)
        return dx, {"weight": dw.reshape(w.shape), "bias": rows.sum(axis=0)}

    return y.reshape(B, OH, OW, N), conv2d_back


# Group normalisation ---------------------------------------------------------------------------------------------------------


def norm_fits(p, x, groups):
    """Whether `group_norm` is for these arrays: `fits`, and a group's channels have a thread each in one block."""
    return fits(x, p["weight"]) and x.shape[-1] // groups <= MOST_THREADS


def group_norm(p, x, groups, eps=1e-6, swish=False):
    """App. B.  norm.group_norm, and where swish is true swish.swish after it.  Back: dy -> dx, dp.  Keeps: x, the mean and r."""
    gamma, beta, x = p["weight"], p["bias"], dense(x)
    B, H, W, C = x.shape
    size = C // groups
    threads = max(1, THREADS // size) * size
    y, (mean, r) = np.empty_like(x), np.empty_like(x, shape=(2, B, groups))
    launch("norm_forward", B * groups, threads, x, gamma, beta, y, mean, r, B, H * W, C, groups, eps, int(swish))

    def group_norm_back(dy):
        dx, sums = np.empty_like(x), np.empty_like(x, shape=(2, B, C))
        launch("norm_backward", B * groups, threads, dense(dy), x, gamma, beta, mean, r, dx, sums, B, H * W, C, groups,
               int(swish))
        dgamma, dbeta = sums.sum(axis=1)
        return dx, {"weight": dgamma, "bias": dbeta}

    return y, group_norm_back


# The rest --------------------------------------------------------------------------------------------------------------------


def swish(x):
    """App. B.  swish.swish.  Back: dy -> dx.  Keeps: x."""
    x = dense(x)
    y = np.empty_like(x)
    elementwise("swish", x.size, x, y, x.size)

    def swish_back(dy):
        dx = np.empty_like(x)
        elementwise("swish_backward", x.size, dense(dy), x, dx, x.size)
        return dx

    return y, swish_back


def timestep_embedding(t, dim, like):
    """App. B.  embedding.timestep_embedding."""
    t, half = np.asarray(t, dtype=np.float64, like=like), dim // 2
    y = np.empty_like(like, shape=(len(t), dim))
    elementwise("timestep_embedding", len(t) * half, t, y, len(t) * half, half)
    return y


def attention(q, k, v):
    """App. B.  attention.attention.  Back: do -> dq, dk, dv.  Keeps: P and the three arguments."""
    T, scale = k.shape[1], 1 / math.sqrt(q.shape[-1])
    P = dense(np.matmul(q, k.swapaxes(1, 2)))
    rows, threads = P.size // T, min(T, THREADS)
    launch("softmax", rows, threads, P, rows, T, scale)
    o = np.matmul(P, v)

    def attention_back(do):
        dv = np.matmul(P.swapaxes(1, 2), do)
        dS = dense(np.matmul(do, v.swapaxes(1, 2)))
        launch("softmax_backward", rows, threads, dS, P, rows, T, scale)        # dP becomes dS
        dq = np.matmul(dS, k)
        dk = np.matmul(dS.swapaxes(1, 2), q)
        return dq, dk, dv

    return o, attention_back


def dropout(x, rate, seeds, layer):
    """App. B.  dropout.dropout, with the same masks.  Back: dy -> dx.  Keeps: seeds (B,), 64-bit integers on the device."""
    seeds, n = seeds.view(np.uint64), x[0].size
    blocks = -(-n // 16)

    def masked(x):
        x = dense(x)
        y = np.empty_like(x)
        elementwise("dropout", len(x) * blocks, x, y, seeds, np.uint64(layer), len(x), n, blocks, round(rate * 2**16),
                    1 / (1 - rate))
        return y

    return masked(x), masked
