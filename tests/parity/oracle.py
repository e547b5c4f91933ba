"""torch and diffusers as oracles: networks of theirs with random weights, and the way between their arrays and ours.

    pip install -e .[test,parity]        pytest tests/parity -m 'slow or not slow'

Without them every test in this folder is skipped and says so.  Theirs: NCHW, OIHW, (out, in), timesteps from 0.  Ours: NHWC,
HWIO, (in, out), the paper's t from 1.
"""

import json
import warnings

import numpy as np
import pytest

from minddpm import tree
from minddpm.storage import unet_config
from minddpm.storage.weights import from_file_layout
from minddpm.unet import parameters

REASON = "needs the oracles torch and diffusers: pip install -e .[test,parity]"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason=REASON)
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

__all__ = ["DDPMPipeline", "DDPMScheduler", "UNet2DModel", "torch"]
torch.set_num_threads(1)            # the networks are small, and a second thread would wait for a core more than it helps
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

PAPER = dict(attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6)


def make(widths, down, up, blocks, groups, channels, size, outputs=None, **more):
    """A UNet2DModel with the paper's choices.  down and up: a letter a level, A for attention, - for none."""
    return UNet2DModel(
        sample_size=size, in_channels=channels, out_channels=outputs or channels, block_out_channels=widths,
        layers_per_block=blocks, norm_num_groups=groups,
        down_block_types=[{"A": "AttnDownBlock2D", "-": "DownBlock2D"}[letter] for letter in down],
        up_block_types=[{"A": "AttnUpBlock2D", "-": "UpBlock2D"}[letter] for letter in up], **PAPER | more)


def cifar10():
    """The configuration of google/ddpm-cifar10-32, full size."""
    return make((128, 256, 256, 256), "-A--", "--A-", 2, 32, 3, 32)


def image256(size=256):
    """The configuration of google/ddpm-celebahq-256 and its siblings, full size."""
    return make((128, 128, 256, 256, 512, 512), "----A-", "-A----", 2, 32, 3, size)


def randomize(unet, seed):
    """Weights of the size that keeps activations about 1, none of them zero: at the paper's init almost every gradient is 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in unet.named_parameters():
            z = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                p.copy_(z / p[0].numel() ** 0.5)
            else:
                p.copy_(0.2 * z + (1 if "norm" in name and name.endswith("weight") else 0))
    return unet


def config_of(unet):
    """Our configuration of their network, through the JSON that it would be saved with."""
    return unet_config.from_json(json.loads(unet.to_json_string()))


def to_ours(named, dtype=None):
    """{name: tensor} of theirs -> our tree of arrays."""
    flat = {name: from_file_layout(t.detach().numpy()) for name, t in named.items()}
    return tree.unflatten({name: np.array(a, dtype=dtype or a.dtype, order="C") for name, a in flat.items()})


def check_names(params, cfg):
    """Same names and shapes as our own network of this configuration."""
    ours = {name: draw.shape for name, draw in tree.flatten(parameters(cfg)).items()}
    assert {name: a.shape for name, a in tree.flatten(params).items()} == ours


def nchw(x):
    """Our images (B,H,W,C) -> a tensor (B,C,H,W)."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def nhwc(x):
    """A tensor (B,C,H,W) -> our images (B,H,W,C)."""
    return x.detach().numpy().transpose(0, 2, 3, 1)


def relative(ours, theirs):
    """‖ours − theirs‖ / ‖theirs‖."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def float64_time_embedding(unet):
    """Let their network embed the timestep in float64 instead of float32, the one thing that keeps it from full precision."""
    half = unet.config.block_out_channels[0] // 2
    frequencies = torch.exp(-torch.log(torch.tensor(1e4, dtype=torch.float64)) / (half - 1) * torch.arange(half))

    class Exact(torch.nn.Module):
        def forward(self, timesteps):
            angles = timesteps.double()[:, None] * frequencies
            return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)

    unet.time_proj = Exact()
    return unet
