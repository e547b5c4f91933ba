"""App. B.  The parameters: their names and shapes, and the values that they begin with."""

import math
from typing import NamedTuple

import numpy as np

from minddpm import tree
from minddpm.random import rng


class Init(NamedTuple):
    """How a parameter begins: uniform in centre ± bound."""

    shape: tuple[int, ...]
    centre: float
    bound: float


def init(cfg, seed):
    """App. B.  The released code's initial parameters, float32 (nn.py:10-11): weights uniform, of variance 1/fan_avg; biases 0;
    γ = 1.  The last convolution of each residual block, attention's output and the network's output begin 1e-10 as large in
    variance, so that every block begins as the identity and ε_θ as 0.
    """
    random = rng("initial weights", seed)
    return tree.map(lambda d: np.float32(d.centre - d.bound) + np.float32(2 * d.bound) * random.random(d.shape, dtype=np.float32),
                    parameters(cfg))


def parameters(cfg):
    """App. B.  The tree of parameters, each as its `Init`.  Its flattened names are those of diffusers' UNet2DModel."""
    ch, embedded = cfg.widths[0], 4 * cfg.widths[0]
    top, bottom = 0, len(cfg.widths) - 1
    width, skips, down, up = ch, [ch], [], []
    for level, new_width in enumerate(cfg.widths):
        block = {"resnets": []}
        for _ in range(cfg.blocks):
            block["resnets"].append(_resblock(width, new_width, embedded))
            width = new_width
            skips.append(width)
        if level in cfg.attention:
            block["attentions"] = [_attention(width) for _ in range(cfg.blocks)]
        if level != bottom:
            block["downsamplers"] = [{"conv": _conv(3, width, width)}]
            skips.append(width)
        down.append(block)
    mid = {"resnets": [_resblock(width, width, embedded) for _ in range(2)], "attentions": [_attention(width)]}
    for level, new_width in reversed(list(enumerate(cfg.widths))):
        block = {"resnets": []}
        for _ in range(cfg.blocks + 1):
            block["resnets"].append(_resblock(width + skips.pop(), new_width, embedded))
            width = new_width
        if level in cfg.up_attention:
            block["attentions"] = [_attention(width) for _ in range(cfg.blocks + 1)]
        if level != top:
            block["upsamplers"] = [{"conv": _conv(3, width, width)}]
        up.append(block)
    return {
        "conv_in": _conv(3, cfg.in_channels, ch),
        "time_embedding": {"linear_1": _linear(ch, embedded), "linear_2": _linear(embedded, embedded)},
        "down_blocks": down,
        "mid_block": mid,
        "up_blocks": up,
        "conv_norm_out": _norm(ch),
        "conv_out": _conv(3, ch, cfg.out_channels, scale=1e-10),
    }


def _resblock(c, n, embedded):
    p = {"norm1": _norm(c), "conv1": _conv(3, c, n), "time_emb_proj": _linear(embedded, n),
         "norm2": _norm(n), "conv2": _conv(3, n, n, scale=1e-10)}
    return p if c == n else p | {"conv_shortcut": _conv(1, c, n)}


def _attention(c):
    return {"group_norm": _norm(c), "to_q": _linear(c, c), "to_k": _linear(c, c), "to_v": _linear(c, c),
            "to_out": [_linear(c, c, scale=1e-10)]}


def _conv(k, c, n, scale=1.0):
    return {"weight": Init((k, k, c, n), 0.0, math.sqrt(6 * scale / (k * k * (c + n)))), "bias": Init((n,), 0.0, 0.0)}


def _linear(c, n, scale=1.0):
    return {"weight": Init((c, n), 0.0, math.sqrt(6 * scale / (c + n))), "bias": Init((n,), 0.0, 0.0)}


def _norm(c):
    return {"weight": Init((c,), 1.0, 0.0), "bias": Init((c,), 0.0, 0.0)}
