"""App. B.  The paper's U-Net: PixelCNN++'s, with group normalisation, self-attention and the timestep in every block."""

from itertools import count, repeat

import numpy as np

from minddpm.unet import layers
from minddpm.unet.blocks import Net, down_block, mid_block, up_block
from minddpm.unet.recompute import store


def unet(cfg, p, x, t, seeds=None, ops=layers, policy=store):
    """App. B.  ε_θ(x_t, t).  x (B,H,W,in_channels), t: the paper's t, 1..T, an int or (B,) -> eps (B,H,W,out_channels).

    Back: deps -> dx, dp.  seeds: for dropout, one integer below 2⁶⁴ an image; without them there is none.  ops: the layers.
    policy: what the blocks store for `back`, see recompute.py; with `inference`, `back` must not be called.
    ValueError: x of other sizes.
    """
    halvings = 2 ** (len(cfg.widths) - 1)
    if x.ndim != 4 or x.shape[3] != cfg.in_channels or x.shape[1] % halvings or x.shape[2] % halvings:
        raise ValueError(f"x has shape {x.shape}; expected (B, H, W, {cfg.in_channels}) with H and W multiples of {halvings}")
    net = Net(cfg, ops, policy)
    keys = ((seeds, number) for number in count()) if cfg.dropout and seeds is not None else repeat(None)
    t = np.full(len(x), t) if np.ndim(t) == 0 else t
    emb = ops.timestep_embedding(t, cfg.widths[0], like=x)
    temb, temb_back = time_mlp(net, p["time_embedding"], emb)

    h, conv_in_back = ops.conv2d(p["conv_in"], x)
    skips, downs, ups = [h], [], []
    for level in p["down_blocks"]:
        h, outputs, back = down_block(net, level, h, temb, keys)
        skips += outputs
        downs.append((back, len(outputs)))
    h, mid_back = mid_block(net, p["mid_block"], h, temb, keys)
    for level in p["up_blocks"]:
        h, back = up_block(net, level, h, [skips.pop() for _ in level["resnets"]], temb, keys)
        ups.append(back)
    assert not skips
    a, norm_out_back = ops.norm_swish(p["conv_norm_out"], h, cfg.groups, cfg.eps)
    eps, conv_out_back = ops.conv2d(p["conv_out"], a)

    def unet_back(deps):
        dp, ddown, dup, dskips, dtemb = {}, [], [], [], 0
        da, dp["conv_out"] = conv_out_back(deps)
        dh, dp["conv_norm_out"] = norm_out_back(da)
        for back in reversed(ups):
            dh, dused, dtemb_level, dlevel = back(dh)
            dskips += reversed(dused)
            dtemb = dtemb + dtemb_level
            dup.insert(0, dlevel)
        dh, dtemb_level, dp["mid_block"] = mid_back(dh)
        dtemb = dtemb + dtemb_level
        for back, n in reversed(downs):
            dskips, doutputs = dskips[:-n], dskips[-n:]
            dh, dtemb_level, dlevel = back(dh, doutputs)
            dtemb = dtemb + dtemb_level
            ddown.insert(0, dlevel)
        dx, dp["conv_in"] = conv_in_back(dh + dskips.pop())
        dp["time_embedding"] = temb_back(dtemb)
        dp |= {"down_blocks": ddown, "up_blocks": dup}
        return dx, {name: dp[name] for name in p}

    return eps, unet_back


def time_mlp(net: Net, p, emb):
    """App. B.  emb (B,ch) -> temb (B,4ch): dense, swish, dense, swish.  Back: dtemb -> dp; emb is data and needs no gradient.

    The released code applies the last swish inside each residual block (unet.py:37-63), to the same numbers; here it is once.
    """
    ops = net.ops
    h1, linear_1_back = ops.linear(p["linear_1"], emb)
    a1, act_1_back = ops.swish(h1)
    h2, linear_2_back = ops.linear(p["linear_2"], a1)
    temb, act_2_back = ops.swish(h2)

    def time_mlp_back(dtemb):
        dp = {}
        dh2 = act_2_back(dtemb)
        da1, dp["linear_2"] = linear_2_back(dh2)
        dh1 = act_1_back(da1)
        _, dp["linear_1"] = linear_1_back(dh1)
        return {name: dp[name] for name in p}

    return temb, time_mlp_back
