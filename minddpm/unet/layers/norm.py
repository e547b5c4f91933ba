"""App. B.  Group normalisation."""

import numpy as np

from minddpm.unet.layers.linear import column_sums


def group_norm(p, x, groups, eps=1e-6):
    """App. B.  Group normalisation.  weight γ (C,), bias β (C,), x (B,H,W,C) -> y (B,H,W,C).  C is a multiple of groups.

        y = γ x̂ + β,     x̂ = (x − m) r,     m = mean(x),     r = 1 / √( mean((x − m)²) + eps )

    with the means over each image's H·W pixels and the C/groups channels of one group.  eps: released code, 1e-6.
    Back:  see the derivation.      Keeps: x̂, r.
    """
    gamma, beta = p["weight"], p["bias"]
    centred = x - group_mean(x, groups)
    r = 1 / np.sqrt(group_mean(centred * centred, groups) + eps)           # (B,1,1,C)
    xhat = centred * r
    y = xhat * gamma + beta

    # One group of n numbers.  Move x by v: m moves by mean(v), and u = mean((x−m)²) by 2 mean((x−m) v), since mean(x−m) = 0.
    # r = (u + eps)^(−½) then moves by −½ r³ · 2 mean((x−m) v) = −r² mean(x̂ v), and x̂ = (x−m) r by
    #       J v = r [ v − mean(v) − x̂ mean(x̂ v) ].
    # J is symmetric: ⟨w, mean(v)⟩ = ⟨mean(w), v⟩ and ⟨w, x̂ mean(x̂ v)⟩ = n mean(x̂ w) mean(x̂ v) = ⟨x̂ mean(x̂ w), v⟩.
    # Its adjoint is therefore J itself, and dx = J dx̂.  What J takes away from dx̂ are its parts along 1 and along x̂: a
    # shift and a scaling of x, which the normalisation undoes, do not change the loss.
    def group_norm_back(dy):
        dxhat = dy * gamma
        dx = r * (dxhat - group_mean(dxhat, groups) - xhat * group_mean(dxhat * xhat, groups))
        dgamma = column_sums((dy * xhat).reshape(-1, dy.shape[-1]))
        dbeta = column_sums(dy.reshape(-1, dy.shape[-1]))
        return dx, {"weight": dgamma, "bias": dbeta}

    return y, group_norm_back


def group_mean(x, groups):
    """(B,H,W,C) -> (B,1,1,C): at each channel the mean over the pixels and over the channels of its group."""
    B, H, W, C = x.shape
    ones = np.ones_like(x, shape=(1, H * W))
    sums = np.matmul(ones, x.reshape(B, H * W, C)).reshape(B, groups, C // groups).sum(axis=-1)
    return np.repeat(sums / (H * W * (C // groups)), C // groups, axis=-1).reshape(B, 1, 1, C)
