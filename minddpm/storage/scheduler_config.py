"""diffusers' config of a DDPMScheduler as our Schedule and the choices of the reverse process, and back."""

from typing import NamedTuple

import numpy as np

from minddpm.diffusion import Schedule
from minddpm.errors import UserError
from minddpm.storage import json_options as options

# option: (the only value that we have, diffusers' default where the option is left out)
FIXED = {
    "clip_sample_range": (1.0, 1.0),
    "predict_epsilon": (True, True),                # before prediction_type
    "rescale_betas_zero_snr": (False, False),
    "steps_offset": (0, 0),
    "thresholding": (False, False),
    "timestep_values": (None, None),                # before 0.3
}
# The last line changes nothing: the first two belong to thresholding, spacing to fewer steps than T, tensor_format to NumPy.
READ = {"num_train_timesteps", "timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "variance_type",
        "clip_sample", "clip_predicted_image", "prediction_type",
        "dynamic_thresholding_ratio", "sample_max_value", "timestep_spacing", "tensor_format"}

BETAS = {"linear": Schedule.linear, "scaled_linear": Schedule.quadratic}
# diffusers has no name for what the last one of each means, and says so where it is asked to sample.
SIGMA2 = {"fixed_large": "beta", "fixed_small": "beta_tilde", "learned_log_variance": "learned"}
PREDICTS = {"epsilon": "eps", "sample": "x0", "previous_mean": "mu"}


class Reverse(NamedTuple):
    """Sec. 3.2.  The schedule, and how p_θ is made from the network's output: see reverse.p_theta."""

    schedule: Schedule
    sigma2: str
    clip: bool
    predicts: str


def to_json(model):
    """A Model's schedule, sigma2, clip and predicts -> scheduler/scheduler_config.json."""
    s = model.schedule
    start, end = float(s.beta[1]), float(s.beta[s.T])
    kind = next((name for name, make in BETAS.items()
                 if np.allclose(make(s.T, start, end).beta, s.beta, rtol=1e-12, atol=0)),
                None)
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": options.VERSION,
        "num_train_timesteps": s.T,
        "beta_start": start,
        "beta_end": end,
        "beta_schedule": kind or "linear",
        "trained_betas": None if kind else s.beta[1:].tolist(),
        "variance_type": _key(SIGMA2, model.sigma2),
        "clip_sample": model.clip,
        "clip_sample_range": 1.0,
        "prediction_type": _key(PREDICTS, model.predicts),
        "rescale_betas_zero_snr": False,
        "steps_offset": 0,
        "thresholding": False,
        "timestep_spacing": "leading",
    }


def from_json(config, path="scheduler_config.json"):
    """scheduler/scheduler_config.json -> Reverse.  UserError: an option that minddpm does not have, or a number out of range.

    The names before autumn 2022 as well: class GaussianDDPMScheduler, timesteps, clip_predicted_image.
    """
    if config.get("_class_name") not in ("DDPMScheduler", "GaussianDDPMScheduler"):
        raise UserError(f"{path} describes a {options.shown(config.get('_class_name'))}; expected a 'DDPMScheduler'")
    options.check(config, FIXED, READ, path)
    clip = "clip_predicted_image" if "clip_predicted_image" in config else "clip_sample"
    return Reverse(
        _schedule(config, path),
        options.choice(config, "variance_type", path, "fixed_small", SIGMA2),
        options.flag(config, clip, path, True),
        options.choice(config, "prediction_type", path, "epsilon", PREDICTS),
    )


def _schedule(config, path):
    steps = "timesteps" if "timesteps" in config else "num_train_timesteps"
    T = options.whole(config, steps, path, 1000, high=1_000_000)
    make = options.choice(config, "beta_schedule", path, "linear", BETAS)
    ends = options.number(config, "beta_start", path, 1e-4), options.number(config, "beta_end", path, 0.02)
    betas = config.get("trained_betas")
    try:
        if betas is None:
            if not 0 < min(ends) <= max(ends) < 1:
                raise ValueError(f"beta_start is {ends[0]:g} and beta_end {ends[1]:g}; expected numbers between 0 and 1")
            return make(T, *ends)
        if not isinstance(betas, list) or len(betas) != T or not all(type(b) in (int, float) and 0 < b < 1 for b in betas):
            raise ValueError(f"trained_betas is no list of {T} numbers between 0 and 1, {steps} of them")
        return Schedule(np.array([0.0, *betas]))
    except ValueError as e:
        raise UserError(f"{path}: {e}") from e


def _key(names, ours):
    return next(theirs for theirs, name in names.items() if name == ours)
