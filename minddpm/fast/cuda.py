"""App. B.  The layers on a GPU, where a launch costs more than its arithmetic: a kernel of kernels.cu for many array calls.

Each function computes what the function of the same name in unet.layers does, to rounding, and is that function for arrays
that the kernels do not take.  None waits for the GPU.  OPS, at the end, has all layers.
"""

import functools
import math
from importlib import resources
from types import SimpleNamespace

import numpy as np

from minddpm.fast.device import cupy, is_cuda
from minddpm.fast.matmul import conv1x1
from minddpm.unet import layers

THREADS = 256               # of a block
MAX_THREADS = 1024          # of a block, as in kernels.cu
MAX_BLOCKS = 4096           # of a grid: the kernels' loops stride over what is left
WORKSPACE = 256 * 2**20     # bytes of patches that a convolution makes at a time


def fits(*arrays):
    """Whether the kernels take these arrays: CuPy's, float32, of fewer than 2³¹ numbers."""
    return all(is_cuda(a) and a.dtype == np.float32 and a.size < 2**31 for a in arrays)


def where_it_fits(kernel):
    """The layer `kernel` where `fits` is true of all its float arrays, elsewhere the plain layer of the same name."""
    plain = getattr(layers, kernel.__name__)

    @functools.wraps(kernel)
    def layer(*args, **options):
        return (kernel if fits(*_float_arrays(*args, *options.values())) else plain)(*args, **options)

    return layer


def _float_arrays(*args):
    """The float arrays among a layer's arguments, with those of its parameters: all arrays but t and dropout's seeds."""
    for a in args:
        if isinstance(a, dict):
            yield from a.values()
        elif hasattr(a, "dtype") and a.dtype.kind == "f":
            yield a


@functools.cache
def module():
    """kernels.cu, which CuPy compiles for the GPU at hand and keeps in its own cache on disk."""
    source = resources.files("minddpm.fast").joinpath("kernels.cu").read_text(encoding="utf-8")
    return cupy().RawModule(code=source)


def launch(name, blocks, threads, *args):
    """Run a kernel.  A Python int becomes C's int, a Python float C's float; CuPy passes arrays by address."""
    args = tuple(np.int32(a) if isinstance(a, int) else np.float32(a) if isinstance(a, float) else a for a in args)
    module().get_function(name)((max(1, min(blocks, MAX_BLOCKS)),), (threads,), args)


