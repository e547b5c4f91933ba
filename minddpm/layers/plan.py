"""Which algorithm computes what: the plan table for 3×3 convolutions, the weights made ready for it, and fused steps.

A layer's name here stands for the plain layer, the one to read, and on a GPU for its kernels in cuda.py.
"""

from minddpm import backend, tree
from minddpm.layers import cuda
from minddpm.layers.attention import attention as plain_attention
from minddpm.layers.conv import conv2d as plain_conv2d
from minddpm.layers.dropout import dropout as plain_dropout
from minddpm.layers.embedding import timestep_embedding as plain_timestep_embedding
from minddpm.layers.norm import group_norm as plain_group_norm
from minddpm.layers.swish import swish as plain_swish
from minddpm.layers.winograd import transform, winograd


def attention(q, k, v):
    """App. B.  Softmax attention with one head, see attention.py."""
    return (cuda.attention if cuda.fits(q) else plain_attention)(q, k, v)


def conv2d(p, x, stride=1):
    """App. B.  k×k convolution, see conv.py."""
    return (cuda.conv2d if cuda.fits(x, p["weight"]) else plain_conv2d)(p, x, stride)


def dropout(x, rate, seeds, layer):
    """App. B.  Dropout, see dropout.py."""
    return (cuda.dropout if rate and cuda.fits(x) and backend.is_cuda(seeds) else plain_dropout)(x, rate, seeds, layer)


def group_norm(p, x, groups, eps=1e-6):
    """App. B.  Group normalisation, see norm.py."""
    return (cuda.group_norm if cuda.fits(x, p["weight"]) else plain_group_norm)(p, x, groups, eps)


def swish(x):
    """App. B.  The nonlinearity, see swish.py."""
    return (cuda.swish if cuda.fits(x) else plain_swish)(x)


def timestep_embedding(t, dim, like):
    """App. B.  The Transformer's sinusoidal position embedding of the timestep, see embedding.py."""
    return (cuda.timestep_embedding if cuda.fits(like) else plain_timestep_embedding)(t, dim, like)


def conv3x3(p, x):
    """App. B.  3×3 convolution, stride 1, as conv2d, which it is where p holds no transformed weight (see `prepare`)."""
    return winograd(p, x) if "winograd" in p else conv2d(p, x)


def norm_swish(p, x, groups, eps=1e-6):
    """App. B.  y = swish(group_norm(p, x)), which always stand together.  x (B,H,W,C) -> y (B,H,W,C).  Back: dy -> dx, dp."""
    if cuda.fits(x, p["weight"]):
        return cuda.group_norm(p, x, groups, eps, swish=True)
    n, norm_back = plain_group_norm(p, x, groups, eps)
    y, swish_back = plain_swish(n)

    def norm_swish_back(dy):
        return norm_back(swish_back(dy))

    return y, norm_swish_back


def tile_size(side, C, N):
    """m of F(m×m, 3×3), or 0 for the plain convolution, on side×side images with C channels in and N out.

    Measured on two x86-64 cores, forward and backward: F(4×4) takes half the time of the plain layer from 8×8 up.  Smaller
    images have few tiles for one weight, and with many channels transforming its gradient costs more than it saves.
    """
    if min(C, N) < 16:
        return 0
    return 4 if side >= 8 or max(C, N) <= 128 else 0


def prepare(params, side):
    """A U-Net's parameters for side×side images -> the same tree, with the transformed weight beside the plain one wherever
    the table says so.

    The network computes the same with either tree, to rounding, and its gradient has the plain tree's keys.  To be made
    again after each change of the weights.  On a GPU the plain layer, whose few large kernels suit it, is the fast one.
    """
    if backend.is_cuda(params["conv_in"]["weight"]):
        return params
    ready = tree.map(lambda a: a, params)
    bottom = len(ready["down_blocks"]) - 1
    for level, block in enumerate(ready["down_blocks"]):
        _prepare_block(block, side >> level)
    _prepare_block(ready["mid_block"], side >> bottom)
    for level, block in zip(range(bottom, -1, -1), ready["up_blocks"], strict=True):
        _prepare_block(block, side >> level)
        for upsampler in block.get("upsamplers", []):
            _prepare_conv(upsampler["conv"], 2 * (side >> level))
    return ready


def _prepare_block(block, side):
    for resnet in block["resnets"]:
        _prepare_conv(resnet["conv1"], side)
        _prepare_conv(resnet["conv2"], side)


def _prepare_conv(p, side):
    if m := tile_size(side, *p["weight"].shape[2:]):
        p["winograd"] = transform(p["weight"], m)
