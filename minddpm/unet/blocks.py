"""App. B.  The blocks of the U-Net, as pullbacks: forward and gradient are the same lines in opposite order.

p are a block's parameters, temb (B,E) is the embedded timestep: see network.time_mlp.  A residual block's `dropout_key` is None
where dropout is off, otherwise (seeds, number): a seed for each image and the number of this block in the network.
"""

import numpy as np

from minddpm.unet import layers
from minddpm.unet.recompute import store


class Net:
    """The configuration, the layers and the memory policy (recompute.py), which all blocks of a network share."""

    def __init__(self, cfg, ops=layers, policy=store):
        self.cfg, self.ops, self.policy = cfg, ops, policy


def resblock(net: Net, p, x, temb, dropout_key=None):
    """App. B.  Residual block.  x (B,H,W,C), temb (B,E) -> y (B,H,W,N).  Back: dy -> dx, dtemb, dp.

        h = conv1(swish(norm1(x))) + time_emb_proj(temb)        y = shortcut(x) + conv2(dropout(swish(norm2(h))))

    time_emb_proj(temb) is added at every pixel; shortcut is a 1×1 convolution where C ≠ N, otherwise the identity.
    """
    cfg, ops = net.cfg, net.ops
    a1, norm1_back = ops.norm_swish(p["norm1"], x, cfg.groups, cfg.eps)
    ht, temb_back  = ops.linear(p["time_emb_proj"], temb)
    h, conv1_back  = ops.conv2d_plus(p["conv1"], a1, ht)
    a2, norm2_back = ops.norm_swish(p["norm2"], h, cfg.groups, cfg.eps)
    d2, drop_back  = ops.dropout(a2, cfg.dropout, *dropout_key) if dropout_key else (a2, None)
    h2, conv2_back = ops.conv2d(p["conv2"], d2)
    s, shortcut_back = ops.conv2d(p["conv_shortcut"], x) if "conv_shortcut" in p else (x, None)

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


def attention_block(net: Net, p, x):
    """App. B.  Self-attention over the pixels, added to its input.  x (B,H,W,C) -> y (B,H,W,C).  Back: dy -> dx, dp.

        n = norm(x)        y = x + to_out( attention(to_q(n), to_k(n), to_v(n)) )
    """
    cfg, ops = net.cfg, net.ops
    tokens = (len(x), -1, x.shape[-1])                              # (B, H·W, C)
    n, norm_back = ops.group_norm(p["group_norm"], x, cfg.groups, cfg.eps)
    q, q_back = ops.linear(p["to_q"], n.reshape(tokens))
    k, k_back = ops.linear(p["to_k"], n.reshape(tokens))
    v, v_back = ops.linear(p["to_v"], n.reshape(tokens))
    o, attention_back = ops.attention(q, k, v)
    h, out_back = ops.linear(p["to_out"][0], o)

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


def stage(net: Net, p, j, x, temb, dropout_key):
    """App. B.  The j-th residual block of a level and, where the level has it, the attention after it.

    x (B,H,W,C), temb (B,E) -> h (B,H,W,N).  Back: dh -> dx, dtemb, and a list of the gradients of the blocks that it has.
    """
    h, resblock_back = net.policy(resblock, net, p["resnets"][j], x, temb, dropout_key)
    has_attention = j < len(p.get("attentions", []))
    if has_attention:
        h, attention_back = net.policy(attention_block, net, p["attentions"][j], h)

    def stage_back(dh):
        dattentions = []
        if has_attention:
            dh, dattention = attention_back(dh)
            dattentions = [dattention]
        dx, dtemb, dresnet = resblock_back(dh)
        return dx, dtemb, [dresnet, *dattentions]

    return h, stage_back


