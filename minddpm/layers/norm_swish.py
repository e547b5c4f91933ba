"""App. B.  Group normalisation and swish in one layer and few passes over memory: what norm.py and swish.py compute."""

import numpy as np

BLOCK = 2**19               # numbers that are worked on at a time, so that they stay in the cache between the passes


def fused_norm_swish(p, x, groups, eps=1e-6):
    """App. B.  y = swish(group_norm(p, x)).  weight γ (C,), bias β (C,), x (B,H,W,C) -> y (B,H,W,C).

    With c the mean of one channel of one image and z = x − c, the group's mean m and variance u come without cancellation:

        d = c − m        u = mean(z²) + mean(d²)        r = 1/√(u + eps)        x̂ = (z + d) r

    and with a = γ r the whole layer is one scaling and shift of each channel, an exponential and a division:

        n = a z + (a d + β)          f = −(1 + e^−n)          y = −n / f
    Back:  see the derivation.      Keeps: x, y, f.
    """
    gamma, beta = p["weight"], p["bias"]
    B, H, W, C = x.shape
    y, f = np.empty_like(x, order="C"), np.empty_like(x, order="C")
    images = max(1, round(BLOCK / (H * W * C)))
    blocks = [slice(b, b + images) for b in range(0, B, images)]

    def along_rows(v):
        """(b,C) -> (b,1,W·C): beside an image's rows, whose inner loop is longer than over C alone."""
        return np.tile(v, W)[:, None]

    def rows(a):
        return a.reshape(-1, H, W * C)

    def channel_mean(a):
        return np.matmul(np.ones((1, H * W), x.dtype), a.reshape(-1, H * W, C))[:, 0] / (H * W)

    def group_mean(v):
        """(b,C) means of channels -> (b,C) means of their groups."""
        return np.repeat(v.reshape(-1, groups, C // groups).mean(axis=-1), C // groups, axis=-1)

    statistics = []
    with np.errstate(over="ignore"):                # e^−n may reach ∞, where y = 0 is right
        for block in blocks:
            c = channel_mean(x[block])
            z = rows(x[block]) - along_rows(c)
            d = c - group_mean(c)
            r = 1 / np.sqrt(group_mean(channel_mean(z * z) + d * d) + eps)
            z *= along_rows(-gamma * r)
            z -= along_rows(gamma * r * d + beta)                               # −n
            e = np.exp(z, out=rows(f[block]))
            np.subtract(-1, e, out=rows(f[block]))
            np.divide(z, rows(f[block]), out=rows(y[block]))
            statistics.append((c, d, r))

    # s = −1/f, and swish' = s + y (1 − s) = y + (y − 1)/f, hence dn = dy [ y + (y − 1)/f ].
    # Two sums over the pixels give the rest, Σ dn and Σ dn x̂ = r (Σ dn z + d Σ dn): they are dβ and dγ, and with group_norm's
    #       dx = r [ γ dn − mean(γ dn) − x̂ mean(γ dn x̂) ]
    # dx = a dn + q z + q d − r mean(γ dn),   q = −r² mean(γ dn x̂):  again a scaling and a shift for each channel.
    def fused_norm_swish_back(dy):
        dx, dgamma, dbeta = np.empty_like(x, order="C"), np.zeros_like(gamma), np.zeros_like(beta)
        for block, (c, d, r) in zip(blocks, statistics, strict=True):
            dn = rows(y[block]) - 1
            dn /= rows(f[block])
            dn += rows(y[block])
            dn *= rows(dy[block])
            z = rows(x[block]) - along_rows(c)
            mean = channel_mean(dn)
            mean_xhat = r * (channel_mean(dn * z) + d * mean)
            dgamma += H * W * mean_xhat.sum(axis=0)
            dbeta += H * W * mean.sum(axis=0)
            q = -r * r * group_mean(gamma * mean_xhat)
            dn *= along_rows(gamma * r)
            z *= along_rows(q)
            dn += z
            dn += along_rows(q * d - r * group_mean(gamma * mean))
            dx[block] = dn.reshape(-1, H, W, C)
        return dx, {"weight": dgamma, "bias": dbeta}

    return y, fused_norm_swish_back
