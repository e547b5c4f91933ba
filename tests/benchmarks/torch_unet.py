"""The U-Net of minddpm in PyTorch, as lean as it can be written: the other side of vs_torch.py.

Functional, over a dict of tensors with diffusers' names, so that nothing but PyTorch's own kernels is measured.
"""

import math

import torch
import torch.nn.functional as F


def unet(cfg, p, x, t):
    """x (B,C,H,W), t (B,) the paper's -> ε."""
    half = cfg.widths[0] // 2
    angles = (t - 1)[:, None].float() * torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / (half - 1)))
    emb = torch.cat([angles.sin(), angles.cos()], 1)
    temb = linear(p, "time_embedding.linear_2", F.silu(linear(p, "time_embedding.linear_1", emb)))
    act_temb = F.silu(temb)

    h = conv(p, "conv_in", x)
    skips = [h]
    bottom = len(cfg.widths) - 1
    for level in range(bottom + 1):
        for j in range(cfg.blocks):
            h = stage(cfg, p, f"down_blocks.{level}", j, h, act_temb)
            skips.append(h)
        if level != bottom:
            h = F.conv2d(F.pad(h, (0, 1, 0, 1)), *wb(p, f"down_blocks.{level}.downsamplers.0.conv"), stride=2)
            skips.append(h)
    h = stage(cfg, p, "mid_block", 0, h, act_temb)
    h = stage(cfg, p, "mid_block", 1, h, act_temb)
    for i in range(bottom + 1):
        for j in range(cfg.blocks + 1):
            h = stage(cfg, p, f"up_blocks.{i}", j, torch.cat([h, skips.pop()], 1), act_temb)
        if i != bottom:
            h = conv(p, f"up_blocks.{i}.upsamplers.0.conv", F.interpolate(h, scale_factor=2.0, mode="nearest"))
    return conv(p, "conv_out", F.silu(norm(cfg, p, "conv_norm_out", h)))


def stage(cfg, p, block, j, h, act_temb):
    h = resblock(cfg, p, f"{block}.resnets.{j}", h, act_temb)
    return attention(cfg, p, f"{block}.attentions.{j}", h) if f"{block}.attentions.{j}.to_q.weight" in p else h


def resblock(cfg, p, name, x, act_temb):
    h = conv(p, f"{name}.conv1", F.silu(norm(cfg, p, f"{name}.norm1", x)))
    h = h + linear(p, f"{name}.time_emb_proj", act_temb)[:, :, None, None]
    h = conv(p, f"{name}.conv2", F.silu(norm(cfg, p, f"{name}.norm2", h)))
    return h + (F.conv2d(x, *wb(p, f"{name}.conv_shortcut")) if f"{name}.conv_shortcut.weight" in p else x)


def attention(cfg, p, name, x):
    B, C, H, W = x.shape
    n = norm(cfg, p, f"{name}.group_norm", x).flatten(2).transpose(1, 2)
    q, k, v = (linear(p, f"{name}.{part}", n)[:, None] for part in ("to_q", "to_k", "to_v"))
    o = linear(p, f"{name}.to_out.0", F.scaled_dot_product_attention(q, k, v)[:, 0])
    return x + o.transpose(1, 2).reshape(B, C, H, W)


def wb(p, name):
    return p[f"{name}.weight"], p[f"{name}.bias"]


def conv(p, name, x):
    return F.conv2d(x, *wb(p, name), padding=1)


def linear(p, name, x):
    return F.linear(x, *wb(p, name))


def norm(cfg, p, name, x):
    return F.group_norm(x, cfg.groups, *wb(p, name), eps=cfg.eps)