def down_block(net: Net, p, x, temb, dropout_keys):
    """App. B.  One level on the way down: its stages, then a stride-2 convolution except at the lowest level.

    x (B,H,W,C) -> h, and the list of every output, stored for the way up.  Back: dh, doutputs -> dx, dtemb, dp.
    """
    h, outputs, backs = x, [], []
    for j in range(len(p["resnets"])):
        h, stage_back = stage(net, p, j, h, temb, next(dropout_keys))
        outputs.append(h)
        backs.append(stage_back)
    if "downsamplers" in p:
        h, downsample_back = net.policy(net.ops.conv2d, p["downsamplers"][0]["conv"], h, 2)
        outputs.append(h)

    def down_block_back(dh, doutputs):
        doutputs, dtemb, dstages, dconv = list(doutputs), 0, [], None
        if "downsamplers" in p:
            dh, dconv = downsample_back(dh + doutputs.pop())
        for stage_back in reversed(backs):                          # h is used twice, next and as a skip: its gradients add
            dh, dtemb_j, dstage = stage_back(dh + doutputs.pop())
            dtemb = dtemb + dtemb_j
            dstages.insert(0, dstage)
        return dh, dtemb, _like(p, dstages, dconv)

    return h, outputs, down_block_back


def mid_block(net: Net, p, x, temb, dropout_keys):
    """App. B.  The bottom: residual block, attention, residual block.  x (B,H,W,C) -> h.  Back: dh -> dx, dtemb, dp."""
    h0, back0 = stage(net, p, 0, x, temb, next(dropout_keys))       # p["attentions"] has one entry: the second stage has none
    h1, back1 = stage(net, p, 1, h0, temb, next(dropout_keys))

    def mid_block_back(dh1):
        dh0, dtemb1, dstage1 = back1(dh1)
        dx, dtemb0, dstage0 = back0(dh0)
        return dx, dtemb0 + dtemb1, _like(p, [dstage0, dstage1])

    return h1, mid_block_back


def up_block(net: Net, p, x, skips, temb, dropout_keys):
    """App. B.  One level on the way up: each stage's input is concatenated with a skip; then, except at the top, upsampling and a
    convolution.

    x (B,H,W,C), skips in the order of their use -> h.  Back: dh -> dx, dskips, dtemb, dp.
    """
    h, backs, widths = x, [], []
    for j, skip in enumerate(skips):
        widths.append(h.shape[-1])
        h, stage_back = stage(net, p, j, np.concatenate([h, skip], axis=-1), temb, next(dropout_keys))
        backs.append(stage_back)
    if "upsamplers" in p:
        h, upsample_back = net.policy(upsample_conv, net, p["upsamplers"][0]["conv"], h)

    def up_block_back(dh):
        dskips, dtemb, dstages, dconv = [], 0, [], None
        if "upsamplers" in p:
            dh, dconv = upsample_back(dh)
        for stage_back, width in zip(reversed(backs), reversed(widths), strict=True):
            dboth, dtemb_j, dstage = stage_back(dh)
            dh, dskip = dboth[..., :width], dboth[..., width:]
            dskips.insert(0, dskip)
            dtemb = dtemb + dtemb_j
            dstages.insert(0, dstage)
        return dh, dskips, dtemb, _like(p, dstages, dconv)

    return h, up_block_back


def upsample_conv(net: Net, p, x):
    """App. B.  Nearest upsampling by 2, then a 3×3 convolution.  x (B,H,W,C) -> y (B,2H,2W,C).  Back: dy -> dx, dp."""
    u, upsample_back = net.ops.upsample(x)
    y, conv_back = net.ops.conv2d(p, u)

    def upsample_conv_back(dy):
        du, dp = conv_back(dy)
        return upsample_back(du), dp

    return y, upsample_conv_back


def _like(p, dstages, dconv=None):
    """A level's gradient, a tree with p's keys, of those of its stages and of its down- or upsampling convolution."""
    dp = {"resnets": [dresnet for dresnet, *_ in dstages],
          "attentions": [dattention for _, *rest in dstages for dattention in rest],
          "downsamplers": [{"conv": dconv}], "upsamplers": [{"conv": dconv}]}
    return {name: dp[name] for name in p}
