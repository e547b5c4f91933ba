"""App. B.  The convolution to few channels, conv_out's: the product first and the patches afterwards, which are then thin."""

from minddpm.fast.matmul import rows_times, transposed_times
from minddpm.unet.layers.conv import col2im, im2col
from minddpm.unet.layers.linear import column_sums


def thin_conv2d(p, x):
    """App. B.  conv2d(p, x) with stride 1, for N much smaller than C.  weight (k,k,C,N), bias (N,), x (B,H,W,C) -> y (B,H,W,N).

    A pixel gives each of the k·k pixels around it a share of its own, Z[b,h,w,ij] = x[b,h,w] W[k−1−i, k−1−j]; y adds them up:

        Z = x W̃,   W̃ (C, k·k·N) of W turned by 180°        y = col2im(Z) + bias
    Back:  dZ = im2col(dy),  dW̃ = xᵀ dZ,  dx = dZ W̃ᵀ.  Patches of N numbers a pixel instead of C, forward and back.
    Keeps: x.
    """
    w = p["weight"]
    k, _, C, N = w.shape
    B, H, W, _ = x.shape
    pad = (k // 2, k // 2)
    rows, turned = x.reshape(-1, C), w[::-1, ::-1].transpose(2, 0, 1, 3).reshape(C, k * k * N)
    y = col2im(rows_times(rows, turned).reshape(B, H, W, k * k * N), (B, H, W, N), k, 1, pad) + p["bias"]

    def thin_conv2d_back(dy):
        dz = im2col(dy, k, 1, pad).reshape(-1, k * k * N)
        dturned = transposed_times(rows, dz).reshape(C, k, k, N)
        dw = dturned.transpose(1, 2, 0, 3)[::-1, ::-1]
        return rows_times(dz, turned.T).reshape(x.shape), {"weight": dw, "bias": column_sums(dy.reshape(-1, N))}

    return y, thin_conv2d_back
