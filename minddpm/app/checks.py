"""The checks of `minddpm selftest`: the same computed twice, in float32 on a device, and in float64 with NumPy on the CPU.

The tests have proved the float64 side.  So a check that fails speaks of this machine, its libraries, or of code that only its
device runs.
"""

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from minddpm import device as backend
from minddpm import tree
from minddpm.app.run import workers_for
from minddpm.app.settings import Settings
from minddpm.data import load
from minddpm.diffusion import Schedule, q_sample
from minddpm.fast import ops as layers
from minddpm.model import Model
from minddpm.objective import OBJECTIVES, Example
from minddpm.sample import sample
from minddpm.train import TrainingState, draw_batch, train_step
from minddpm.unet import UNetConfig, parameters, unet

STEPS = 20


class Check(NamedTuple):
    """difference() computes something twice -> the largest relative difference, which is right below the limit."""

    name: str
    difference: Callable
    limit: float


def affine(*shape):
    """The shapes of a layer's weight and bias."""
    return {"weight": shape, "bias": shape[-1:]}


# Each layer and the shapes of its arguments, odd where the layer allows it.
LAYERS = {
    "dense layer":              (layers.linear, affine(24, 40), (3, 7, 24)),
    "convolution 1×1":          (layers.conv1x1, affine(1, 1, 24, 40), (2, 5, 7, 24)),
    "convolution 3×3":          (layers.conv2d, affine(3, 3, 16, 24), (2, 9, 7, 16)),
    "convolution 3×3, halving": (partial(layers.conv2d, stride=2), affine(3, 3, 16, 24), (2, 10, 6, 16)),
    "group norm":               (partial(layers.group_norm, groups=8), affine(32), (3, 5, 7, 32)),
    "group norm and swish":     (partial(layers.norm_swish, groups=8), affine(32), (3, 5, 7, 32)),
    "swish":                    (layers.swish, (3, 5, 7, 3)),
    "attention":                (layers.attention, (2, 49, 32), (2, 49, 32), (2, 49, 32)),
    "upsampling":               (layers.upsample, (2, 5, 7, 3)),
    "dropout":                  (partial(layers.dropout, rate=0.3, seeds=[5, 2**63], layer=1), (2, 5, 7, 3)),
}
NETWORK = replace(UNetConfig.tiny(), dropout=0.1)


def checks(device):
    """Every Check of a device, "cpu" or "cuda", from the layers to training and sampling."""
    for name, (f, *shapes) in LAYERS.items():
        yield Check(f"{name}, with gradients", partial(against_float64, device, f, *draw(shapes)), 1e-5)
    for name in OBJECTIVES:
        yield Check(f"loss {name}, with its gradient", partial(loss, device, name), 1e-5)
    inputs = weights(NETWORK), *draw([(4, 8, 8, 1)])
    yield Check("U-Net with attention and dropout, with gradients", partial(against_float64, device, network, *inputs), 1e-4)
    fast = "kernels" if device == "cuda" else "Winograd's convolutions"
    yield Check(f"the same in float32: {fast} against plain code", partial(fast_against_plain, device, *inputs), 1e-4)
    yield Check(f"{STEPS} training steps: losses and averaged weights", partial(training, device), 2e-4)
    yield Check(f"{STEPS} sampling steps", partial(sampling, device), 1e-5)


def draw(shapes):
    """A tree of shapes -> a tree of random float32 numbers."""
    rng = np.random.default_rng(0)
    return tree.map(lambda shape: rng.standard_normal(shape, dtype=np.float32), shapes)


def weights(cfg):
    """Parameters at which every part of a network works: `init` leaves the last layers so small that little would show."""
    rng = np.random.default_rng(0)

    def near(d):
        scale = 0.1 if len(d.shape) == 1 else 0.7 / math.sqrt(math.prod(d.shape[:-1]))
        return (d.centre + scale * rng.standard_normal(d.shape)).astype(np.float32)

    return tree.map(near, parameters(cfg))


def on(device, dtype, arrays):
    """A tree of arrays, in the dtype and on the device."""
    return tree.map(lambda a: backend.to_device(a.astype(dtype, copy=False), device), arrays)


def values(f, inputs):
    """y of `y, back = f(*inputs)`, and what back answers to a random dy: a list of arrays on the host."""
    y, back = f(*inputs)
    dy = np.random.default_rng(1).standard_normal(y.shape, dtype=np.float32)
    gradients = back(np.asarray(dy, dtype=y.dtype, like=y))
    return [backend.to_host(a) for a in (y, *tree.leaves(list(gradients) if isinstance(gradients, tuple) else [gradients]))]


