"""The folder of a diffusers DDPMPipeline: what its JSON files say, as our UNetConfig, Schedule and sampler, and back.

An option that minddpm does not have is refused by its name, never ignored.  Where a file leaves an option out, diffusers'
own default holds, which is often not the paper's: the tables below name both.
"""

import numpy as np

from minddpm.diffusion import Schedule
from minddpm.errors import UserError
from minddpm.unet import UNetConfig

VERSION = "0.30.0"                  # of diffusers: the oldest one whose key names we write

MODEL_INDEX = {"_class_name": "DDPMPipeline", "_diffusers_version": VERSION,
               "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}

# option: (the only value that we have, diffusers' default where the option is left out)
UNET_FIXED = {
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
UNET_READ = {"sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups",
             "norm_eps", "dropout", "down_block_types", "up_block_types", "attention_head_dim"}

SCHEDULER_FIXED = {
    "clip_sample_range": (1.0, 1.0),
    "prediction_type": ("epsilon", "epsilon"),
    "rescale_betas_zero_snr": (False, False),
    "steps_offset": (0, 0),
    "thresholding": (False, False),
}
SCHEDULER_READ = {"num_train_timesteps", "timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "variance_type",
                  "clip_sample", "dynamic_thresholding_ratio", "sample_max_value", "timestep_spacing"}

SIGMA2 = {"fixed_large": "beta", "fixed_small": "beta_tilde"}


def unet_to_json(cfg):
    """A UNetConfig -> unet/config.json."""
    levels = range(len(cfg.widths))
    down = ["AttnDownBlock2D" if level in cfg.attention else "DownBlock2D" for level in levels]
    up = ["AttnUpBlock2D" if level in cfg.attention else "UpBlock2D" for level in reversed(levels)]
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        "sample_size": cfg.image_size,
        "in_channels": cfg.in_channels,
        "out_channels": cfg.out_channels,
        "block_out_channels": list(cfg.widths),
        "layers_per_block": cfg.blocks,
        "down_block_types": down,
        "up_block_types": up,
        "attention_head_dim": None,
        "dropout": cfg.dropout,
        "norm_num_groups": cfg.groups,
        "norm_eps": cfg.eps,
    } | {option: value for option, (value, _) in UNET_FIXED.items()}


def unet_from_json(config, path="config.json"):
    """unet/config.json -> UNetConfig.  UserError: an option that minddpm does not have, or a size that is none."""
    if config.get("_class_name") != "UNet2DModel":
        raise UserError(f"{path} describes a {config.get('_class_name')!r}; expected a 'UNet2DModel'")
    _check_options(config, UNET_FIXED, UNET_READ, path)
    widths = tuple(_positive_ints(config, "block_out_channels", path))
    size = config.get("sample_size")
    size = size[0] if isinstance(size, list) and len(set(size)) == 1 else size
    in_channels, out_channels = _positive_int(config, "in_channels", path), _positive_int(config, "out_channels", path)
    if out_channels not in (in_channels, 2 * in_channels):
        raise UserError(f"{path}: out_channels is {out_channels}; expected {in_channels}, "
                        f"or {2 * in_channels} for a learned variance")
    attention = _attention_levels(config, len(widths), path)
    head = config.get("attention_head_dim", 8)
    if head is not None and {head} != {widths[level] for level in (*attention, -1)}:
        raise UserError(f"{path}: attention_head_dim is {head}; expected null, one head as wide as its level")
    try:
        return UNetConfig(
            image_size=_positive_int({"sample_size": size}, "sample_size", path),
            in_channels=in_channels,
            widths=widths,
            blocks=_positive_int(config, "layers_per_block", path, 2),
            attention=attention,
            dropout=_number(config, "dropout", path, 0.0),
            groups=_positive_int(config, "norm_num_groups", path, 32),
            eps=_number(config, "norm_eps", path, 1e-5),
            learned_sigma=out_channels == 2 * in_channels,
        )
    except ValueError as e:
        raise UserError(f"{path}: {e}") from e


def scheduler_to_json(s, sigma2, clip):
    """A Schedule, σ_t² and whether x̂_0 is clipped -> scheduler/scheduler_config.json."""
    start, end = float(s.beta[1]), float(s.beta[s.T])
    kinds = {"linear": Schedule.linear, "scaled_linear": Schedule.quadratic}
    kind = next((name for name, make in kinds.items() if np.array_equal(make(s.T, start, end).beta, s.beta)), None)
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": s.T,
        "beta_start": start,
        "beta_end": end,
        "beta_schedule": kind or "linear",
        "trained_betas": None if kind else s.beta[1:].tolist(),
        "variance_type": {ours: theirs for theirs, ours in SIGMA2.items()}[sigma2],
        "clip_sample": clip,
        "timestep_spacing": "leading",
    } | {option: value for option, (value, _) in SCHEDULER_FIXED.items()}


