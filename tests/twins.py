"""Slow, literal twins of every layer's and block's forward pass: scalar loops, written from the definition, float64.

A twin takes the same parameters and arrays as the layer (App. B) and shares no code with it.
"""

import math

import numpy as np


def linear(p, x):
    """y_n = Σ_c x_c W_cn + b_n for each row; x (..., C)."""
    w, b = p["weight"], p["bias"]
    C, N = w.shape
    y = np.zeros((*x.shape[:-1], N))
    for row in np.ndindex(*x.shape[:-1]):
        for n in range(N):
            y[(*row, n)] = sum(x[(*row, c)] * w[c, n] for c in range(C)) + b[n]
    return y


def conv2d(p, x, stride=1):
    """TensorFlow's SAME convolution where stride divides the size: k − stride zeros in all, the smaller half before."""
    w, b = p["weight"], p["bias"]
    k, _, C, N = w.shape
    B, H, W, _ = x.shape
    total = max(k - stride, 0)
    before = total // 2
    rows, columns = (H + total - k) // stride + 1, (W + total - k) // stride + 1
    y = np.zeros((B, rows, columns, N))
    for image, row, column, n in np.ndindex(*y.shape):
        value = b[n]
        for i in range(k):
            for j in range(k):
                h, v = stride * row + i - before, stride * column + j - before
                if 0 <= h < H and 0 <= v < W:
                    for c in range(C):
                        value += x[image, h, v, c] * w[i, j, c, n]
        y[image, row, column, n] = value
    return y


def conv2d_plus(p, x, v):
    """And v_bn at each pixel of image b."""
    y = conv2d(p, x)
    for image, row, column, n in np.ndindex(*y.shape):
        y[image, row, column, n] += v[image, n]
    return y


def group_norm(p, x, groups, eps=1e-6):
    """Each image's each group of consecutive channels to mean 0 and variance 1, then γ and β of the channel."""
    B, H, W, C = x.shape
    y = np.zeros(x.shape)
    for image in range(B):
        for group in range(groups):
            channels = range(group * C // groups, (group + 1) * C // groups)
            places = [(h, w, c) for h in range(H) for w in range(W) for c in channels]
            mean = math.fsum(x[image, h, w, c] for h, w, c in places) / len(places)
            variance = math.fsum((x[image, h, w, c] - mean) ** 2 for h, w, c in places) / len(places)
            for h, w, c in places:
                y[image, h, w, c] = (x[image, h, w, c] - mean) / math.sqrt(variance + eps) * p["weight"][c] + p["bias"][c]
    return y


def swish(x):
    """x σ(x), elementwise."""
    y = np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        z = float(x[place])
        y[place] = z / (1 + math.exp(-z)) if z > -700 else 0.0
    return y


def norm_swish(p, x, groups, eps=1e-6):
    return swish(group_norm(p, x, groups, eps))


def attention(q, k, v):
    """o_i = Σ_j softmax_j(q_i · k_j / √C) v_j, for each image."""
    B, T, C = q.shape
    o = np.zeros(v.shape)
    for image in range(B):
        for i in range(T):
            scores = [sum(q[image, i, c] * k[image, j, c] for c in range(C)) / math.sqrt(C) for j in range(T)]
            largest = max(scores)
            e = [math.exp(score - largest) for score in scores]
            for c in range(v.shape[-1]):
                o[image, i, c] = sum(e[j] / sum(e) * v[image, j, c] for j in range(T))
    return o


def upsample(x):
    """Each pixel becomes a 2×2 square of itself."""
    B, H, W, C = x.shape
    y = np.zeros((B, 2 * H, 2 * W, C))
    for image, h, w, c in np.ndindex(*y.shape):
        y[image, h, w, c] = x[image, h // 2, w // 2, c]
    return y


def dropout(x, rate, seeds, layer):
    """x / (1 − rate) where the image's stream of 16-bit integers is at least rate · 2¹⁶, else 0; low bits of a word first."""
    y = np.zeros(x.shape)
    for image, seed in enumerate(seeds):
        words = np.random.Philox(key=seed + (layer << 64)).random_raw(x[image].size)
        for n, place in enumerate(np.ndindex(*x[image].shape)):
            number = (int(words[n // 4]) >> (16 * (n % 4))) & 0xFFFF
            y[(image, *place)] = x[(image, *place)] / (1 - rate) if number >= round(rate * 65536) else 0.0
    return y


def timestep_embedding(t, dim):
    """Ho et al.'s code, nn.py:90-109: sines, then cosines, of the 0-based t times 10000^(−i/(half−1))."""
    half = dim // 2
    y = np.zeros((len(t), dim))
    for image, t_image in enumerate(t):
        for i in range(half):
            angle = (t_image - 1) * math.exp(-math.log(10000) * i / (half - 1))
            y[image, i], y[image, half + i] = math.sin(angle), math.cos(angle)
    return y


def resblock(cfg, p, x, temb):
    """Ho et al.'s code, unet.py:37-63, without dropout."""
    h = conv2d(p["conv1"], swish(group_norm(p["norm1"], x, cfg.groups, cfg.eps)))
    added = linear(p["time_emb_proj"], swish(temb))
    for image, row, column, c in np.ndindex(*h.shape):
        h[image, row, column, c] += added[image, c]
    h = conv2d(p["conv2"], swish(group_norm(p["norm2"], h, cfg.groups, cfg.eps)))
    return (conv2d(p["conv_shortcut"], x) if x.shape[-1] != h.shape[-1] else x) + h


def attention_block(cfg, p, x):
    """Ho et al.'s code, unet.py:66-84."""
    B, H, W, C = x.shape
    n = group_norm(p["group_norm"], x, cfg.groups, cfg.eps).reshape(B, H * W, C)
    o = attention(linear(p["to_q"], n), linear(p["to_k"], n), linear(p["to_v"], n))
    return x + linear(p["to_out"][0], o).reshape(B, H, W, C)


def unet(cfg, p, x, t):
    """Ho et al.'s code, unet.py:87-145: push on the way down, pop on the way up."""
    levels, ch = len(cfg.widths), cfg.widths[0]
    attention_up = cfg.attention if cfg.attention_up is None else cfg.attention_up
    temb = linear(p["time_embedding"]["linear_2"], swish(linear(p["time_embedding"]["linear_1"], timestep_embedding(t, ch))))
    hs = [conv2d(p["conv_in"], x)]
    for level in range(levels):
        block = p["down_blocks"][level]
        for j in range(cfg.blocks):
            h = resblock(cfg, block["resnets"][j], hs[-1], temb)
            if level in cfg.attention:
                h = attention_block(cfg, block["attentions"][j], h)
            hs.append(h)
        if level != levels - 1:
            hs.append(conv2d(block["downsamplers"][0]["conv"], hs[-1], stride=2))
    h = resblock(cfg, p["mid_block"]["resnets"][0], hs[-1], temb)
    h = attention_block(cfg, p["mid_block"]["attentions"][0], h)
    h = resblock(cfg, p["mid_block"]["resnets"][1], h, temb)
    for level in reversed(range(levels)):
        block = p["up_blocks"][levels - 1 - level]
        for j in range(cfg.blocks + 1):
            h = resblock(cfg, block["resnets"][j], np.concatenate([h, hs.pop()], axis=-1), temb)
            if level in attention_up:
                h = attention_block(cfg, block["attentions"][j], h)
        if level != 0:
            h = conv2d(block["upsamplers"][0]["conv"], upsample(h))
    assert not hs
    return conv2d(p["conv_out"], swish(group_norm(p["conv_norm_out"], h, cfg.groups, cfg.eps)))
