"""App. B.  Convolution as a matrix product over patches (im2col); its gradient is the adjoint of each of the two steps."""

import numpy as np


def conv2d(p, x, stride=1):
    """App. B.  k×k convolution.  weight (k,k,C,N) with k odd, bias (N,), x (B,H,W,C) -> y (B,H/stride,W/stride,N).

        y[b,h,w,n] = Σ_ijc  x[b, stride·h + i − before, stride·w + j − before, c] W[i,j,c,n]  +  bias[n],      x = 0 outside

    Both sizes are padded by k − stride (k = 1: 0), `before` is the smaller half: TensorFlow's SAME where stride divides the size.
    stride 1 pads (k−1)/2 on all four sides; k = 3 with stride 2 pads 1 at the bottom and right only, which the released
    weights were trained with (padding=1 would shift every feature by half a pixel).
    Back:  with P = im2col(x) of shape (B·H'·W', k·k·C) and W as a (k·k·C, N) matrix, y = P W + b, so as for a dense layer
           dW = Pᵀ dy,  db = Σ dy,  dP = dy Wᵀ.  P holds each pixel of x once for every patch it is part of, so its adjoint
           dx = col2im(dP) adds up, for each pixel, the gradients of its copies.
    Keeps: x.  P is k·k times as large and is made again.
    """
    w, b = p["weight"], p["bias"]
    k, _, C, N = w.shape
    total = max(k - stride, 0)
    pad = (total // 2, total - total // 2)
    matrix = w.reshape(k * k * C, N)

    patches = im2col(x, k, stride, pad)                                     # (B,H',W',kkC)
    y = patches.reshape(-1, k * k * C) @ matrix + b
    shape = (*patches.shape[:3], N)

    def conv2d_back(dy):
        rows = dy.reshape(-1, N)
        dw = im2col(x, k, stride, pad).reshape(-1, k * k * C).T @ rows
        db = rows.sum(axis=0)
        dpatches = rows @ matrix.T
        dx = col2im(dpatches.reshape(*shape[:3], k * k * C), x.shape, k, stride, pad)
        return dx, {"weight": dw.reshape(w.shape), "bias": db}

    return y.reshape(shape), conv2d_back


def conv2d_plus(p, x, v):
    """App. B.  conv2d(p, x) + v: the vector v (B,N) of an image is added at each of its pixels.  x (B,H,W,C) -> y (B,H,W,N).

    Back: dy -> dx, dv, dp, where dv is the sum of dy over an image's pixels.      Keeps: x.
    """
    y, conv_back = conv2d(p, x)

    def conv2d_plus_back(dy):
        dx, dp = conv_back(dy)
        dv = dy.sum(axis=(1, 2))
        return dx, dv, dp

    return y + v[:, None, None, :], conv2d_plus_back


def im2col(x, k, stride, pad):
    """(B,H,W,C) -> (B,H',W',k·k·C): the k×k patch under each output pixel, as one row in the order (i, j, c)."""
    padded = zero_pad(x, pad[0], x.shape[1] + sum(pad), x.shape[2] + sum(pad))
    return np.concatenate([padded[tap] for tap in _taps(padded.shape, k, stride)], axis=-1)


def zero_pad(x, before, height, width):
    """(B,H,W,C) -> (B,height,width,C): x with zeros around it, `before` of them above and to the left."""
    B, H, W, C = x.shape
    y = np.zeros((B, height, width, C), x.dtype, like=x)
    y[:, before:before + H, before:before + W] = x
    return y


def col2im(dpatches, shape, k, stride, pad):
    """The adjoint of `im2col`: (B,H',W',k·k·C) -> (B,H,W,C) = shape, each pixel the sum of its copies' gradients."""
    B, H, W, C = shape
    dpadded = np.zeros_like(dpatches, shape=(B, H + sum(pad), W + sum(pad), C))
    for n, tap in enumerate(_taps(dpadded.shape, k, stride)):
        dpadded[tap] += dpatches[..., n * C:(n + 1) * C]
    return dpadded[:, pad[0]:pad[0] + H, pad[0]:pad[0] + W]


def _taps(shape, k, stride):
    """For each kernel element (i, j), the slice of the padded image that it multiplies."""
    _, H, W, _ = shape
    return [np.s_[:, i:H - k + i + 1:stride, j:W - k + j + 1:stride] for i in range(k) for j in range(k)]
