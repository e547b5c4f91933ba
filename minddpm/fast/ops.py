"""Which algorithm computes what: the plan table for 3×3 convolutions, the weights made ready for it, and fused steps.

Every fast form stands beside a plain one that is the one to read.  A layer's name here stands for the plain layer, and on a GPU
for its kernels in cuda.py.  The environment variable MINDDPM_KERNELS=0 switches all fast forms off, see backend.fast.
"""

from functools import partial

import numpy as np

from minddpm import device as backend
from minddpm import tree
from minddpm.fast import cuda
from minddpm.fast.matmul import linear_in_pieces
from minddpm.fast.narrow_conv import thin_conv2d
from minddpm.fast.norm_swish import fused_norm_swish
from minddpm.fast.winograd import transform, transform_both, winograd, winograd_shifted
from minddpm.unet.layers.attention import attention as plain_attention
from minddpm.unet.layers.conv import conv1x1 as plain_conv1x1
from minddpm.unet.layers.conv import conv2d as plain_conv2d
from minddpm.unet.layers.dropout import dropout as plain_dropout
from minddpm.unet.layers.embedding import timestep_embedding as plain_timestep_embedding
from minddpm.unet.layers.linear import linear as plain_linear
from minddpm.unet.layers.norm import group_norm as plain_group_norm
from minddpm.unet.layers.swish import swish as plain_swish
from minddpm.unet.layers.upsample import upsample  # noqa: F401


def attention(q, k, v):
    """App. B.  Softmax attention with one head, see attention.py."""
    return (cuda.attention if cuda.fits(q) else plain_attention)(q, k, v)


def conv2d(p, x, stride=1):
    """App. B.  k×k convolution, see conv.py; to few channels, see thin.py."""
    if cuda.fits(x, p["weight"]):
        return cuda.conv2d(p, x, stride)
    C, N = p["weight"].shape[2:]
    if stride == 1 and 4 * N <= C and backend.fast() and not backend.is_cuda(x):
        return thin_conv2d(p, x)
    return plain_conv2d(p, x, stride)


def dropout(x, rate, seeds, layer):
    """App. B.  Dropout, see dropout.py."""
    return (cuda.dropout if rate and cuda.fits(x) and backend.is_cuda(seeds) else plain_dropout)(x, rate, seeds, layer)


def group_norm(p, x, groups, eps=1e-6):
    """App. B.  Group normalisation, see norm.py."""
    return (cuda.group_norm if cuda.norm_fits(p, x, groups) else plain_group_norm)(p, x, groups, eps)


def swish(x):
    """App. B.  The nonlinearity, see swish.py."""
    return (cuda.swish if cuda.fits(x) else plain_swish)(x)


def timestep_embedding(t, dim, like):
    """App. B.  The Transformer's sinusoidal position embedding of the timestep, see embedding.py."""
    return (cuda.timestep_embedding if cuda.fits(like) else plain_timestep_embedding)(t, dim, like)


def conv3x3(p, x):
    """App. B.  3×3 convolution, stride 1, as conv2d, which it is where p holds no transformed weight (see `prepare`)."""
    return winograd(p, x, keep="keep_points" in p) if "winograd" in p else conv2d(p, x)


def conv3x3_shifted(p, x, v):
    """App. B.  y = conv3x3(p, x) + v, v (B,N) at every pixel of its image.  Back: dy -> dx, dv, dp."""
    if "winograd" in p:
        return winograd_shifted(p, x, v, keep="keep_points" in p)
    h, conv_back = conv2d(p, x)

    def conv3x3_shifted_back(dy):
        dx, dp = conv_back(dy)
        return dx, dy.sum(axis=(1, 2)), dp

    return h + v[:, None, None, :], conv3x3_shifted_back


def conv1x1(p, x):
    """App. B.  1×1 convolution, see conv.py."""
    return plain_conv1x1(p, x, linear)


def linear(p, x):
    """App. B.  Dense layer, see linear.py."""
    return (linear_in_pieces if backend.fast() and not backend.is_cuda(x) else plain_linear)(p, x)


def norm_swish(p, x, groups, eps=1e-6):
    """App. B.  y = swish(group_norm(p, x)), which always stand together.  x (B,H,W,C) -> y (B,H,W,C).  Back: dy -> dx, dp."""
    if cuda.norm_fits(p, x, groups):
        return cuda.group_norm(p, x, groups, eps, swish=True)
    one = plain_norm_swish if backend.is_cuda(x) or not backend.fast() else fused_norm_swish
    return one(p, x, groups, eps)


def plain_norm_swish(p, x, groups, eps=1e-6):
    """App. B.  The two layers one after the other."""
    n, norm_back = plain_group_norm(p, x, groups, eps)
    y, swish_back = plain_swish(n)

    def plain_norm_swish_back(dy):
        return norm_back(swish_back(dy))

    return y, plain_norm_swish_back


def tile_size(side, C, N):
    """m of F(m×m, 3×3), or 0 for the plain convolution, on side×side images with C channels in and N out.

    Measured on two x86-64 cores, forward and backward: F(4×4) takes half the time of the plain layer.  Small images have few
    tiles for one weight, and with many channels transforming it costs more than it saves: all of it at 4×4, half at 8×8.
    """
    if min(C, N) < 16:
        return 0
    if max(C, N) <= 128 or side > 8:
        return 4
    return 2 if side > 4 else 0


def prepare(params, side, each=map, training=False):
    """A U-Net's parameters for side×side images -> the same tree, with the transformed weight beside the plain one wherever
    the table says so.

    The network computes the same with either tree, to rounding, and its gradient has the plain tree's keys.  To be made
    again after each change of the weights.  each: how to go over the convolutions, Workers.map with several threads.
    training: narrow ones also get the transposed weight, and keep for the gradient what it would have to compute again.
    On a GPU the plain layer, whose few large kernels suit it, is the fast one.
    """
    if backend.is_cuda(params["conv_in"]["weight"]) or not backend.fast():
        return params
    ready = tree.map(lambda a: a, params)
    list(each(partial(_prepare_conv, training=training), _convs(ready, side)))
    return ready


def _convs(p, side):
    """(parameters, image side) of every 3×3 convolution of stride 1 inside the blocks."""
    sides = [side >> level for level in range(len(p["down_blocks"]))]
    blocks = zip([*p["down_blocks"], p["mid_block"], *p["up_blocks"]], [*sides, sides[-1], *reversed(sides)], strict=True)
    for block, block_side in blocks:
        for resnet in block["resnets"]:
            yield resnet["conv1"], block_side
            yield resnet["conv2"], block_side
        for upsampler in block.get("upsamplers", []):
            yield upsampler["conv"], 2 * block_side


def _prepare_conv(conv_and_side, training):
    p, side = conv_and_side
    C, N = p["weight"].shape[2:]
    m = tile_size(side, C, N)
    if not m:
        return
    # Points that are kept, and the transpose, spare the gradient time: for wide convolutions little, and at much memory.
    if training and max(C, N) <= 128:
        p["winograd"], p["winograd_transposed"] = transform_both(p["weight"], m)
    else:
        p["winograd"] = transform(p["weight"], m)
    if training and C <= 96:
        p["keep_points"] = np.bool_(True)
