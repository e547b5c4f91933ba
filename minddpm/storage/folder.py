"""The folder of a diffusers DDPMPipeline: which of its files hold what, and which of them we read.

    nested, as save_pretrained writes it        flat, as google/ddpm-cifar10-32 and its siblings have it
    model_index.json                            model_index.json
    unet/config.json                            config.json
    unet/diffusion_pytorch_model.safetensors    diffusion_pytorch_model.safetensors
    scheduler/scheduler_config.json             scheduler_config.json
"""

import os
import shlex
import stat
from pathlib import Path
from typing import NamedTuple

from minddpm import tree
from minddpm.device import to_device
from minddpm.errors import UserError, printable
from minddpm.fast import ops_for
from minddpm.model import Model
from minddpm.storage import files, scheduler_config, unet_config, weights
from minddpm.storage import json_options as options
from minddpm.unet import parameters

INDEX = "model_index.json"
INDEX_JSON = {"_class_name": "DDPMPipeline", "_diffusers_version": options.VERSION,
              "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Files(NamedTuple):
    """The three files that make a model."""

    unet: Path
    weights: Path
    scheduler: Path


def nested(folder):
    """The files' places as save_pretrained has them; none of them need exist."""
    return Files(folder / "unet" / "config.json", folder / "unet" / WEIGHTS, folder / "scheduler" / "scheduler_config.json")


def flat(folder):
    """The files' places as the hub's google/ddpm-* have them; none of them need exist."""
    return Files(folder / "config.json", folder / WEIGHTS, folder / "scheduler_config.json")


def find(folder):
    """A pipeline's folder -> Files, each of which exists and lies in it.

    UserError: no such folder or file, another pipeline, weights that are pickled, or a link that leads out of the folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; expected a model's or a run's folder, with {INDEX} in it")
    if not os.path.lexists(folder / INDEX):
        raise UserError(f"{folder} has no {INDEX}; expected a model's or a run's folder (a run has one once it is saved)")
    _check_inside(folder, folder / INDEX)
    kind = files.read_json(folder / INDEX).get("_class_name")
    if kind != "DDPMPipeline":
        raise UserError(f"{folder / INDEX} describes a {options.shown(kind)}; expected a 'DDPMPipeline'")
    found = nested(folder) if (folder / "unet").is_dir() else flat(folder)
    _check_weights(folder, found.weights)
    for path in found:
        _check_inside(folder, path)
    return found


def _check_weights(folder, path):
    """Say what to do about weights in another form than ours."""
    if os.path.lexists(path):
        return
    pickled = path.with_suffix(".bin")
    if os.path.lexists(pickled):
        here, there = str(folder.absolute()), str(folder.absolute()) + "-safetensors"
        line = f"from diffusers import DDPMPipeline as P; P.from_pretrained({here!r}).save_pretrained({there!r})"
        raise UserError(f"{pickled} is a pickle, which can run any program when it is opened; convert it to {WEIGHTS} "
                        f"where you trust it, with diffusers and torch: python -c {shlex.quote(line)}")
    others = sorted(p.name for p in path.parent.glob("*.safetensors*"))
    raise UserError(f"{path} does not exist; expected all weights in this one file, "
                    f"found {printable(', '.join(others[:3])) or 'no weights'}")


def _check_inside(folder, path):
    """UserError unless path is a regular file and, where links are followed, in the folder.

    The hub's cache is the exception: its snapshots/REVISION/ holds links into ../../blobs/.
    """
    root, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    roots = [root] + ([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])
    if not any(real.is_relative_to(allowed) for allowed in roots):
        raise UserError(f"{path} is a link that leads out of its folder, to {real}; expected the file itself")
    try:
        mode = os.stat(real).st_mode
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}") from e
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is no regular file; expected one")


def save(folder, model):
    """Write the model as a folder that diffusers' DDPMPipeline.from_pretrained opens.  UserError: it cannot be written.

    diffusers samples from it if it predicts ε or x_0 with a fixed σ_t²; it refuses μ̃ prediction and a learned log-variance,
    for which it has no name, when it is asked to sample.
    """
    folder = Path(folder)
    place = nested(folder)
    weights.write(place.weights, model.params)
    files.write_json(place.unet, unet_config.to_json(model.config))
    files.write_json(place.scheduler, scheduler_config.to_json(model))
    files.write_json(folder / INDEX, INDEX_JSON)


def load(folder, device="cpu"):
    """A diffusers pipeline folder -> Model, with its weights as float32 on the device, "cpu" or "cuda".

    UserError: no such folder, or what is in it is damaged, foreign, or uses an option that minddpm does not have.
    """
    place = find(Path(folder))
    config = unet_config.from_json(files.read_json(place.unet), place.unet)
    schedule, sigma2, clip, predicts = scheduler_config.from_json(files.read_json(place.scheduler), place.scheduler)
    if config.learned_sigma != (sigma2 == "learned"):
        raise UserError(f"{place.unet} has {config.out_channels} channels out for {config.in_channels} in, "
                        f"which does not fit the variance_type in {place.scheduler}")
    params, _ = weights.read(place.weights, tree.map(lambda init: init.shape, parameters(config)))
    params = tree.map(lambda a: to_device(a, device), params)
    return Model(config, params, schedule, sigma2, clip, predicts, ops_for(params, config.image_size))
