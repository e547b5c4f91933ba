"""What the paper's weights have been called.  Our own names are those of diffusers' UNet2DModel today.

    diffusers today              before 2023    pesser/pytorch_diffusion      released TensorFlow code
    conv_in.weight                              conv_in.weight                conv_in/W
    down_blocks.1.resnets.0.norm1.bias          down.1.block.0.norm1.bias     down_1/block_0/norm1/beta
    down_blocks.1.attentions.0.to_q.weight      down.1.attn.0.q.weight        down_1/attn_0/q/W
                   ….query.weight
    up_blocks.0.upsamplers.0.conv.weight        up.3.upsample.conv.weight     up_3/upsample/conv/W

The tables below say the rest.  I is a level and J a place in it; on the way up diffusers counts levels from the lowest and
the others from the highest: U = levels − 1 − I.  Layouts: diffusers has convolutions OIHW and dense weights (out, in);
pesser the same but attention's four as 1×1 convolutions; TensorFlow has HWIO and (in, out), 1×1 convolutions as (in, out).
"""

import re

import numpy as np

from minddpm import tree
from minddpm.errors import UserError, printable
from minddpm.unet import parameters

PLACES = (  # diffusers                       pesser               TensorFlow
    ("time_embedding.linear_1",               "temb.dense.0",      "temb/dense0"),
    ("time_embedding.linear_2",               "temb.dense.1",      "temb/dense1"),
    ("down_blocks.I.resnets.J",               "down.I.block.J",    "down_I/block_J"),
    ("down_blocks.I.attentions.J",            "down.I.attn.J",     "down_I/attn_J"),
    ("down_blocks.I.downsamplers.0",          "down.I.downsample", "down_I/downsample"),
    ("mid_block.resnets.0",                   "mid.block_1",       "mid/block_1"),
    ("mid_block.attentions.0",                "mid.attn_1",        "mid/attn_1"),
    ("mid_block.resnets.1",                   "mid.block_2",       "mid/block_2"),
    ("up_blocks.I.resnets.J",                 "up.U.block.J",      "up_U/block_J"),
    ("up_blocks.I.attentions.J",              "up.U.attn.J",       "up_U/attn_J"),
    ("up_blocks.I.upsamplers.0",              "up.U.upsample",     "up_U/upsample"),
    ("conv_norm_out",                         "norm_out",          "norm_out"),
)
PARTS = {  # of a block: diffusers, then pesser and TensorFlow; conv, conv1, conv2, norm1, norm2 are the same in all
    "time_emb_proj": "temb_proj", "conv_shortcut": "nin_shortcut",
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}       # of diffusers itself


def modern(name):
    """A name of diffusers' before 2023, or one of today's -> today's.

    >>> modern("down_blocks.1.attentions.0.proj_attn.weight")
    'down_blocks.1.attentions.0.to_out.0.weight'
    """
    return re.sub(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{OLD_ATTENTION[m[2]]}.", name)


def pesser(name, levels):
    """diffusers' name of a weight in a network of so many levels -> pesser's.

    >>> pesser("up_blocks.0.resnets.2.conv_shortcut.weight", levels=4)
    'up.3.block.2.nin_shortcut.weight'
    """
    return _spell(name, levels, 1, ".")


def released(name, levels):
    """diffusers' name of a weight in a network of so many levels -> the released TensorFlow code's, within its scope.

    >>> released("up_blocks.0.resnets.2.norm1.weight", levels=4)
    'up_3/block_2/norm1/gamma'
    """
    path, kind = _spell(name, levels, 2, "/").rsplit("/", 1)
    norm = "norm" in path.rsplit("/", 1)[-1]
    return f"{path}/{({'weight': 'gamma', 'bias': 'beta'} if norm else {'weight': 'W', 'bias': 'b'})[kind]}"


def translate(arrays, cfg):
    """{name: array}, pesser's or the released code's, all of one network's weights -> our tree of float32 arrays.

    UserError: names of neither kind, missing or surplus ones, or other shapes than cfg has.
    """
    shapes = tree.map(lambda draw: draw.shape, parameters(cfg))
    tf = "conv_in/W" in arrays
    spell, layout = (released, _from_tensorflow) if tf else (pesser, _from_pytorch)
    spelled = {name: spell(name, len(cfg.widths)) for name in tree.flatten(shapes)}
    check_names("the weights", set(arrays), set(spelled.values()))
    flat = {}
    for name, shape in tree.flatten(shapes).items():
        a = layout(np.asarray(arrays[spelled[name]], dtype=np.float32), shape)
        if a.shape != shape:
            raise UserError(f"{spelled[name]} has shape {arrays[spelled[name]].shape}, {a.shape} in our layout; expected {shape}")
        flat[name] = np.ascontiguousarray(a)
    return tree.unflatten(flat)


def check_names(what, found, expected):
    """UserError unless both sets of names are the same."""
    for problem, names in ("lacks", expected - found), ("has unexpected", found - expected):
        if names:
            first = printable(min(names)) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            raise UserError(f"{what} {problem} {first}; expected {len(expected)} tensors, found {len(found)}")


def _spell(name, levels, column, dot):
    path, kind = name.rsplit(".", 1)
    for row in PLACES:
        pattern = re.escape(row[0]).replace("I", r"(?P<I>\d+)").replace("J", r"(?P<J>\d+)")
        if m := re.match(rf"{pattern}(?:\.|$)", path):
            numbers = m.groupdict()
            numbers["U"] = str(levels - 1 - int(numbers.get("I", 0)))
            place = "".join(numbers.get(letter, letter) for letter in row[column])
            part = path[m.end():]
            return dot.join(filter(None, (place, PARTS.get(part, part), kind)))
    return f"{path}{dot}{kind}"                         # conv_in and conv_out


def _from_pytorch(a, shape):
    if a.ndim == 4 and len(shape) == 2 and a.shape[2:] == (1, 1):
        a = a[:, :, 0, 0]
    return a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T


def _from_tensorflow(a, shape):
    return a[None, None] if a.ndim == 2 and len(shape) == 4 else a