def elementwise(name, n, *args):
    """Run a kernel that has work for n threads."""
    launch(name, -(-n // THREADS), THREADS, *args)


def contiguous(a):
    """The array itself, or a C-contiguous copy of it."""
    return np.ascontiguousarray(a, like=a)


@where_it_fits
def conv2d(p, x, stride=1):
    """App. B.  layers.conv2d: patches of at most WORKSPACE bytes at a time, their product with the weight, and both adjoints.

    Back: dy -> dx, dp.  Keeps: x.
    """
    w, x = p["weight"], contiguous(x)
    k, _, C, N = w.shape
    if k == stride == 1:
        return conv1x1(p, x, layers.linear)
    B, H, W, _ = x.shape
    total = max(k - stride, 0)
    OH, OW = ((size + total - k) // stride + 1 for size in (H, W))
    sizes = (H, W, C, OH, OW, k, stride, total // 2)
    pixels, taps = OH * OW, k * k * C
    images = max(1, WORKSPACE // (4 * pixels * taps))
    parts = [slice(b, min(b + images, B)) for b in range(0, B, images)]
    matrix = w.reshape(taps, N)

    def im2col(part):
        patches = np.empty_like(x, shape=((part.stop - part.start) * pixels, taps))
        elementwise("im2col", patches.size, x[part], patches, patches.size, *sizes)
        return patches

    def rows_of(part, a):
        """The rows of a (B·OH·OW, N) that belong to the images of a part."""
        return a[part.start * pixels:part.stop * pixels]

    y = np.empty_like(x, shape=(B * pixels, N))
    for part in parts:
        np.matmul(im2col(part), matrix, out=rows_of(part, y))
    y += p["bias"]

    def conv2d_back(dy):
        rows, dx, dw = contiguous(dy).reshape(B * pixels, N), np.empty_like(x), None
        for part in parts:
            dw_part = im2col(part).T @ rows_of(part, rows)
            dw = dw_part if dw is None else dw + dw_part
            dpatches = rows_of(part, rows) @ matrix.T
            elementwise("col2im", dx[part].size, dpatches, dx[part], dx[part].size, *sizes)
        return dx, {"weight": dw.reshape(w.shape), "bias": rows.sum(axis=0)}

    return y.reshape(B, OH, OW, N), conv2d_back


@where_it_fits
def conv2d_plus(p, x, v):
    """App. B.  layers.conv2d_plus.  Back: dy -> dx, dv, dp.  Keeps: x."""
    y, conv_back = conv2d(p, x)
    y = y + v[:, None, None]

    def conv2d_plus_back(dy):
        dx, dp = conv_back(dy)
        return dx, dy.sum(axis=(1, 2)), dp

    return y, conv2d_plus_back


@where_it_fits
def group_norm(p, x, groups, eps=1e-6):
    """App. B.  layers.group_norm.  Back: dy -> dx, dp.  Keeps: x, the mean and r."""
    return _norm(p, x, groups, eps, swish=False)


@where_it_fits
def norm_swish(p, x, groups, eps=1e-6):
    """App. B.  layers.norm_swish.  Back: dy -> dx, dp.  Keeps: x, the mean and r."""
    return _norm(p, x, groups, eps, swish=True)


def _norm(p, x, groups, eps, swish):
    """norm_swish, or without swish group_norm; the plain layer where a group has more channels than a block has threads."""
    if x.shape[-1] // groups > MAX_THREADS:
        return (layers.norm_swish if swish else layers.group_norm)(p, x, groups, eps)
    gamma, beta, x = p["weight"], p["bias"], contiguous(x)
    B, H, W, C = x.shape
    size, sizes = C // groups, (B, H * W, C, groups)
    threads = max(1, THREADS // size) * size
    y, (mean, r) = np.empty_like(x), np.empty_like(x, shape=(2, B, groups))
    launch("norm_forward", B * groups, threads, x, gamma, beta, y, mean, r, *sizes, eps, swish)

    def _norm_back(dy):
        dx, sums = np.empty_like(x), np.empty_like(x, shape=(2, B, C))
        launch("norm_backward", B * groups, threads, contiguous(dy), x, gamma, beta, mean, r, dx, sums, *sizes, swish)
        dgamma, dbeta = sums.sum(axis=1)
        return dx, {"weight": dgamma, "bias": dbeta}

    return y, _norm_back


@where_it_fits
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


@where_it_fits
def timestep_embedding(t, dim, like):
    """App. B.  layers.timestep_embedding: t (B,) -> (B, dim)."""
    t, half = np.asarray(t, dtype=np.float64, like=like), dim // 2
    y = np.empty_like(like, shape=(len(t), dim))
    elementwise("timestep_embedding", len(t) * half, t, y, len(t) * half, half)
    return y


@where_it_fits
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
        launch("softmax_backward", rows, threads, dS, P, rows, T, scale)        # in place: it was dP
        dq = np.matmul(dS, k)
        dk = np.matmul(dS.swapaxes(1, 2), q)
        return dq, dk, dv

    return o, attention_back


@where_it_fits
def dropout(x, rate, seeds, layer):
    """App. B.  layers.dropout, with the same masks.  Back: dy -> dx.  Keeps: seeds (B,)."""
    seeds, n = np.asarray(seeds, dtype=np.uint64, like=x), x[0].size
    blocks = -(-n // 16)

    def masked(x):
        x = contiguous(x)
        y = np.empty_like(x)
        elementwise("dropout", len(x) * blocks, x, y, seeds, np.uint64(layer), len(x), n, blocks, round(rate * 2**16),
                    1 / (1 - rate))
        return y

    return masked(x), masked


OPS = SimpleNamespace(attention=attention, conv2d=conv2d, conv2d_plus=conv2d_plus, dropout=dropout, group_norm=group_norm,
                      linear=layers.linear, norm_swish=norm_swish, swish=swish, timestep_embedding=timestep_embedding,
                      upsample=layers.upsample)
