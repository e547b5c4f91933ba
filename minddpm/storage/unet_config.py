"""The JSON configuration of diffusers' UNet2DModel as our UNetConfig, and back.

diffusers has more kinds of network than the paper's.  A file is accepted if `to_json` gives back the value of each of its
options; any other option or value is refused by name, never ignored.
"""

from minddpm.errors import UserError
from minddpm.storage.json_options import VERSION, Options, check_class
from minddpm.unet import UNetConfig

DEFAULTS = {            # diffusers' own, for options that a file leaves out
    "sample_size": None, "in_channels": 3, "out_channels": 3, "block_out_channels": [224, 448, 672, 896], "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"], "mid_block_type": "UNetMidBlock2D",
    "attention_head_dim": 8, "add_attention": True, "attn_norm_num_groups": None, "act_fn": "silu", "dropout": 0.0,
    "norm_num_groups": 32, "norm_eps": 1e-5, "resnet_time_scale_shift": "default", "mid_block_scale_factor": 1,
    "downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv", "center_input_sample": False,
    "time_embedding_type": "positional", "time_embedding_dim": None, "freq_shift": 0, "flip_sin_to_cos": True,
    "class_embed_type": None, "num_class_embeds": None, "num_train_timesteps": None,
}
DOWN = ("DownBlock2D", "AttnDownBlock2D")               # without attention, with it
UP = ("UpBlock2D", "AttnUpBlock2D")


def to_json(cfg):
    """The options of diffusers' UNet2DModel for a UNetConfig: unet/config.json as a dict."""
    levels = range(len(cfg.widths))
    return DEFAULTS | {
        "_class_name": "UNet2DModel", "_diffusers_version": VERSION,
        "sample_size": cfg.image_size, "in_channels": cfg.in_channels, "out_channels": cfg.out_channels,
        "block_out_channels": list(cfg.widths), "layers_per_block": cfg.blocks,
        "down_block_types": [DOWN[level in cfg.attention] for level in levels],
        "up_block_types": [UP[level in cfg.up_attention] for level in reversed(levels)],
        "attention_head_dim": None,                     # one head, as wide as its level
        "dropout": cfg.dropout, "norm_num_groups": cfg.groups, "norm_eps": cfg.eps,
        "downsample_padding": 0,                        # the released code pads below and to the right only
        "flip_sin_to_cos": False, "freq_shift": 1,
    }


def from_json(config, path="config.json"):
    """The UNetConfig that unet/config.json, a dict, describes.  UserError: a network that minddpm does not have."""
    check_class(config, path, "UNet2DModel")
    size = config.get("sample_size")
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        config = config | {"sample_size": size[0]}                  # diffusers also has [height, width]
    options = Options(config, DEFAULTS, path)
    widths = tuple(options.wholes("block_out_channels"))
    levels = range(len(widths))
    attention = _attention(options, "down_block_types", DOWN, levels)
    attention_up = _attention(options, "up_block_types", UP, levels[::-1])
    channels = options.whole("in_channels")
    outputs = options.read("out_channels", lambda v: type(v) is int and v in (channels, 2 * channels),
                           f"{channels}, or {2 * channels} for a learned variance")
    try:
        cfg = UNetConfig(
            image_size=options.whole("sample_size"), in_channels=channels, widths=widths,
            blocks=options.whole("layers_per_block", 100), attention=attention, dropout=options.fraction("dropout"),
            groups=options.whole("norm_num_groups"), eps=options.fraction("norm_eps"), learned_sigma=outputs != channels,
            attention_up=None if attention_up == attention else attention_up,
        )
    except ValueError as e:
        raise UserError(f"{path}: {e}") from e
    supported, head = to_json(cfg), options.values["attention_head_dim"]
    if all(widths[level] == head for level in (*attention, *attention_up, -1)):
        supported["attention_head_dim"] = head                      # one head at each level with attention, as None means
    options.check(supported)
    return cfg


def _attention(options, option, names, levels):
    """The levels with attention, in increasing order, from the list of a block's kind for each of `levels`."""
    kinds = options.read(option, lambda v: isinstance(v, list) and len(v) == len(levels) and all(kind in names for kind in v),
                         f"{len(levels)} of {' and '.join(names)}")
    return tuple(sorted(level for level, kind in zip(levels, kinds, strict=True) if kind == names[1]))
