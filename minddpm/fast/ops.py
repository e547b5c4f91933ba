"""Which algorithm computes each layer: objects with the functions of unet.layers, faster, to be passed as `ops`."""

import os
from threading import Lock

from minddpm.fast import cuda, matmul, norm
from minddpm.fast.device import is_cuda
from minddpm.fast.narrow_conv import narrow_conv2d
from minddpm.fast.winograd import transform, winograd, winograd_plus
from minddpm.unet import layers


def ops_for(params, image_size, training=False, map=map):
    """The fastest layers for these parameters: CpuOps, or cuda.OPS if they are on a GPU.

    The parameters, a U-Net's, must not change while the result is used.  image_size: the side of its images.  training: whether
    gradients are wanted.  map: applies a function to all weights, e.g. Workers.map.  The plain layers where `plain_only` is true.
    """
    if plain_only():
        return layers
    return cuda.OPS if is_cuda(params["conv_in"]["weight"]) else CpuOps(params, image_size, training, map)


def plain_only():
    """Whether the environment variable MINDDPM_KERNELS is 0, which turns fast layers and CUDA kernels off, for comparisons."""
    return os.environ.get("MINDDPM_KERNELS") == "0"


class CpuOps:
    """The functions of unet.layers for one value of a U-Net's parameters, whose 3×3 weights it holds transformed as well."""

    linear, group_norm, norm_swish = map(staticmethod, (matmul.linear, norm.group_norm, norm.norm_swish))
    attention, dropout, swish = map(staticmethod, (layers.attention, layers.dropout, layers.swish))
    upsample, timestep_embedding = map(staticmethod, (layers.upsample, layers.timestep_embedding))

    def __init__(self, params, image_size, training=False, map=map):
        weights = [(w, m) for w, side in _weights_3x3(params, image_size) if (m := tile_size(side, *w.shape[2:]))]
        self._params = params                       # alive, so that an id stays that weight's
        self._tiles = {id(w): m for w, m in weights}
        self._transformed = dict(map(lambda w_m: (id(w_m[0]), transform(*w_m, training)), weights)) if training else {}
        self._lock = Lock()                         # so that two threads do not transform one weight twice

    def _transform(self, w):
        """The weight's Transformed, computed when it is first used; None where Winograd's convolution is not the fastest."""
        with self._lock:
            if id(w) not in self._transformed:
                m = self._tiles.get(id(w))
                self._transformed[id(w)] = transform(w, m) if m else None
            return self._transformed[id(w)]

    def conv2d(self, p, x, stride=1):
        """App. B.  layers.conv2d, by the algorithm that is fastest for this weight."""
        k, _, C, N = p["weight"].shape
        if k == 1:
            return matmul.conv1x1(p, x)
        if stride == 1 and (transformed := self._transform(p["weight"])):
            return winograd(p, x, transformed)
        if stride == 1 and 4 * N <= C:
            return narrow_conv2d(p, x)
        return layers.conv2d(p, x, stride)

    def conv2d_plus(self, p, x, v):
        """App. B.  layers.conv2d_plus, likewise."""
        transformed = self._transform(p["weight"])
        return winograd_plus(p, x, v, transformed) if transformed else layers.conv2d_plus(p, x, v)


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


def _weights_3x3(p, image_size):
    """(weight, image side) of every 3×3 convolution of stride 1 inside the blocks."""
    sides = [image_size >> level for level in range(len(p["down_blocks"]))]
    levels = zip([*p["down_blocks"], p["mid_block"], *p["up_blocks"]], [*sides, sides[-1], *reversed(sides)], strict=True)
    for level, side in levels:
        for resnet in level["resnets"]:
            yield resnet["conv1"]["weight"], side
            yield resnet["conv2"]["weight"], side
        for upsampler in level.get("upsamplers", []):
            yield upsampler["conv"]["weight"], 2 * side
