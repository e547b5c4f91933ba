"""Algorithm 2 against DDPMScheduler and DDPMPipeline: whole loops of 1000 steps with the same noise."""

import json
import types

import numpy as np
import pytest
from oracle import DDPMPipeline, DDPMScheduler, config_of, make, nchw, nhwc, randomize, relative, to_ours, torch
from torch_normal import TorchNormal, pipeline_image

from minddpm.diffusion import Schedule
from minddpm.model import Model
from minddpm.sample import reverse_process
from minddpm.storage import scheduler_config

B, SIZE, CHANNELS = 2, 8, 3


def tiny(seed):
    """A network of theirs whose output is about as large as noise, so that the loop neither dies out nor explodes."""
    return randomize(make((8, 16), "-A", "A-", 1, 4, CHANNELS, SIZE), seed)


def scheduler(model):
    """Their scheduler, made from the JSON that we would save."""
    return DDPMScheduler.from_config(json.loads(json.dumps(scheduler_config.to_json(model))))


@pytest.mark.parametrize("seed, shape", [(0, (16,)), (0, (1, 3, 32, 32)), (5, (4, 3, 8, 8)), (2**32 - 1, (2, 16))])
def test_torch_normal_is_torch_randn(seed, shape):
    ours, generator = TorchNormal(seed), torch.Generator().manual_seed(seed)
    for _ in range(2):
        np.testing.assert_allclose(ours(*shape), torch.randn(shape, generator=generator).numpy(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("s", [Schedule.linear(), Schedule.quadratic(), Schedule.constant(1000), Schedule.linear(7, 0.1, 0.3),
                               Schedule(np.linspace(0, 0.5, 20) ** 3)], ids=["linear", "quadratic", "constant", "short", "any"])
def test_schedule_and_variances(s):
    """The tables of their scheduler, float32, are ours."""
    for sigma2 in "beta", "beta_tilde":
        theirs = scheduler(types.SimpleNamespace(schedule=s, sigma2=sigma2, clip=True, predicts="eps"))
        np.testing.assert_allclose(theirs.betas, s.beta[1:], rtol=1e-5)
        np.testing.assert_allclose(theirs.alphas_cumprod, s.alpha_bar[1:], rtol=2e-4)
        variances = [theirs._get_variance(t).item() for t in range(1, s.T)]
        np.testing.assert_allclose(variances, s.sigma2(sigma2)[2:], rtol=2e-3)      # they form β_t as 1 − ᾱ_t / ᾱ_{t−1}


def check_loop(monkeypatch, sigma2, clip, predicts, T):
    theirs = tiny(0)
    model = Model(config_of(theirs), to_ours(theirs.state_dict()), Schedule.linear(T), sigma2, clip, predicts)
    steps = scheduler(model)
    steps.set_timesteps(T)
    noise = np.random.default_rng(0).standard_normal((T, B, SIZE, SIZE, CHANNELS)).astype(np.float32)

    ours = [x_t for _, x_t, _ in reverse_process(model.schedule, model.output, iter(noise), **model.how)]

    stream = iter(noise)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *args, **more: nchw(next(stream)))
    x, expected = nchw(next(stream)), []
    with torch.no_grad():
        for t in steps.timesteps:
            expected.append(nhwc(x))
            x = steps.step(theirs(x, t).sample, t, x).prev_sample
    expected.append(nhwc(x))
    errors = [relative(a, b) for a, b in zip(ours, expected, strict=True)]
    largest = np.abs(ours[-1] - expected[-1]).max()
    print(f"\nx_0: relative {errors[-1]:.1e}, absolute {largest:.1e} of numbers up to {np.abs(expected[-1]).max():.3g}; "
          f"along the way at most {max(errors):.1e}", end="")
    assert len(ours) == T + 1 and max(errors) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("sigma2", ["beta", "beta_tilde"], ids=["fixed_large", "fixed_small"])
@pytest.mark.parametrize("clip", [True, False], ids=["clip", "no clip"])
def test_thousand_steps(monkeypatch, sigma2, clip):
    check_loop(monkeypatch, sigma2, clip, "eps", 1000)


@pytest.mark.parametrize("sigma2", ["beta", "beta_tilde"], ids=["fixed_large", "fixed_small"])
@pytest.mark.parametrize("predicts", ["eps", "x0"], ids=["epsilon", "sample"])
def test_fifty_steps(monkeypatch, sigma2, predicts):
    check_loop(monkeypatch, sigma2, True, predicts, 50)


@pytest.mark.parametrize("T", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_pipeline_with_a_seed(T):
    """The procedure that the CIFAR-10 pixels are tested with: their whole pipeline from a seed, to what a pixel shows."""
    theirs = tiny(1)
    model = Model(config_of(theirs), to_ours(theirs.state_dict()), Schedule.linear(T, 1e-4, 0.02), "beta", True)
    pipe = DDPMPipeline(theirs, scheduler(model))
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=T, output_type="np").images[0]
    error = np.abs(pipeline_image(model, 0) - expected).max()
    print(f"\nlargest difference {error:.1e} in [0, 1]", end="")
    assert error < 1e-4
