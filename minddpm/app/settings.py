"""The settings of a training run, one frozen dataclass: the flags of `minddpm train` and the content of settings.json."""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from minddpm.diffusion import Schedule
from minddpm.errors import UserError
from minddpm.fast.device import DEVICES
from minddpm.objective import OBJECTIVES
from minddpm.storage import files
from minddpm.unet import UNetConfig
from minddpm.unet.recompute import recompute, store

PRESETS = {"tiny": UNetConfig.tiny, "small": UNetConfig.small, "medium": UNetConfig.medium,
           "cifar10": UNetConfig.cifar10, "image256": UNetConfig.image256}
SCHEDULES = {"linear": Schedule.linear, "quadratic": Schedule.quadratic,
             "constant": lambda T, beta_1, beta_T: Schedule.constant(T, beta_T)}
MEMORY = {"keep": store, "checkpoint": recompute}           # --memory, and what unet then stores for the backward pass

# The presets' defaults for the settings whose default is None.  cifar10, image256: Sec. 4 and App. B; warm-up: released code.
SHORT = dict(batch=64, lr=1e-3, lr_final=1e-5, warmup=50, ema=0.999, dropout=0.0, flips=False)
PAPER = dict(lr_final=None, warmup=5_000, ema=0.9999, flips=True, sample_every=10_000)
TRAINING = {
    "tiny": SHORT | dict(steps=5_000, sample_every=1_000),
    "small": SHORT | dict(steps=10_000, sample_every=2_000),
    "medium": SHORT | dict(steps=20_000, sample_every=5_000),
    "cifar10": PAPER | dict(steps=800_000, batch=128, lr=2e-4, dropout=0.1),
    "image256": PAPER | dict(steps=500_000, batch=64, lr=2e-5, dropout=0.0),
}

COUNT = 10**9               # the largest number of steps
# The L_T in bits/dim from which prior_warning warns.  The paper has about 1e-5 (Sec. 4); its quadratic schedule, which the
# authors also counted as L_T ≈ 0 (App. B), has at most 5.3e-4.
PRIOR_LIMIT = 1e-3
KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def _setting(help, default=None, kind=None, low=-math.inf, high=math.inf, choices=None):
    return field(default=default, metadata=dict(help=help, kind=kind or type(default), low=low, high=high, choices=choices))


