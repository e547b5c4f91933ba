"""The JSON configuration of diffusers' DDPMScheduler as our Schedule and the choices of the reverse process, and back.

As in unet_config.py, any option or value that minddpm does not have is refused by name, never ignored.
"""

from typing import NamedTuple

import numpy as np

from minddpm.diffusion import Schedule
from minddpm.errors import UserError
from minddpm.storage.json_options import VERSION, Options, check_class

DEFAULTS = {            # diffusers' own, for options that a file leaves out
    "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None,
    "variance_type": "fixed_small", "clip_sample": True, "clip_sample_range": 1.0, "prediction_type": "epsilon",
    "thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0, "timestep_spacing": "leading",
    "steps_offset": 0, "rescale_betas_zero_snr": False,
}
OLD_NAMES = {"timesteps": "num_train_timesteps", "clip_predicted_image": "clip_sample"}     # before autumn 2022
OLD_OPTIONS = {"predict_epsilon": True, "timestep_values": None}
BETA_OPTIONS = ("beta_start", "beta_end", "beta_schedule", "trained_betas")                 # several describe one Schedule
# The first two belong to thresholding, the third to fewer sampling steps than T, the last to NumPy or torch.
WITHOUT_EFFECT = ("dynamic_thresholding_ratio", "sample_max_value", "timestep_spacing", "tensor_format")

BETAS = {"linear": Schedule.linear, "scaled_linear": Schedule.quadratic}
# diffusers has no name for the last of either: it opens such a folder, and raises an error when asked for samples.
SIGMA2 = {"fixed_large": "beta", "fixed_small": "beta_tilde", "learned_log_variance": "learned"}
PREDICTS = {"epsilon": "eps", "sample": "x0", "previous_mean": "mu"}


class Sampler(NamedTuple):
    """Sec. 3.2.  The fields of a Model that make p_θ of the network's output: see reverse.p_theta."""

    schedule: Schedule
    sigma2: str
    clip: bool
    predicts: str


def to_json(model):
    """The options of diffusers' DDPMScheduler for a Model or a Sampler: scheduler/scheduler_config.json as a dict."""
    s = model.schedule
    start, end = float(s.beta[1]), float(s.beta[s.T])
    kind = next((name for name, make in BETAS.items()
                 if np.allclose(make(s.T, start, end).beta, s.beta, rtol=1e-12, atol=0)), None)
    return DEFAULTS | {
        "_class_name": "DDPMScheduler", "_diffusers_version": VERSION,
        "num_train_timesteps": s.T, "beta_start": start, "beta_end": end, "beta_schedule": kind or "linear",
        "trained_betas": None if kind else s.beta[1:].tolist(),
        "variance_type": _key(SIGMA2, model.sigma2), "clip_sample": model.clip, "prediction_type": _key(PREDICTS, model.predicts),
    }


def from_json(config, path="scheduler_config.json"):
    """The Sampler that scheduler/scheduler_config.json, a dict, describes.  UserError: one that minddpm does not have."""
    check_class(config, path, "DDPMScheduler", "GaussianDDPMScheduler")                     # the second: before autumn 2022
    options = Options({OLD_NAMES.get(option, option): value for option, value in config.items()}, DEFAULTS, path)
    sampler = Sampler(_schedule(options), options.choice("variance_type", SIGMA2),
                      options.read("clip_sample", lambda v: type(v) is bool, "true or false"),
                      options.choice("prediction_type", PREDICTS))
    options.check(to_json(sampler) | OLD_OPTIONS, ignored=BETA_OPTIONS + WITHOUT_EFFECT)
    return sampler


def _schedule(options):
    T, make = options.whole("num_train_timesteps"), options.choice("beta_schedule", BETAS)
    betas = options.read(
        "trained_betas", lambda v: v is None or isinstance(v, list) and len(v) == T and all(type(b) is float for b in v),
        f"null or a list of {T} numbers between 0 and 1")
    try:
        if betas is not None:
            return Schedule(np.array([0.0, *betas]))
        return make(T, options.fraction("beta_start"), options.fraction("beta_end"))
    except ValueError as e:
        raise UserError(f"{options.path}: beta_start, beta_end or trained_betas is out of range: {e}") from e


def _key(names, value):
    return next(name for name, ours in names.items() if ours == value)
