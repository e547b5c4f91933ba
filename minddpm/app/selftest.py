"""`minddpm selftest`: the fast layers in float32 on a device, compared with the plain ones in float64 in NumPy.

The tests prove the float64 side.  So a check that fails points to this machine, its libraries, or code that only its device
runs.  The report is Markdown, to be pasted anywhere.
"""

import math
import platform
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy
from threadpoolctl import threadpool_info, threadpool_limits

import minddpm
from minddpm import tree
from minddpm.app.settings import Settings
from minddpm.data import load
from minddpm.diffusion import Schedule, q_sample
from minddpm.fast import ops_for, workers_for
from minddpm.fast.device import gpu, reason, to_device, to_host
from minddpm.fast.training import gradient_by, update_by
from minddpm.fast.workers import cpu_count
from minddpm.model import Model
from minddpm.objective import OBJECTIVES, Example
from minddpm.train import TrainingState, train
from minddpm.unet import UNetConfig, layers, parameters, unet

NETWORK = replace(UNetConfig.tiny(), dropout=0.1)
TIMES = np.array([1, 2, 300, 1000])         # of the four images; at t = 1 the bound is the decoder's
STEPS = 20                                  # of training and of sampling
PACKAGE = Path(minddpm.__file__).parent


def affine(*shape):
    """The shapes of a layer's weight and bias."""
    return {"weight": shape, "bias": shape[-1:]}


# Each check's layer, the keywords and the shapes of its arguments, odd where the layer allows it.
LAYERS = {
    "dense layer":              ("linear", {}, affine(24, 40), (3, 7, 24)),
    "convolution 1×1":          ("conv2d", {}, affine(1, 1, 24, 40), (2, 5, 7, 24)),
    "convolution 3×3":          ("conv2d", {}, affine(3, 3, 16, 24), (2, 9, 7, 16)),
    "convolution 3×3, halving": ("conv2d", dict(stride=2), affine(3, 3, 16, 24), (2, 10, 6, 16)),
    "convolution and vector":   ("conv2d_plus", {}, affine(3, 3, 16, 24), (2, 9, 7, 16), (2, 24)),
    "group norm":               ("group_norm", dict(groups=8), affine(32), (3, 5, 7, 32)),
    "group norm and swish":     ("norm_swish", dict(groups=8), affine(32), (3, 5, 7, 32)),
    "swish":                    ("swish", {}, (3, 5, 7, 3)),
    "attention":                ("attention", {}, (2, 49, 32), (2, 49, 32), (2, 49, 32)),
    "upsampling":               ("upsample", {}, (2, 5, 7, 3)),
    "dropout":                  ("dropout", dict(rate=0.3, seeds=[5, 2**63], layer=1), (2, 5, 7, 3)),
}


def selftest(device):
    """Run every check on device "cpu" or "cuda", print the report as it comes, and return whether all passed."""
    start, verdicts = time.perf_counter(), []
    print(f"## minddpm selftest on {device}\n\n| machine | |\n|---|---|")
    for fact, value in machine(device).items():
        print(f"| {fact} | {value} |")
    print(f"\n| float32 on {device} against float64 in NumPy | found | expected | verdict |\n|---|---|---|---|")
    for check in checks(device):
        found, passed = verdict(check)
        verdicts.append(passed)
        print(f"| {check.name} | {found} | < {check.limit:.0e} | {'passed' if passed else '**FAILED**'} |")
    print(f"\n{'Passed' if all(verdicts) else '**FAILED**'}: {sum(verdicts)} of {len(verdicts)} checks, "
        f"{time.perf_counter() - start:.0f} s")
    return all(verdicts)


def machine(device):
    """{fact: value}: versions, BLAS, processor, GPU.  No paths and no names of people or machines."""
    blas = {f"{lib['internal_api']} {lib['version']} {lib.get('architecture', '')}".rstrip()
            for lib in threadpool_info() if lib["user_api"] == "blas"}
    return {"minddpm": minddpm.__version__,
            "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cpu_count()} CPUs",
            "NumPy": f"{np.__version__} with {', '.join(sorted(blas)) or 'an unknown BLAS'}",
            "SciPy": scipy.__version__} | (gpu() if device == "cuda" else {})


def verdict(check):
    """(the check's difference as text, whether it is small enough).  An exception fails the check, with its text and place."""
    try:
        with threadpool_limits(1, user_api="blas"):             # on a busy machine its threads take many times as long
            difference = check.difference()
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(PACKAGE)]
        file, line = Path(frames[-1].filename).relative_to(PACKAGE).as_posix(), frames[-1].lineno
        return f"{reason(error)} ({file}:{line})".replace(str(Path.home()), "~").replace("|", "/"), False
    return f"{difference:.1e}", bool(difference < check.limit)                          # False for nan


class Check(NamedTuple):
    """A computation that is done in two ways: difference() -> their largest relative difference, right if below the limit."""

    name: str
    difference: Callable
    limit: float


