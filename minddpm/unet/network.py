"""App. B.  The paper's U-Net: PixelCNN++'s, with group normalisation, self-attention and the timestep in every block."""

import math
from dataclasses import dataclass
from itertools import count, repeat
from typing import NamedTuple

import numpy as np

from minddpm import tree
from minddpm.fast.ops import conv2d, linear, norm_swish, swish, timestep_embedding
from minddpm.unet.blocks import down_block, mid_block, up_block
from minddpm.unet.recompute import keep


@dataclass(frozen=True)
class UNetConfig:
    """App. B.  The sizes of a U-Net.  Level i works on images of image_size / 2^i pixels with widths[i] channels.

    groups must divide every width.  With one channel a group, norm2 would cancel the timestep that is added before it, a
    constant on each channel's pixels: the small presets therefore have 8 groups.  Raises ValueError for impossible sizes.
    """

    image_size: int
    in_channels: int
    widths: tuple[int, ...]
    blocks: int                         # residual blocks a level; one more on the way up
    attention: tuple[int, ...]          # the levels whose residual blocks are followed by self-attention
    dropout: float = 0.0
    groups: int = 32
    eps: float = 1e-6                   # of the group normalisation: released code; TensorFlow's default
    learned_sigma: bool = False         # twice the output channels: the second half is the log-variance
    attention_up: tuple[int, ...] | None = None     # on the way up, where it is not as on the way down

    def __post_init__(self):
        levels = len(self.widths)
        if self.image_size % 2 ** (levels - 1):
            raise ValueError(f"image_size {self.image_size} cannot be halved {levels - 1} times for {levels} levels")
        if any(width % self.groups for width in self.widths):
            raise ValueError(f"groups {self.groups} does not divide every width of {self.widths}")
        if not set(self.attention) | set(self.up_attention) <= set(range(levels)):
            raise ValueError(f"attention names levels {self.attention}, {self.up_attention}; expected some of 0..{levels - 1}")
        if self.widths[0] % 2 or self.widths[0] < 4:
            raise ValueError(f"widths[0] is {self.widths[0]}; the timestep embedding needs an even number of at least 4")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected 0 <= dropout < 1")

    @property
    def up_attention(self):
        """The levels with self-attention on the way up."""
        return self.attention if self.attention_up is None else self.attention_up

    @property
    def out_channels(self):
        """The channels of the network's output."""
        return self.in_channels * (2 if self.learned_sigma else 1)

    @classmethod
    def tiny(cls, in_channels=1):
        """8×8 images (`digits`): 701 thousand parameters."""
        return cls(8, in_channels, widths=(32, 64), blocks=1, attention=(1,), groups=8)

    @classmethod
    def small(cls, in_channels=1):
        """16×16 images (`mnist16`, `faces16`)."""
        return cls(16, in_channels, widths=(32, 64, 64), blocks=1, attention=(1,), groups=8)

    @classmethod
    def medium(cls, in_channels=1):
        """28×28 images (`mnist`)."""
        return cls(28, in_channels, widths=(32, 64, 64), blocks=2, attention=(1,), groups=8)

    @classmethod
    def cifar10(cls, in_channels=3):
        """App. B.  32×32 images, attention at 16×16, dropout 0.1: the paper's 35,746,307 parameters."""
        return cls(32, in_channels, widths=(128, 256, 256, 256), blocks=2, attention=(1,), dropout=0.1)

    @classmethod
    def image256(cls, in_channels=3):
        """App. B.  256×256 images (LSUN, CelebA-HQ), attention at 16×16: the paper's 113,673,219 parameters."""
        return cls(256, in_channels, widths=(128, 128, 256, 256, 512, 512), blocks=2, attention=(4,))


