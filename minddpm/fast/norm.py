"""App. B.  Group normalisation by matrix products, and with swish after it in few passes over memory."""

from functools import cache

import numpy as np

from minddpm.fast.matmul import column_sums

BLOCK = 2**19               # numbers that are worked on at a time, so that they stay in the cache between the passes


def group_norm(p, x, groups, eps=1e-6):
    """App. B.  layers.group_norm, its means by column_sums.  Back: dy -> dx, dp.  Keeps: x̂, r (B,1,1,C)."""
    gamma, beta = p["weight"], p["bias"]
    B, H, W, C = x.shape
    size = C // groups

    def mean(a):
        """(B,H,W,C) -> (B,1,1,C): at each channel the mean over its group and all pixels."""
        sums = column_sums(a.reshape(B, H * W, C)).reshape(B, groups, size).sum(axis=-1)
        return np.repeat(sums / (H * W * size), size, axis=-1).reshape(B, 1, 1, C)

    centred = x - mean(x)
    r = 1 / np.sqrt(mean(centred * centred) + eps)
    xhat = centred * r
    y = xhat * gamma + beta

    def group_norm_back(dy):
        dxhat = dy * gamma
        dx = r * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))
        dgamma = column_sums((dy * xhat).reshape(-1, C))
        return dx, {"weight": dgamma, "bias": column_sums(dy.reshape(-1, C))}

    return y, group_norm_back


def norm_swish(p, x, groups, eps=1e-6):
    """App. B.  layers.norm_swish: y = swish(group_norm(p, x)).  weight γ (C,), bias β (C,), x (B,H,W,C) -> y (B,H,W,C).

    With c the mean of one channel of one image and z = x − c, the group's mean m and variance u come without cancellation:

        d = c − m        u = mean(z²) + mean(d²)        r = 1/√(u + eps)        x̂ = (z + d) r

    and with a = γ r the whole layer is one scaling and shift of each channel and a tanh, since 1/(1 + e^−n) = (1 + tanh n/2)/2:

        n = a z + (a d + β)          h = n/2          f = 1 + tanh h          y = h f
    f is rounded at 1: y has an absolute error of |n| 6e-8 in float32, no small relative one where n is far below 0.
    Back:  see the derivation.      Keeps: x, y, f.
    """
    gamma, beta = p["weight"], p["bias"]
    B, H, W, C = x.shape
    y, f = np.empty_like(x, order="C"), np.empty_like(x, order="C")
    images = max(1, round(BLOCK / (H * W * C)))
    blocks = [slice(b, b + images) for b in range(0, B, images)]
    average, (group_average, off_average) = np.full(H * W, 1 / (H * W), x.dtype), _averages(C, groups, x.dtype)

    def rows(a):
        """(b,H,W,C) -> (b,H,W·C), whose inner loop is longer than over C alone."""
        return a.reshape(-1, H, W * C)

    def along_rows(v):
        """(b,C) -> (b,1,W·C): beside an image's rows."""
        return v[:, None].repeat(W, axis=1).reshape(-1, 1, W * C)

    def channel_mean(a):
        return average @ a.reshape(-1, H * W, C)

    statistics = []
    for block in blocks:
        c = channel_mean(x[block])
        h, f_rows = rows(y[block]), rows(f[block])                          # y's memory holds z, then h, then y
        np.subtract(rows(x[block]), along_rows(c), out=h)                   # z
        d = c @ off_average
        r = 1 / np.sqrt((channel_mean(np.multiply(h, h, out=f_rows)) + d * d) @ group_average + eps)
        half_a = gamma / 2 * r
        h *= along_rows(half_a)
        h += along_rows(half_a * d + beta / 2)                              # h
        np.tanh(h, out=f_rows)
        f_rows += 1
        h *= f_rows                                                         # y
        statistics.append((c, d, r))

    # f' = 1 − tanh² = f (2 − f), so 2 swish' = f + h f' = f + y (2 − f), and 2 dn = dy [ f + y (2 − f) ].
    # Two sums over the pixels give the rest, Σ dn and Σ dn x̂ = r (Σ dn z + d Σ dn): they are dβ and dγ, and with group_norm's
    #       dx = r [ γ dn − mean(γ dn) − x̂ mean(γ dn x̂) ]
    # dx = a dn + q z + q d − r mean(γ dn),   q = −r² mean(γ dn x̂):  again a scaling and a shift for each channel.
    def norm_swish_back(dy):
        dx, dgamma, dbeta = np.empty_like(x, order="C"), np.zeros_like(gamma), np.zeros_like(beta)
        for block, (c, d, r) in zip(blocks, statistics, strict=True):
            dn = 2 - rows(f[block])
            dn *= rows(y[block])
            dn += rows(f[block])
            dn *= rows(dy[block])                                           # 2 dn
            z = rows(x[block]) - along_rows(c)
            mean = channel_mean(dn) / 2
            mean_xhat = r * (channel_mean(np.multiply(dn, z, out=rows(dx[block]))) / 2 + d * mean)
            dgamma += H * W * mean_xhat.sum(axis=0)
            dbeta += H * W * mean.sum(axis=0)
            q = -r * r * ((gamma * mean_xhat) @ group_average)
            dn *= along_rows(gamma / 2 * r)
            z *= along_rows(q)
            dn += z
            np.add(dn, along_rows(q * d - r * ((gamma * mean) @ group_average)), out=rows(dx[block]))
        return dx, {"weight": dgamma, "bias": dbeta}

    return y, norm_swish_back


@cache
def _averages(C, groups, dtype):
    """Two (C,C) matrices: from a number for each channel to the mean of its group's, and to the number minus that mean."""
    size = C // groups
    average = np.kron(np.eye(groups), np.full((size, size), 1 / size))
    return average.astype(dtype), (np.eye(C) - average).astype(dtype)