def checks(device):
    """Every Check of a device, "cpu" or "cuda", from the layers to training and sampling."""
    params, (x,) = weights(NETWORK), draws([(4, 8, 8, 1)])
    fast = ops_for(convert(params, np.float32, device), NETWORK.image_size, training=True)
    for name, (layer, options, *shapes) in LAYERS.items():
        f, plain = (partial(getattr(ops, layer), **options) for ops in (fast, layers))
        yield Check(f"{name}, with gradients", partial(against_float64, device, f, plain, draws(shapes)), 1e-5)
    for name in OBJECTIVES:
        yield Check(f"loss {name}, with its gradient", partial(against_float64, device, *loss(name)), 1e-5)
    yield Check("U-Net with attention and dropout, with gradients",
                partial(against_float64, device, partial(network, fast=True), network, [params, x]), 1e-4)
    yield Check(f"{STEPS} training steps: losses and averaged weights", partial(training, device), 2e-4)
    yield Check(f"{STEPS} sampling steps", partial(sampling, device), 1e-5)


def draws(shapes):
    """A tree of shapes -> a tree of random float32 numbers."""
    random = np.random.default_rng(0)
    return tree.map(lambda shape: random.standard_normal(shape, dtype=np.float32), shapes)


def weights(cfg):
    """Parameters at which every part of a network matters: `init` leaves the last layers so small that little would show."""
    random = np.random.default_rng(0)

    def near(init):
        scale = 0.1 if len(init.shape) == 1 else 0.7 / math.sqrt(math.prod(init.shape[:-1]))
        return (init.centre + scale * random.standard_normal(init.shape)).astype(np.float32)

    return tree.map(near, parameters(cfg))


def convert(arrays, dtype, device="cpu"):
    """A tree of arrays with this dtype, on the device."""
    return tree.map(lambda a: to_device(a.astype(dtype, copy=False), device), arrays)


def values(f, inputs):
    """y of `y, back = f(*inputs)`, and the results of back(dy) for a random dy: a list of arrays on the host."""
    y, back = f(*inputs)
    dy = np.random.default_rng(1).standard_normal(y.shape, dtype=np.float32)
    gradients = back(np.asarray(dy, dtype=y.dtype, like=y))
    return [to_host(a) for a in (y, *tree.leaves(list(gradients) if isinstance(gradients, tuple) else [gradients]))]


def max_relative_difference(found, expected):
    """The largest difference of two arrays, relative to the largest number of the second, over pairs of them; may be nan.

    The denominator is a thousandth of the largest number of all at least: the gradient of a key's bias, which moves all scores
    of a softmax alike, is 0 but for rounding.
    """
    sizes = np.array([np.abs(b).max() for b in expected])
    differences = np.array([np.abs(a - b).max() for a, b in zip(found, expected, strict=True)])
    return float(np.max(differences / np.maximum(sizes, 1e-3 * sizes.max())))


def against_float64(device, f, plain, inputs):
    """The difference of values and gradients between f in float32 on the device and plain in float64 on the CPU."""
    return max_relative_difference(values(f, convert(inputs, np.float32, device)), values(plain, convert(inputs, np.float64)))


def loss(name):
    """One of the OBJECTIVES as a function of arrays, f, for against_float64: f, f and [x_0, x_t, ε, a network's output]."""
    objective, s = OBJECTIVES[name], Schedule.linear()
    noise, eps, output = draws([(4, 5, 7, 3), (4, 5, 7, 3), (4, 5, 7, 6 if objective.learned_sigma else 3)])
    x0 = np.rint(127.5 * np.clip(noise / 2, -1, 1) + 127.5).astype(np.float32) / 127.5 - 1

    def f(x0, x_t, eps, output):
        return objective(Example(s, x0, x_t, TIMES, eps), output)

    return f, f, [x0, q_sample(s, x0, TIMES, eps).astype(np.float32), eps, output]


def network(p, x, fast=False):
    """The U-Net, with dropout, of the plain layers or the fast ones."""
    ops = ops_for(p, NETWORK.image_size, training=True) if fast else layers
    return unet(NETWORK, p, x, TIMES, seeds=[1, 2, 3, 4], ops=ops)


def training(device):
    """The difference after STEPS steps of Alg. 1, with dropout, clipping and warm-up: of the losses and the averaged weights."""
    settings = Settings(data="digits", preset="tiny", batch=16, steps=STEPS, lr=1e-3, warmup=5, ema=0.9, dropout=0.1)
    dataset, s = load(settings.data), Schedule.linear()
    settings = settings.resolved(dataset.image_shape)

    def result(params, *halves):
        state = TrainingState.begin(params)
        losses = [float(metrics.loss) for metrics in train(settings, NETWORK, s, state, dataset, *halves)]
        return [np.array(losses), np.concatenate([to_host(a).ravel() for a in tree.leaves(state.ema)])]

    with workers_for(device, threads=1) as workers:
        found = result(convert(weights(NETWORK), np.float32, device), gradient_by(workers), update_by(workers))
    return max_relative_difference(found, result(convert(weights(NETWORK), np.float64)))


def sampling(device):
    """The difference of the images after STEPS steps of Alg. 2."""
    s = Schedule.linear(STEPS, beta_1=0.005, beta_T=0.5)
    params = convert(weights(NETWORK), np.float32, device)
    fast = Model(NETWORK, params, s, clip=False, ops=ops_for(params, NETWORK.image_size))
    plain = Model(NETWORK, convert(weights(NETWORK), np.float64), s, clip=False)
    return max_relative_difference([to_host(fast.sample(8, seed=0))], [plain.sample(8, seed=0)])
