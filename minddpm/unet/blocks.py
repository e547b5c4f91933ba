"""App. B.  The blocks that the U-Net is made of, as pullbacks: forward and gradient are the same lines in opposite order.

cfg is the UNetConfig, p the block's parameters, temb (B,E) the embedded timestep: see unet.time_mlp.  `key` is None where dropout
is off, otherwise (seeds, number): a seed for each image and the number of this residual block.  `run` is a policy of memory.py.
"""

import numpy as np

from minddpm.fast.ops import (
    attention,
    conv1x1,
    conv2d,
    conv3x3,
    conv3x3_shifted,
    dropout,
    group_norm,
    linear,
    norm_swish,
)
from minddpm.unet.layers.upsample import upsample


def resblock(cfg, p, x, temb, key):
    """App. B.  Residual block.  x (B,H,W,C), temb (B,E) -> y (B,H,W,N).  Back: dy -> dx, dtemb, dp.

        h = conv1(swish(norm1(x))) + time_emb_proj(temb)        y = shortcut(x) + conv2(dropout(swish(norm2(h))))

    shortcut is a 1×1 convolution where C ≠ N, otherwise the identity.
    """
    a1, norm1_back = norm_swish(p["norm1"], x, cfg.groups, cfg.eps)
    ht, temb_back  = linear(p["time_emb_proj"], temb)
    h, conv1_back  = conv3x3_shifted(p["conv1"], a1, ht)            # ht is added at every pixel
    a2, norm2_back = norm_swish(p["norm2"], h, cfg.groups, cfg.eps)
    d2, drop_back  = dropout(a2, cfg.dropout, *key) if key else (a2, None)
    h2, conv2_back = conv3x3(p["conv2"], d2)
    s, shortcut_back = conv1x1(p["conv_shortcut"], x) if "conv_shortcut" in p else (x, None)

    def resblock_back(dy):
        dp = {}
        if shortcut_back:
            ds, dp["conv_shortcut"] = shortcut_back(dy)
        else:
            ds = dy
        dd2, dp["conv2"] = conv2_back(dy)
        da2 = drop_back(dd2) if drop_back else dd2
        dh, dp["norm2"] = norm2_back(da2)
        da1, dht, dp["conv1"] = conv1_back(dh)
        dtemb, dp["time_emb_proj"] = temb_back(dht)
        dx, dp["norm1"] = norm1_back(da1)
        return dx + ds, dtemb, dp                                   # x was used twice: its gradients add

    return s + h2, resblock_back


def attention_block(cfg, p, x):
    """App. B.  Self-attention over the pixels, added to its input.  x (B,H,W,C) -> y (B,H,W,C).  Back: dy -> dx, dp.

        n = norm(x)        y = x + to_out( attention(to_q(n), to_k(n), to_v(n)) )
    """
    tokens = (len(x), -1, x.shape[-1])                              # (B, H·W, C)
    n, norm_back = group_norm(p["group_norm"], x, cfg.groups, cfg.eps)
    q, q_back = linear(p["to_q"], n.reshape(tokens))
    k, k_back = linear(p["to_k"], n.reshape(tokens))
    v, v_back = linear(p["to_v"], n.reshape(tokens))
    o, attention_back = attention(q, k, v)
    h, out_back = linear(p["to_out"][0], o)

    def attention_block_back(dy):
        dp = {}
        do, dp_out = out_back(dy.reshape(tokens))
        dq, dk, dv = attention_back(do)
        dnv, dp["to_v"] = v_back(dv)
        dnk, dp["to_k"] = k_back(dk)
        dnq, dp["to_q"] = q_back(dq)
        dx, dp["group_norm"] = norm_back((dnq + dnk + dnv).reshape(x.shape))
        return dx + dy, dp | {"to_out": [dp_out]}

    return x + h.reshape(x.shape), attention_block_back


def stage(cfg, p, j, x, temb, key, run):
    """App. B.  The j-th residual block of a level and, where the level has it, the attention after it.

    x (B,H,W,C), temb (B,E) -> h (B,H,W,N).  Back: dh -> dx, dtemb, and {"resnets": …, "attentions": …} for this j.
    """
    h, resblock_back = run(resblock, cfg, p["resnets"][j], x, temb, key)
    if "attentions" in p and j < len(p["attentions"]):
        h, attention_block_back = run(attention_block, cfg, p["attentions"][j], h)
    else:
        attention_block_back = None

    def stage_back(dh):
        dp = {}
        if attention_block_back:
            dh, dp["attentions"] = attention_block_back(dh)
        dx, dtemb, dp["resnets"] = resblock_back(dh)
        return dx, dtemb, dp

    return h, stage_back


