"""App. B.  Group normalisation, and with the nonlinearity after it."""

import numpy as np

from minddpm.unet.layers.swish import swish


def group_norm(p, x, groups, eps=1e-6):
    """App. B.  Group normalisation.  weight γ (C,), bias β (C,), x (B,H,W,C) -> y (B,H,W,C).  C is a multiple of groups.

        y = γ x̂ + β,     x̂ = (x − m) r,     m = mean(x),     r = 1 / √( mean((x − m)²) + eps )

    with the means over each image's H·W pixels and the C/groups channels of one group.  eps: released code, 1e-6.
    Back:  see the derivation.      Keeps: x̂, r.
    """
    gamma, beta = p["weight"], p["bias"]
    B, H, W, C = x.shape

    def grouped(a):
        return a.reshape(B, H * W, groups, C // groups)

    def mean(a):
        return a.mean(axis=(1, 3), keepdims=True)                           # (B,1,groups,1)

    centred = grouped(x) - mean(grouped(x))
    r = 1 / np.sqrt(mean(centred**2) + eps)
    xhat = centred * r
    y = xhat.reshape(x.shape) * gamma + beta

    # One group of n numbers.  Move x by v: m moves by mean(v), and u = mean((x−m)²) by 2 mean((x−m) v), since mean(x−m) = 0.
    # r = (u + eps)^(−½) then moves by −½ r³ · 2 mean((x−m) v) = −r² mean(x̂ v), and x̂ = (x−m) r by
    #       J v = r [ v − mean(v) − x̂ mean(x̂ v) ].
    # J is symmetric: ⟨w, mean(v)⟩ = ⟨mean(w), v⟩ and ⟨w, x̂ mean(x̂ v)⟩ = n mean(x̂ w) mean(x̂ v) = ⟨x̂ mean(x̂ w), v⟩.
    # Its adjoint is therefore J itself, and dx = J dx̂.  What J takes away from dx̂ are its parts along 1 and along x̂: a
    # shift and a scaling of x, which the normalisation undoes, do not change the loss.
    def group_norm_back(dy):
        dxhat = grouped(dy * gamma)
        dx = r * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))
        dgamma = (dy * xhat.reshape(x.shape)).sum(axis=(0, 1, 2))
        dbeta = dy.sum(axis=(0, 1, 2))
        return dx.reshape(x.shape), {"weight": dgamma, "bias": dbeta}

    return y, group_norm_back


def norm_swish(p, x, groups, eps=1e-6):
    """App. B.  Group normalisation, then swish.  x (B,H,W,C) -> y (B,H,W,C).  Back: dy -> dx, dp.  Keeps: as the two layers."""
    n, norm_back = group_norm(p, x, groups, eps)
    y, swish_back = swish(n)

    def norm_swish_back(dy):
        dn = swish_back(dy)
        return norm_back(dn)

    return y, norm_swish_back