def largest(found, expected):
    """The largest difference of two arrays, relative to the largest number of the second, over pairs of them; may be nan.

    An array is measured at a thousandth of the largest of all at least: the gradient of a key's bias, which moves all scores of
    a softmax alike, is 0, and what is found there is rounding.
    """
    sizes = np.array([np.abs(b).max() for b in expected])
    differences = np.array([np.abs(a - b).max() for a, b in zip(found, expected, strict=True)])
    return float(np.max(differences / np.maximum(sizes, 1e-3 * sizes.max())))


def against_float64(device, f, *inputs):
    """The difference of f's values and gradients between float32 on the device and float64 on the CPU."""
    return largest(values(f, on(device, np.float32, list(inputs))), values(f, on("cpu", np.float64, list(inputs))))


def loss(device, name):
    """The same for one of the OBJECTIVES, at t = 1, where L is the decoder's, and others."""
    objective, s, t = OBJECTIVES[name], Schedule.linear(), np.array([1, 2, 300, 1000])
    noise, eps, output = draw([(4, 5, 7, 3), (4, 5, 7, 3), (4, 5, 7, 6 if objective.learned_sigma else 3)])
    x0 = np.rint(127.5 * np.clip(noise / 2, -1, 1) + 127.5).astype(np.float32) / 127.5 - 1
    x_t = q_sample(s, x0, t, eps).astype(np.float32)

    def f(x0, x_t, eps, output):
        return objective(Example(s, x0, x_t, t, eps), output)

    return against_float64(device, f, x0, x_t, eps, output)


def network(p, x):
    """The U-Net as a training step calls it."""
    return unet(NETWORK, layers.prepare(p, NETWORK.image_size), x, np.array([1, 2, 300, 1000]), seeds=[1, 2, 3, 4])


def plain_network(p, x):
    """The U-Net of the plain layers."""
    with plain_layers():
        y, back = unet(NETWORK, p, x, np.array([1, 2, 300, 1000]), seeds=[1, 2, 3, 4])

    def plain_network_back(dy):
        with plain_layers():
            return back(dy)

    return y, plain_network_back


@contextlib.contextmanager
def plain_layers():
    """Without the kernels of a GPU."""
    before = os.environ.get("MINDDPM_KERNELS")
    os.environ["MINDDPM_KERNELS"] = "0"
    try:
        yield
    finally:
        del os.environ["MINDDPM_KERNELS"]
        os.environ.update({"MINDDPM_KERNELS": before} if before is not None else {})


def fast_against_plain(device, *inputs):
    """The difference between the fast network and that of the plain layers, both in float32 on the device."""
    there = on(device, np.float32, list(inputs))
    return largest(values(network, there), values(plain_network, there))


def training(device):
    """The difference after STEPS steps of Alg. 1, with dropout, clipping and warm-up: of the losses and the averaged weights."""
    told = Settings(data="digits", preset="tiny", batch=16, steps=STEPS, lr=1e-3, warmup=5, ema=0.9, dropout=0.1, threads=1)
    dataset, s = load(told.data), Schedule.linear()
    told = told.resolved(dataset.image_shape)

    def train(device, dtype):
        state, losses = TrainingState.begin(on(device, dtype, weights(NETWORK))), []
        with workers_for(told, device) as workers:
            for step in range(1, STEPS + 1):
                batch = draw_batch(told, dataset, step, device)
                batch = batch._replace(x0=batch.x0.astype(dtype), eps=batch.eps.astype(dtype))
                losses.append(float(train_step(told, NETWORK, s, state, batch, workers, dataset.levels).loss))
        return [np.array(losses), np.concatenate([backend.to_host(a).ravel() for a in tree.leaves(state.ema)])]

    return largest(train(device, np.float32), train("cpu", np.float64))


def sampling(device):
    """The difference of the images after STEPS steps of Alg. 2."""
    s = Schedule.linear(STEPS, beta_1=0.005, beta_T=0.5)

    def images(device, dtype):
        model, like = Model(NETWORK, on(device, dtype, weights(NETWORK)), s), on(device, dtype, np.zeros(0))
        return backend.to_host(sample(s, model.eps_theta, (8, 8, 8, 1), seed=0, clip=False, like=like))

    return largest([images(device, np.float32)], [images("cpu", np.float64)])
