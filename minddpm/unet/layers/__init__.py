"""App. B.  The network's layers, one file each: a forward pass and its hand-derived gradient side by side, as a pullback.

    y, back = layer(p, x, ...)          dx, dp = back(dy)          (dx alone where the layer has no parameters)

B batch, H W height and width, C channels in, N channels out; arrays are NHWC, convolution weights HWIO, dense weights
(in, out).  A layer writes to none of its arguments, `back` may be called more than once, and `dp` has exactly p's keys.
Write ⟨a, b⟩ for the sum of the elementwise products.  `back` computes the adjoint of the layer's derivative J: the dx for
which ⟨dy, J v⟩ = ⟨dx, v⟩ for every v; tests/gradcheck.py tests this very equation.

This package is the default of every argument `ops`: an object with these functions as its attributes.
"""

from minddpm.unet.layers.attention import attention
from minddpm.unet.layers.conv import conv2d, conv2d_plus
from minddpm.unet.layers.dropout import dropout
from minddpm.unet.layers.embedding import timestep_embedding
from minddpm.unet.layers.linear import linear
from minddpm.unet.layers.norm import group_norm, norm_swish
from minddpm.unet.layers.swish import swish
from minddpm.unet.layers.upsample import upsample

__all__ = ["attention", "conv2d", "conv2d_plus", "dropout", "group_norm", "linear", "norm_swish", "swish", "timestep_embedding",
           "upsample"]
