"""A trained model: network, weights, schedule and sampler together, and the folder that holds them."""

from dataclasses import dataclass
from pathlib import Path

from minddpm import backend, checkpoint, files, pipeline, tree
from minddpm.diffusion import Schedule
from minddpm.errors import UserError
from minddpm.memory import discard
from minddpm.unet import UNetConfig, parameters, unet

WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True, eq=False)
class Model:
    """Sec. 2, 3.2.  What Alg. 2 needs: the network, p_θ's variance σ_t² and whether the sampler clips x̂_0.

    params is the tree of weights: a training run's folder holds their moving average (EMA).
    """

    config: UNetConfig
    params: dict
    schedule: Schedule
    sigma2: str = "beta"
    clip: bool = True

    def eps_theta(self, x_t, t):
        """Eq. (11), (14).  ε_θ(x_t, t).  x_t (B,H,W,C) of any float dtype, t: the paper's t, an int or (B,) -> ε like x_t."""
        dtype = self.params["conv_in"]["weight"].dtype
        eps, _ = unet(self.config, self.params, x_t.astype(dtype, copy=False), t, run=discard)
        return eps.astype(x_t.dtype, copy=False)


def save(folder, model):
    """Write the model as a folder that diffusers' DDPMPipeline.from_pretrained opens.  UserError: it cannot be written."""
    folder = Path(folder)
    checkpoint.write(folder / "unet" / WEIGHTS, model.params)
    files.write_json(folder / "unet" / "config.json", pipeline.unet_to_json(model.config))
    files.write_json(folder / "scheduler" / "scheduler_config.json",
                     pipeline.scheduler_to_json(model.schedule, model.sigma2, model.clip))
    files.write_json(folder / "model_index.json", pipeline.MODEL_INDEX)


def load(folder, device="cpu"):
    """A diffusers pipeline folder -> Model, with its weights on the device, "cpu" or "cuda".

    UserError: no such folder, or what is in it is damaged, foreign, or uses an option that minddpm does not have.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; expected a model's or a run's folder, with model_index.json in it")
    index = files.read_json(folder / "model_index.json")
    if index.get("_class_name") != "DDPMPipeline":
        raise UserError(f"{folder / 'model_index.json'} describes a {index.get('_class_name')!r}; expected a 'DDPMPipeline'")
    unet_json, scheduler_json = folder / "unet" / "config.json", folder / "scheduler" / "scheduler_config.json"
    config = pipeline.unet_from_json(files.read_json(unet_json), unet_json)
    schedule, sigma2, clip = pipeline.scheduler_from_json(files.read_json(scheduler_json), scheduler_json)
    params, _ = checkpoint.read(folder / "unet" / WEIGHTS, tree.map(lambda draw: draw.shape, parameters(config)))
    return Model(config, tree.map(lambda a: backend.to_device(a, device), params), schedule, sigma2, clip)
