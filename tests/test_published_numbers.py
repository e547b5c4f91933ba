"""Numbers that diffusers publishes in its own tests, reproduced without torch or diffusers.

The noise is torch's (torch_normal.py).  Float32Schedule has their tables too, in float32: 1 − ᾱ_1 = 0.0001 is the difference of
two numbers near 1 and off by 1.7e-4 of itself there, which is contained in the second published number.
"""

import os
from dataclasses import dataclass
from itertools import count

import numpy as np
import pytest
from torch_normal import TorchNormal, pipeline_image

import minddpm
from minddpm.diffusion import Schedule
from minddpm.sample import last, reverse_process

CIFAR10 = os.environ.get("MINDDPM_CIFAR10")


@dataclass
class Float32Schedule:
    """Schedule.linear() with its tables computed in float32, as diffusers does."""

    T: int = 1000

    def __post_init__(self):
        linear = np.linspace(np.float32(1e-4), np.float32(0.02), self.T, dtype=np.float32)
        one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        self.alpha_bar = np.concatenate([one, np.cumprod(1 - linear)])
        self.alpha = np.concatenate([one, self.alpha_bar[1:] / self.alpha_bar[:-1]])
        self.beta = 1 - self.alpha
        before, after = 1 - self.alpha_bar[:-1], 1 - self.alpha_bar[1:]
        self.beta_tilde = np.concatenate([zero, before / after * self.beta[1:]])
        self._sigma2_tilde = np.concatenate([zero, self.beta_tilde[2:3], self.beta_tilde[2:]])

    sigma2 = Schedule.sigma2


def deterministic_sample():
    """diffusers' dummy sample (4,3,8,8), in our layout (4,8,8,3), float32."""
    n = 4 * 3 * 8 * 8
    nchw = (np.arange(n, dtype=np.float32).reshape(3, 8, 8, 4) / n).transpose(3, 0, 1, 2)
    return np.ascontiguousarray(nchw.transpose(0, 2, 3, 1))


def dummy_model(x_t, t):
    """diffusers' dummy model: x · t / (t + 1) with t from 0."""
    return x_t * (t - 1) / t


def full_loop(s, x, first_t):
    """Alg. 2 from x_t at first_t down, with fixed_small variances, clipping and seed 0: Σ|x_0|, mean |x_0|."""
    normal = TorchNormal(0)
    noise = (normal(4, 3, 8, 8).transpose(0, 2, 3, 1) for _ in count())
    x = last(reverse_process(s, dummy_model, noise, x, first_t, "beta_tilde", clip=True))
    return float(np.abs(x).sum()), float(np.abs(x).mean())


@pytest.mark.parametrize("seed, first", [
    (0, [-1.1258, -1.1524, -0.2506, -0.4339, 0.8487, 0.6920, -0.3160, -2.1152]),
    (42, [1.9269, 1.4873, 0.9007, -2.1055]),
])
def test_torch_normal_is_what_torch_prints(seed, first):
    np.testing.assert_allclose(TorchNormal(seed)(16)[:len(first)], first, atol=5e-5)


def test_torch_normal_moments():
    z = TorchNormal(3)(1000, 1000).astype(np.float64)
    assert abs(z.mean()) < 5e-3 and abs(z.var() - 1) < 1e-2


@pytest.mark.parametrize("s", [Schedule.linear(), Float32Schedule()], ids=["our float64 tables", "float32 tables"])
def test_full_loop_no_noise(s):
    total, mean = full_loop(s, deterministic_sample(), 1000)
    print(f"\nΣ|x| {total:.5f}, published 258.9606", end="")
    assert abs(total - 258.9606) < 1e-2 and abs(mean - 0.3372) < 1e-3


@pytest.mark.parametrize("s, exact", [(Float32Schedule(), 387.9466), (Schedule.linear(), 387.96725)],
                         ids=["float32 tables", "our float64 tables"])
def test_full_loop_with_noise(s, exact):
    """From t = 999 with noise added as diffusers' add_noise does: two steps are left of the loop, index 1 and 0."""
    n = 4 * 3 * 8 * 8
    flipped = np.ascontiguousarray((np.arange(n, dtype=np.float32) / n)[::-1]).reshape(3, 8, 8, 4).transpose(3, 0, 1, 2)
    noise = np.ascontiguousarray(flipped.transpose(0, 2, 3, 1))
    t = 3 - 1                                               # t_start = T − 2: the timesteps left are 1 and 0, ours 2 and 1
    alpha_bar = float(s.alpha_bar[t])
    x = np.float32(alpha_bar**0.5) * deterministic_sample() + np.float32((1 - alpha_bar)**0.5) * noise
    total, mean = full_loop(s, x, t)
    print(f"\nΣ|x| {total:.5f}, published 387.9466", end="")
    assert abs(total - exact) < 1e-2 and abs(mean - 0.5051) < 1e-3


@pytest.mark.skipif(not CIFAR10, reason="needs the weights: set MINDDPM_CIFAR10=/path/to/ddpm-cifar10-32 (see README)")
def test_cifar10_pixels():
    """google/ddpm-cifar10-32 with seed 0: the slice that diffusers asserts in tests/pipelines/ddpm/test_ddpm.py."""
    model = minddpm.load(CIFAR10)
    assert (model.sigma2, model.clip) == ("beta", True)
    image = pipeline_image(model, seed=0)
    published = [.4200, .3588, .1939, .3847, .3382, .2647, .4155, .3582, .3385]
    np.testing.assert_allclose(image[-3:, -3:, -1].ravel(), published, atol=1e-2)