@dataclass(frozen=True)
class Settings:
    """The settings of a training run.  None stands for the preset's default; see `resolved`.  UserError: a value out of range."""

    data: str = _setting("data set: a built-in name or a path; see `minddpm data list`", "mnist16")
    preset: str = _setting("network; by default the one for the images' size", kind=str, choices=PRESETS)
    steps: int = _setting("training steps", kind=int, low=1, high=COUNT)
    batch: int = _setting("images a step", kind=int, low=1)
    lr: float = _setting("Adam's learning rate", kind=float, low=0, high=1)
    lr_final: float = _setting("learning rate at the last step, reached along a half cosine; by default --lr if that is given",
                               kind=float, low=0, high=1)
    warmup: int = _setting("steps over which the learning rate rises linearly from 0", kind=int, low=0, high=COUNT)
    grad_clip: float = _setting("global norm to which a larger gradient is scaled down", 1.0, low=0, high=1e9)
    ema: float = _setting("decay of the moving average of the weights", kind=float, low=0, high=1)
    dropout: float = _setting("dropout rate in the residual blocks", kind=float, low=0, high=0.99)
    flips: bool = _setting("mirror each image with probability 1/2", kind=bool)
    objective: str = _setting("training loss", "simple", choices=OBJECTIVES)
    T: int = _setting("diffusion steps", 1000, low=1, high=1_000_000)
    beta_schedule: str = _setting("how β_t grows", "linear", choices=SCHEDULES)
    beta_1: float = _setting("β_1", 1e-4, low=0, high=1)
    beta_T: float = _setting("β_T, and every β_t of the constant schedule", 0.02, low=0, high=1)
    sigma2: str = _setting("σ_t² of p_θ; by default beta, but learned where the objective learns it", kind=str,
                           choices=("beta", "beta_tilde", "learned"))
    seed: int = _setting("seed of everything random", 0, low=0, high=2**63 - 1)
    memory: str = _setting("checkpoint: gradient checkpointing, less memory for one more forward pass a step", "keep",
                           choices=MEMORY)
    threads: int = _setting("worker threads; by default one a CPU", kind=int, low=1, high=4096)
    device: str = _setting("where to compute", "auto", choices=DEVICES)
    save_every: int = _setting("steps between two saves; 0: at the end only", 500, low=0, high=COUNT)
    sample_every: int = _setting("steps between two pictures of 16 samples; 0: none", kind=int, low=0, high=COUNT)

    def __post_init__(self):
        for f in fields(self):
            if getattr(self, f.name) is not None or f.default is not None:
                _check(f.name, getattr(self, f.name), **{k: f.metadata[k] for k in ("kind", "low", "high", "choices")})

    def resolved(self, image_shape):
        """The same settings with the preset for (H, W, C) images, and its defaults in place of None.

        UserError: no preset is for images of this size, or the given one is for another size, or sigma2 does not fit.
        """
        preset = self.preset or preset_for(image_shape)
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if "lr" in given and "lr_final" not in given:
            given["lr_final"] = None                             # the preset's decay belongs to the preset's lr
        settings = Settings(**TRAINING[preset] | given | {"preset": preset, "sigma2": self._sigma2()})
        config = settings.config(image_shape[2])
        if tuple(image_shape[:2]) != (config.image_size, config.image_size):
            found = "x".join(map(str, image_shape))
            raise UserError(f"data set {self.data} has {found} images; preset {preset} expects "
                            f"{config.image_size}x{config.image_size}")
        return settings

    def config(self, channels):
        """The network's sizes, a UNetConfig, for images with this number of channels."""
        return replace(PRESETS[self.preset](channels), dropout=self.dropout,
                       learned_sigma=OBJECTIVES[self.objective].learned_sigma)

    def schedule(self):
        """The β schedule.  UserError: not all β_t are between 0 and 1."""
        try:
            return SCHEDULES[self.beta_schedule](self.T, self.beta_1, self.beta_T)
        except ValueError as e:
            raise UserError(str(e)) from e

    @property
    def policy(self):
        """The function of unet/recompute.py that chooses the arrays stored for the backward pass."""
        return MEMORY[self.memory]

    def _sigma2(self):
        learned = OBJECTIVES[self.objective].learned_sigma
        if self.sigma2 and learned != (self.sigma2 == "learned"):
            expected = "no other sigma2 than learned" if learned else "beta or beta_tilde"
            raise UserError(f"objective {self.objective} {'learns' if learned else 'does not learn'} Σ, but sigma2 is "
                            f"{self.sigma2}; expected {expected}")
        return "learned" if learned else self.sigma2 or "beta"


def preset_for(image_shape):
    """The name of the preset for (H, W, C) images.  UserError: there is none."""
    for name, make in PRESETS.items():
        if tuple(image_shape[:2]) == (make().image_size,) * 2:
            return name
    sizes = ", ".join(f"{name} {make().image_size}x{make().image_size}" for name, make in PRESETS.items())
    raise UserError(f"no preset is made for {'x'.join(map(str, image_shape))} images; expected one of {sizes}")


def prior_warning(s):
    """Sec. 4.  A warning with the number if the schedule leaves much of x_0 in x_T, else None.

    For numbers in [−1, 1] L_T is at most −½ log₂(1 − ᾱ_T) bits/dim.  Sampling begins from N(0, I) as though it were 0.
    """
    worst = -0.5 * math.log2(1 - s.alpha_bar[s.T])
    if worst < PRIOR_LIMIT:
        return None
    return (f"the schedule leaves ᾱ_T = {s.alpha_bar[s.T]:.2g} at T = {s.T}: L_T is up to {worst:.2g} bits/dim (the "
            "paper's is 1e-5), so x_T still shows x_0, while sampling begins from pure noise; expected a larger T or β_T")


def read(folder):
    """The Settings in a run's settings.json.  UserError: no run there, an unknown name, or a value out of range."""
    path = Path(folder) / "settings.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no run to resume; expected a settings.json in it")
    values = files.read_json(path)
    unknown = sorted(set(values) - {f.name for f in fields(Settings)})
    if unknown:
        raise UserError(f"{path}: setting {unknown[0]} is unknown to this version of minddpm")
    try:
        return Settings(**values)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e


def _check(name, value, kind, low, high, choices):
    if choices is not None:
        if type(value) is not str or value not in choices:
            raise UserError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
    elif type(value) is not kind and not (kind is float and type(value) is int):
        raise UserError(f"{name} is {value!r}; expected {KINDS[kind]}")
    elif kind in (int, float) and not low <= value <= high:
        raise UserError(f"{name} is {value}; expected {f'at least {low}' if high == math.inf else f'{low} to {high}'}")
