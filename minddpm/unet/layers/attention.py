"""App. B.  Self-attention over the pixels of an image."""

import math

import numpy as np


def attention(q, k, v):
    """App. B.  Softmax attention with one head.  q, k, v (B,T,C), T tokens -> o (B,T,C).

        S = q kᵀ / √C        P_ij = exp S_ij / Σ_j exp S_ij        o = P v
    Back:  do -> dq, dk, dv; see the derivation.      Keeps: P, the three arguments and o.
    """
    scale = 1 / math.sqrt(q.shape[-1])
    S = np.matmul(q * scale, k.swapaxes(1, 2))                              # (B,T,T)
    E = np.exp(S - S.max(axis=-1, keepdims=True))                           # the maximum cancels in P
    P = E / E.sum(axis=-1, keepdims=True)
    o = np.matmul(P, v)

    # o = P v is bilinear:                      dv = Pᵀ do,    dP = do vᵀ.
    # One row of the softmax: ∂P_j/∂S_l = P_j (δ_jl − P_l), hence
    #       dS_l = Σ_j dP_j P_j (δ_jl − P_l) = P_l (dP_l − Σ_j dP_j P_j),
    # and  Σ_j dP_j P_j = Σ_j (do·v_j) P_j = do·o : the row's sum needs no T×T product.
    # S = q kᵀ/√C is bilinear:                  dq = dS k/√C,  dk = dSᵀ q/√C.
    def attention_back(do):
        dv = np.matmul(P.swapaxes(1, 2), do)
        dP = np.matmul(do, v.swapaxes(1, 2))
        dS = P * (dP - (do * o).sum(axis=-1, keepdims=True))
        dq = np.matmul(dS, k) * scale
        dk = np.matmul(dS.swapaxes(1, 2), q) * scale
        return dq, dk, dv

    return o, attention_back
