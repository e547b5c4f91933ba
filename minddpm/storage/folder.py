"""A model's folder, which is that of a diffusers DDPMPipeline: saved, found and loaded.

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
from minddpm.storage import scheduler_config, unet_config, weights
from minddpm.storage.files import read_json, write_json
from minddpm.storage.json_options import VERSION, check_class
from minddpm.unet import parameters

INDEX = "model_index.json"
INDEX_JSON = {"_class_name": "DDPMPipeline", "_diffusers_version": VERSION,
              "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Paths(NamedTuple):
    """The paths of the three files that make a model."""

    unet: Path
    weights: Path
    scheduler: Path


def nested(folder):
    """The Paths that save_pretrained uses; the files need not exist."""
    return Paths(folder / "unet" / "config.json", folder / "unet" / WEIGHTS, folder / "scheduler" / "scheduler_config.json")


def flat(folder):
    """The Paths of google/ddpm-* on the Hugging Face hub; the files need not exist."""
    return Paths(folder / "config.json", folder / WEIGHTS, folder / "scheduler_config.json")


def save(folder, model):
    """Write the Model as a folder that diffusers' DDPMPipeline.from_pretrained opens.  UserError: it cannot be written.

    diffusers samples from it if it predicts ε or x_0 with a fixed σ_t².  It has no name for μ̃ prediction or a learned
    log-variance: it opens such a folder, and raises an error when asked for samples.
    """
    folder = Path(folder)
    paths = nested(folder)
    weights.write(paths.weights, model.params)
    write_json(paths.unet, unet_config.to_json(model.config))
    write_json(paths.scheduler, scheduler_config.to_json(model))
    write_json(folder / INDEX, INDEX_JSON)


def load(folder, device="cpu"):
    """The Model in a diffusers pipeline folder, its weights as float32 on the device, "cpu" or "cuda".

    UserError: no such folder, a file that is missing, damaged or a pickle, or an option that minddpm does not have.
    """
    paths = find(Path(folder))
    config = unet_config.from_json(read_json(paths.unet), paths.unet)
    sampler = scheduler_config.from_json(read_json(paths.scheduler), paths.scheduler)
    if config.learned_sigma != (sampler.sigma2 == "learned"):
        raise UserError(f"{paths.unet} has in_channels {config.in_channels} and out_channels {config.out_channels}, "
                        f"which does not fit the variance_type in {paths.scheduler}")
    params, _ = weights.read(paths.weights, tree.map(lambda init: init.shape, parameters(config)))
    params = tree.map(lambda a: to_device(a, device), params)
    return Model(config, params, **sampler._asdict(), ops=ops_for(params, config.image_size))


def find(folder):
    """The Paths of a pipeline's files, each of which exists and lies in the folder.

    UserError: no such folder or file, another kind of pipeline, pickled weights, or a link that leads out of the folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; expected a model's or a run's folder, with {INDEX} in it")
    if not os.path.lexists(folder / INDEX):
        raise UserError(f"{folder} has no {INDEX}; expected a model's or a run's folder (a run has one after its first save)")
    _check_inside(folder, folder / INDEX)
    check_class(read_json(folder / INDEX), folder / INDEX, INDEX_JSON["_class_name"])
    paths = nested(folder) if (folder / "unet").is_dir() else flat(folder)
    _check_weights(folder, paths.weights)
    for path in paths:
        _check_inside(folder, path)
    return paths


def _check_weights(folder, path):
    """UserError if there are no weights at path, with a command where they are pickled, and other files' names where not."""
    if os.path.lexists(path):
        return
    pickled = path.with_suffix(".bin")
    if os.path.lexists(pickled):
        source, target = str(folder.absolute()), str(folder.absolute()) + "-safetensors"
        line = f"from diffusers import DDPMPipeline as P; P.from_pretrained({source!r}).save_pretrained({target!r})"
        raise UserError(f"{pickled} is a pickle, which can run any program when it is opened; if you trust it, "
                        f"convert it to {WEIGHTS} with diffusers and torch: python -c {shlex.quote(line)}")
    others = sorted(p.name for p in path.parent.glob("*.safetensors*"))
    raise UserError(f"{path} does not exist; expected all weights in this one file, "
                    f"found {printable(', '.join(others[:3])) or 'no weights'}")


def _check_inside(folder, path):
    """UserError unless path is a regular file and, where links are followed, in the folder.

    The hub's cache is an exception: its snapshots/REVISION/ holds links into ../../blobs/.
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
        raise UserError(f"{path} is not a regular file; expected one")