def unet(cfg, p, x, t, seeds=None, run=keep):
    """App. B.  ε_θ(x_t, t).  x (B,H,W,in_channels), t: the paper's t, 1..T, an int or (B,) -> eps (B,H,W,out_channels).

    Back: deps -> dx, dp.  seeds: for dropout, one integer below 2⁶⁴ an image; without them there is none.  run: what the
    blocks keep for `back`, a policy of memory.py; with `discard` there is no `back`.  Raises ValueError for x of other sizes.
    """
    _check_input(cfg, x)
    keys = repeat(None) if seeds is None else ((seeds, number) for number in count())
    t = np.full_like(x, t, dtype=np.float64, shape=len(x)) if np.ndim(t) == 0 else t
    emb = timestep_embedding(t, cfg.widths[0], like=x)
    temb, temb_back = time_mlp(p["time_embedding"], emb)

    h, conv_in_back = conv2d(p["conv_in"], x)
    skips, down_backs, up_backs = [h], [], []
    for block in p["down_blocks"]:
        h, new_skips, back = down_block(cfg, block, h, temb, keys, run)
        skips += new_skips
        down_backs.append(back)
    h, mid_back = mid_block(cfg, p["mid_block"], h, temb, keys, run)
    for block in p["up_blocks"]:
        first = len(skips) - len(block["resnets"])
        h, back = up_block(cfg, block, h, skips[first:], temb, keys, run)
        del skips[first:]
        up_backs.append(back)
    assert not skips
    a, norm_back = norm_swish(p["conv_norm_out"], h, cfg.groups, cfg.eps)
    eps, conv_out_back = conv2d(p["conv_out"], a)

    def unet_back(deps):
        dp = {"down_blocks": [], "up_blocks": []}
        da, dp["conv_out"] = conv_out_back(deps)
        dh, dp["conv_norm_out"] = norm_back(da)
        dtemb, dskips = 0, []
        for back in reversed(up_backs):
            dh, dused, dtemb_block, dblock = back(dh)
            dskips += dused                                  # the last block up used the first skips
            dtemb = dtemb + dtemb_block
            dp["up_blocks"].insert(0, dblock)
        dh, dtemb_block, dp["mid_block"] = mid_back(dh)
        dtemb = dtemb + dtemb_block
        for back, block in zip(reversed(down_backs), reversed(p["down_blocks"]), strict=True):
            first = len(dskips) - len(block["resnets"]) - len(block.get("downsamplers", []))
            dh, dtemb_block, dblock = back(dh, dskips[first:])
            del dskips[first:]
            dtemb = dtemb + dtemb_block
            dp["down_blocks"].insert(0, dblock)
        dx, dp["conv_in"] = conv_in_back(dh + dskips.pop())
        dp["time_embedding"] = temb_back(dtemb)
        return dx, {name: dp[name] for name in p}

    return eps, unet_back


def time_mlp(p, emb):
    """App. B.  emb (B,ch) -> temb (B,4ch): dense, swish, dense, swish.  Back: dtemb -> dp; emb is data and needs no gradient.

    In the released code each residual block begins with the last swish (unet.py:37-63), of the same numbers: once is enough.
    """
    h1, linear_1_back = linear(p["linear_1"], emb)
    a1, act_1_back = swish(h1)
    h2, linear_2_back = linear(p["linear_2"], a1)
    temb, act_2_back = swish(h2)

    def time_mlp_back(dtemb):
        dp = {}
        dh2 = act_2_back(dtemb)
        da1, dp["linear_2"] = linear_2_back(dh2)
        dh1 = act_1_back(da1)
        _, dp["linear_1"] = linear_1_back(dh1)
        return {name: dp[name] for name in p}

    return temb, time_mlp_back


def _check_input(cfg, x):
    halvings = 2 ** (len(cfg.widths) - 1)
    if x.ndim != 4 or x.shape[3] != cfg.in_channels or x.shape[1] % halvings or x.shape[2] % halvings:
        raise ValueError(f"x has shape {x.shape}; expected (B, H, W, {cfg.in_channels}) with H and W multiples of {halvings}")


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
    rng = np.random.default_rng(seed)

    def draw(d):
        values = rng.random(d.shape, dtype=np.float32)
        return np.float32(d.centre - d.bound) + np.float32(2 * d.bound) * values if d.bound else np.full_like(values, d.centre)

    return tree.map(draw, parameters(cfg))


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
