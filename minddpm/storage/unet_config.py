"""diffusers' config of a UNet2DModel as our UNetConfig, and back.

An option that minddpm does not have is refused by its name, never ignored.  Where a file leaves an option out, diffusers'
own default holds, which is often not the paper's: the table names both.
"""

from minddpm.errors import UserError
from minddpm.storage import json_options as options
from minddpm.unet import UNetConfig

# option: (the only value that we have, diffusers' default where the option is left out)
FIXED = {
    "act_fn": ("silu", "silu"),
    "add_attention": (True, True),
    "attn_norm_num_groups": (None, None),
    "center_input_sample": (False, False),
    "class_embed_type": (None, None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "conv"),
    "flip_sin_to_cos": (False, True),
    "freq_shift": (1, 0),
    "mid_block_scale_factor": (1, 1),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "num_class_embeds": (None, None),
    "num_train_timesteps": (None, None),
    "resnet_time_scale_shift": ("default", "default"),
    "time_embedding_dim": (None, None),
    "time_embedding_type": ("positional", "positional"),
    "upsample_type": ("conv", "conv"),
}
READ = {"sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups", "norm_eps",
        "dropout", "down_block_types", "up_block_types", "attention_head_dim"}
DOWN = ("DownBlock2D", "AttnDownBlock2D")
UP = ("UpBlock2D", "AttnUpBlock2D")


def to_json(cfg):
    """A UNetConfig -> unet/config.json."""
    levels = range(len(cfg.widths))
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": options.VERSION,
        "sample_size": cfg.image_size,
        "in_channels": cfg.in_channels,
        "out_channels": cfg.out_channels,
        "block_out_channels": list(cfg.widths),
        "layers_per_block": cfg.blocks,
        "down_block_types": [DOWN[level in cfg.attention] for level in levels],
        "up_block_types": [UP[level in cfg.up_attention] for level in reversed(levels)],
        "attention_head_dim": None,
        "dropout": cfg.dropout,
        "norm_num_groups": cfg.groups,
        "norm_eps": cfg.eps,
    } | {option: value for option, (value, _) in FIXED.items()}


def from_json(config, path="config.json"):
    """unet/config.json -> UNetConfig.  UserError: an option that minddpm does not have, or a size that is none."""
    if config.get("_class_name") != "UNet2DModel":
        raise UserError(f"{path} describes a {options.shown(config.get('_class_name'))}; expected a 'UNet2DModel'")
    options.check(config, FIXED, READ, path)
    widths = tuple(options.wholes(config, "block_out_channels", path, high=2**20))
    channels, outputs = (options.whole(config, option, path, 3, high=2**20) for option in ("in_channels", "out_channels"))
    if outputs not in (channels, 2 * channels):
        raise UserError(f"{path}: out_channels is {outputs}; expected {channels}, or {2 * channels} for a learned variance")
    attention = _attending(config, "down_block_types", DOWN, len(widths), path)
    up_attention = tuple(sorted(len(widths) - 1 - i for i in _attending(config, "up_block_types", UP, len(widths), path)))
    _check_heads(config, {widths[level] for level in (*attention, *up_attention, -1)}, path)
    try:
        return UNetConfig(
            image_size=_image_size(config, path),
            in_channels=channels,
            widths=widths,
            blocks=options.whole(config, "layers_per_block", path, 2, high=100),
            attention=attention,
            dropout=options.number(config, "dropout", path, 0.0),
            groups=options.whole(config, "norm_num_groups", path, 32),
            eps=options.number(config, "norm_eps", path, 1e-5),
            learned_sigma=outputs == 2 * channels,
            attention_up=None if up_attention == attention else up_attention,
        )
    except ValueError as e:
        raise UserError(f"{path}: {e}") from e


def _image_size(config, path):
    size = config.get("sample_size")
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    return options.whole({"sample_size": size}, "sample_size", path, high=2**16)


def _attending(config, option, names, levels, path):
    """The places in a list of block types that have attention."""
    blocks = config.get(option)
    if not isinstance(blocks, list) or len(blocks) != levels or not all(block in names for block in blocks):
        raise UserError(f"{path}: {option} is {options.shown(blocks)}; expected {levels} of {' and '.join(names)}")
    return tuple(i for i, name in enumerate(blocks) if name == names[1])


def _check_heads(config, widths, path):
    """attention_head_dim is the channels of a head, not the number of heads: ours is one head as wide as its level."""
    head = config.get("attention_head_dim", 8)
    if head is not None and (type(head) is not int or widths != {head}):
        left_out = "" if "attention_head_dim" in config else ", diffusers' default, as the file leaves it out"
        raise UserError(f"{path}: attention_head_dim is {options.shown(head)}{left_out}; "
                        "minddpm has None only, one head as wide as its level")
