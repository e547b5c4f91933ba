"""App. B.  Self-attention with fewer arrays of the size of P than layers.attention, and a row's sum without a T×T product."""

import math

import numpy as np


def attention(q, k, v):
    """App. B.  layers.attention(q, k, v).  q, k, v (B,T,C) -> o (B,T,C).

    Back:  as there, with  Σ_j dP_j P_j = Σ_j (do·v_j) P_j = do·o.      Keeps: P, the three arguments and o.
    """
    scale = 1 / math.sqrt(q.shape[-1])
    P = np.matmul(q * scale, k.swapaxes(1, 2))                              # S (B,T,T), and in its memory:
    P -= P.max(axis=-1, keepdims=True)
    np.exp(P, out=P)
    P /= P.sum(axis=-1, keepdims=True)
    o = np.matmul(P, v)

    def attention_back(do):
        dv = np.matmul(P.swapaxes(1, 2), do)
        dS = np.matmul(do, v.swapaxes(1, 2))                                # dP, and in its memory:
        dS -= (do * o).sum(axis=-1, keepdims=True)
        dS *= P
        dq = np.matmul(dS, k) * scale
        dk = np.matmul(dS.swapaxes(1, 2), q) * scale
        return dq, dk, dv

    return o, attention_back
