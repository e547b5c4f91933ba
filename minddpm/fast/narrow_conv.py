"""App. B.  The convolution to few channels, conv_out's: the product first, then patches of few channels."""

from minddpm.fast.matmul import column_sums, matmul_tall, matmul_tn
from minddpm.unet.layers.conv import col2im, im2col


def narrow_conv2d(p, x):
    """App. B.  layers.conv2d(p, x) for N much smaller than C.  weight (k,k,C,N), bias (N,), x (B,H,W,C) -> y (B,H,W,N).

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
    y = col2im(matmul_tall(rows, turned).reshape(B, H, W, k * k * N), (B, H, W, N), k, 1, pad) + p["bias"]

    def narrow_conv2d_back(dy):
        dz = im2col(dy, k, 1, pad).reshape(-1, k * k * N)
        dturned = matmul_tn(rows, dz).reshape(C, k, k, N)
        dw = dturned.transpose(1, 2, 0, 3)[::-1, ::-1]
        return matmul_tall(dz, turned.T).reshape(x.shape), {"weight": dw, "bias": column_sums(dy.reshape(-1, N))}

    return y, narrow_conv2d_back
