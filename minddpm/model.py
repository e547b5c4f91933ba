"""A trained model: network, weights, schedule and sampler together, and the folder that holds them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from minddpm import device as backend
from minddpm import tree
from minddpm.diffusion import Schedule
from minddpm.errors import UserError
from minddpm.fast.ops import prepare
from minddpm.storage import (
    files,
)
from minddpm.storage import (
    folder as pipeline,
)
from minddpm.storage import (
    scheduler_config as scheduler_json,
)
from minddpm.storage import (
    unet_config as unet_json,
)
from minddpm.storage import (
    weights as checkpoint,
)
from minddpm.unet import UNetConfig, parameters, unet
from minddpm.unet.recompute import discard


@dataclass(frozen=True, eq=False)
class Model:
    """Sec. 2, 3.2.  What Alg. 2 needs: the network, the schedule, and how p_θ is made from the network's output.

    params is the tree of weights: a training run's folder holds their moving average (EMA).  sigma2 (the variance σ_t²),
    clip (whether the sampler clips x̂_0) and predicts (what the network's output is) are arguments of reverse.p_theta.
    """

    config: UNetConfig
    params: dict
    schedule: Schedule
    sigma2: str = "beta"
    clip: bool = True
    predicts: str = "eps"

    def eps_theta(self, x_t, t):
        """Eq. (11), (14).  ε_θ(x_t, t).  x_t (B,H,W,C) of any float dtype, t: the paper's t, an int or (B,) -> ε like x_t.

        It is the network's output, whatever that is: 2C channels where the variance is learned, μ or x̂_0 by `predicts`.
        """
        dtype = self.params["conv_in"]["weight"].dtype
        eps, _ = unet(self.config, self._prepared, x_t.astype(dtype, copy=False), t, run=discard)
        return eps.astype(x_t.dtype, copy=False)

    @cached_property
    def _prepared(self):
        return prepare(self.params, self.config.image_size)


def save(folder, model):
    """Write the model as a folder that diffusers' DDPMPipeline.from_pretrained opens.  UserError: it cannot be written.

    diffusers samples from it if it predicts ε or x_0 with a fixed σ_t²; it refuses μ̃ prediction and a learned log-variance,
    for which it has no name, when it is asked to sample.
    """
    folder = Path(folder)
    place = pipeline.nested(folder)
    checkpoint.write(place.weights, model.params)
    files.write_json(place.unet, unet_json.to_json(model.config))
    files.write_json(place.scheduler, scheduler_json.to_json(model))
    files.write_json(folder / pipeline.INDEX, pipeline.INDEX_JSON)


def load(folder, device="cpu"):
    """A diffusers pipeline folder -> Model, with its weights as float32 on the device, "cpu" or "cuda".

    UserError: no such folder, or what is in it is damaged, foreign, or uses an option that minddpm does not have.
    """
    place = pipeline.find(Path(folder))
    config = unet_json.from_json(files.read_json(place.unet), place.unet)
    schedule, sigma2, clip, predicts = scheduler_json.from_json(files.read_json(place.scheduler), place.scheduler)
    if config.learned_sigma != (sigma2 == "learned"):
        raise UserError(f"{place.unet} has {config.out_channels} channels out for {config.in_channels} in, "
                        f"which does not fit the variance_type in {place.scheduler}")
    params, _ = checkpoint.read(place.weights, tree.map(lambda draw: draw.shape, parameters(config)))
    return Model(config, tree.map(lambda a: backend.to_device(a, device), params), schedule, sigma2, clip, predicts)