def down_block(cfg, p, x, temb, keys, run):
    """App. B.  One level on the way down: its stages, then a stride-2 convolution except at the lowest level.

    x (B,H,W,C) -> h, and the list of every output, kept for the way up.  Back: dh, dskips -> dx, dtemb, dp.
    """
    h, skips, backs = x, [], []
    for j in range(len(p["resnets"])):
        h, stage_back = stage(cfg, p, j, h, temb, next(keys), run)
        skips.append(h)
        backs.append(stage_back)
    downsample_back = None
    if "downsamplers" in p:
        h, downsample_back = run(conv2d, p["downsamplers"][0]["conv"], h, 2)
        skips.append(h)

    def down_block_back(dh, dskips):
        dskips, dtemb, dp = list(dskips), 0, _empty_lists(p)
        if downsample_back:
            dh, dp["downsamplers"][0]["conv"] = downsample_back(dh + dskips.pop())
        for j in reversed(range(len(backs))):
            dh, dtemb_j, dp_j = backs[j](dh + dskips.pop())         # h went on, and up as a skip: its gradients add
            dtemb = dtemb + dtemb_j
            _place(dp, j, dp_j)
        return dh, dtemb, dp

    return h, skips, down_block_back


def mid_block(cfg, p, x, temb, keys, run):
    """App. B.  The bottom: residual block, attention, residual block.  x (B,H,W,C) -> h.  Back: dh -> dx, dtemb, dp."""
    h0, back0 = stage(cfg, p, 0, x, temb, next(keys), run)
    h1, back1 = stage(cfg, p, 1, h0, temb, next(keys), run)

    def mid_block_back(dh1):
        dp = _empty_lists(p)
        dh0, dtemb1, dp1 = back1(dh1)
        dx, dtemb0, dp0 = back0(dh0)
        _place(dp, 1, dp1)
        _place(dp, 0, dp0)
        return dx, dtemb0 + dtemb1, dp

    return h1, mid_block_back


def up_block(cfg, p, x, skips, temb, keys, run):
    """App. B.  One level on the way up: each stage sees the last remaining skip beside its input; then, except at the top,
    nearest upsampling and a convolution.

    x (B,H,W,C), skips in the order in which they were made -> h.  Back: dh -> dx, dskips, dtemb, dp.
    """
    h, skips, backs, widths = x, list(skips), [], []
    for j in range(len(p["resnets"])):
        widths.append(h.shape[-1])
        h, stage_back = stage(cfg, p, j, np.concatenate([h, skips.pop()], axis=-1), temb, next(keys), run)
        backs.append(stage_back)
    upsample_back = None
    if "upsamplers" in p:
        h, upsample_back = run(upsample_conv, p["upsamplers"][0]["conv"], h)

    def up_block_back(dh):
        dskips, dtemb, dp = [], 0, _empty_lists(p)
        if upsample_back:
            dh, dp["upsamplers"][0]["conv"] = upsample_back(dh)
        for j in reversed(range(len(backs))):
            dboth, dtemb_j, dp_j = backs[j](dh)
            dh, dskip = np.ascontiguousarray(dboth[..., :widths[j]], like=dboth), dboth[..., widths[j]:]
            dskips.append(dskip)                                    # last in, first out: this is the order they were made in
            dtemb = dtemb + dtemb_j
            _place(dp, j, dp_j)
        return dh, dskips, dtemb, dp

    return h, up_block_back


def upsample_conv(p, x):
    """App. B.  Nearest upsampling by 2, then a 3×3 convolution.  x (B,H,W,C) -> y (B,2H,2W,C).  Back: dy -> dx, dp."""
    u, upsample_back = upsample(x)
    y, conv_back = conv3x3(p, u)

    def upsample_conv_back(dy):
        du, dp = conv_back(dy)
        return upsample_back(du), dp

    return y, upsample_conv_back


def _empty_lists(p):
    """A block's gradient before its parts are known: p's keys and lengths."""
    return {name: [{} for _ in parts] for name, parts in p.items()}


def _place(dp, j, dp_j):
    for name, gradient in dp_j.items():
        dp[name][j] = gradient