def scheduler_from_json(config, path="scheduler_config.json"):
    """scheduler/scheduler_config.json -> Schedule, σ_t² ("beta" or "beta_tilde") and whether x̂_0 is clipped.

    UserError: an option that minddpm does not have, or a number out of range.
    """
    if config.get("_class_name") not in ("DDPMScheduler", "GaussianDDPMScheduler"):
        raise UserError(f"{path} describes a {config.get('_class_name')!r}; expected a 'DDPMScheduler'")
    _check_options(config, SCHEDULER_FIXED, SCHEDULER_READ, path)
    steps = "timesteps" if "timesteps" in config else "num_train_timesteps"         # the name before 2022-07
    T = _positive_int(config, steps, path, 1000)
    if T > 1_000_000:
        raise UserError(f"{path}: {steps} is {T}; expected at most 1000000")
    variance, kind = config.get("variance_type", "fixed_small"), config.get("beta_schedule", "linear")
    if variance not in SIGMA2:
        raise UserError(f"{path}: variance_type is {variance!r}; expected {' or '.join(SIGMA2)}")
    kinds = {"linear": Schedule.linear, "scaled_linear": Schedule.quadratic}
    if kind not in kinds:
        raise UserError(f"{path}: beta_schedule is {kind!r}; expected {' or '.join(kinds)}")
    try:
        if (betas := config.get("trained_betas")) is not None:
            s = Schedule(np.array([0, *betas], dtype=np.float64))
        else:
            s = kinds[kind](T, _number(config, "beta_start", path, 1e-4), _number(config, "beta_end", path, 0.02))
    except (ValueError, TypeError) as e:
        raise UserError(f"{path}: {e}") from e
    return s, SIGMA2[variance], bool(config.get("clip_sample", True))


def _check_options(config, fixed, read, path):
    for option, value in config.items():
        if option not in fixed and option not in read and not option.startswith("_"):
            raise UserError(f"{path}: option {option} ({value!r}) is unknown to minddpm")
    for option, (ours, default) in fixed.items():
        value = config.get(option, default)
        if value != ours:
            left_out = "" if option in config else " (diffusers' default, as the file leaves it out)"
            raise UserError(f"{path}: {option} is {value!r}{left_out}; minddpm has {ours!r} only")


def _attention_levels(config, levels, path):
    down = _attending(config, "down_block_types", ("DownBlock2D", "AttnDownBlock2D"), levels, path)
    up = _attending(config, "up_block_types", ("UpBlock2D", "AttnUpBlock2D"), levels, path)
    up = sorted(levels - 1 - i for i in up)
    if down != up:
        raise UserError(f"{path}: attention is at levels {down} on the way down and {up} on the way up; expected the same")
    return tuple(down)


def _attending(config, option, names, levels, path):
    blocks = config.get(option)
    if not isinstance(blocks, list) or len(blocks) != levels or not set(map(str, blocks)) <= set(names):
        raise UserError(f"{path}: {option} is {blocks!r}; expected {levels} of {' and '.join(names)}")
    return [i for i, name in enumerate(blocks) if name == names[1]]


def _positive_ints(config, option, path):
    value = config.get(option)
    if not isinstance(value, list) or not value or not all(type(v) is int and 0 < v < 2**31 for v in value):
        raise UserError(f"{path}: {option} is {value!r}; expected a list of positive integers")
    return value


def _positive_int(config, option, path, default=None):
    value = config.get(option, default)
    if type(value) is not int or not 0 < value < 2**31:
        raise UserError(f"{path}: {option} is {value!r}; expected a positive integer")
    return value


def _number(config, option, path, default):
    value = config.get(option, default)
    if type(value) not in (int, float):
        raise UserError(f"{path}: {option} is {value!r}; expected a number")
    return float(value)
