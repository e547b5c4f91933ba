"""Training and sampling on a device: NumPy's numbers, and what a step costs in launches, copies and waiting."""

from dataclasses import replace

import numpy as np
import pytest

from minddpm import device as backend
from minddpm import optim, tree
from minddpm.app.settings import Settings
from minddpm.data import Dataset
from minddpm.diffusion import Schedule
from minddpm.fast import adam_cuda as fused
from minddpm.fast.workers import Workers
from minddpm.model import Model
from minddpm.objective import OBJECTIVES
from minddpm.sample import in_parallel, reverse_process
from minddpm.storage import load, save
from minddpm.storage import weights as checkpoint
from minddpm.train import TrainingState, draw_batch, train_step
from minddpm.unet import UNetConfig, parameters, unet
from minddpm.unet.recompute import discard

SMALL = UNetConfig(8, 3, widths=(8, 16), blocks=1, attention=(1,), groups=4, dropout=0.1)
CIFAR = replace(UNetConfig.cifar10(), image_size=8, widths=(8, 16, 16, 16), groups=4)        # its structure, not its sizes
TOLD = Settings(batch=3, lr=1e-3, warmup=2, steps=100, ema=0.9, grad_clip=1.0, T=20, flips=True, seed=4)
IMAGES = Dataset("noise", *np.split(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8), 2))
ZERO = ("to_k.bias",)                       # its gradient is zero in theory: Adam makes steps of rounding, the sign decides


def settings_for(objective):
    """SMALL and TOLD for an objective.  In steps 3 and 5 a t is 1, where L is the decoder's; some gradients are clipped."""
    told = replace(TOLD, objective=objective, sigma2="beta", T=10, grad_clip=0.5)
    return replace(SMALL, learned_sigma=OBJECTIVES[objective].learned_sigma), told


def weights(cfg, device, dtype=np.float32):
    """At the paper's initialisation the network's output, and with it nearly every gradient, is zero: see gradcheck.py."""
    rng = np.random.default_rng(1)
    fan = {name: np.prod(d.shape[:-1]) for name, d in tree.flatten(parameters(cfg)).items()}
    flat = {name: (d.centre + rng.standard_normal(d.shape) * (0.1 if d.bound == 0 else fan[name] ** -0.5)).astype(dtype)
            for name, d in tree.flatten(parameters(cfg)).items()}
    return tree.map(lambda a: backend.to_device(a, device), tree.unflatten(flat))


def trained(cfg, device, steps, resident=True, told=TOLD):
    """The state after some steps, and the metrics of each."""
    state, s = TrainingState.begin(weights(cfg, device)), told.schedule()
    data = replace(IMAGES, train=backend.to_device(IMAGES.train, device)) if resident else IMAGES
    with Workers(1) as workers:
        metrics = [train_step(told, cfg, s, state, draw_batch(told, data, step, device), workers) for step in range(1, steps + 1)]
    return state, [m.read(step) for step, m in enumerate(metrics, start=1)]


def distance(a, b):
    """‖a − b‖ / ‖b‖ for each array of two trees -> (the largest, its name)."""
    a, b = tree.flatten(a), tree.flatten(b)
    return max((float(np.linalg.norm(backend.to_host(a[k]) - b[k]) / np.linalg.norm(b[k])), k) for k in b if not k.endswith(ZERO))


@pytest.mark.parametrize("objective, resident", [("simple", True), ("simple", False), ("eps-L", True), ("eps-L-learned", True)])
def test_five_training_steps_equal_numpys(gpu, objective, resident, monkeypatch):
    cfg, told = settings_for(objective)
    with monkeypatch.context() as plain:
        plain.setenv("MINDDPM_KERNELS", "0")                # what Winograd's convolution rounds is test_winograd.py's to judge
        state, metrics = trained(cfg, "cpu", 5, told=told)
    device_state, device_metrics = trained(cfg, "cuda", 5, resident, told)
    np.testing.assert_allclose(device_metrics, metrics, rtol=1e-5)
    assert metrics[-1].loss != metrics[0].loss and any(m.grad_norm > told.grad_clip for m in metrics)  # it moved, and was clipped
    for name in "params", "ema":
        assert all(backend.is_cuda(leaf) for leaf in tree.leaves(getattr(device_state, name)))
        largest, where = distance(getattr(device_state, name), getattr(state, name))
        assert largest < 1e-5, (name, where, largest)


def denoised(device, params, steps, dtype=np.float32):
    like = backend.to_device(np.zeros(0, dtype), device)
    with Workers(1) as workers:
        eps_theta = in_parallel(lambda x_t, t: unet(SMALL, params, x_t, t, run=discard)[0], workers)
        *_, (t, x) = reverse_process(Schedule.linear(T=steps), eps_theta, (2, 8, 8, 3), seed=3, like=like)
    assert t == 0 and x.dtype == dtype
    return x


def test_twenty_sampling_steps_equal_numpys(gpu):
    x0 = denoised("cuda", weights(SMALL, "cuda"), 20)
    assert backend.is_cuda(x0)
    expected = denoised("cpu", weights(SMALL, "cpu"), 20)
    assert np.linalg.norm(backend.to_host(x0) - expected) < 1e-5 * np.linalg.norm(expected)


def test_a_model_goes_to_a_file_and_back_to_the_device(gpu, tmp_path):
    params = weights(SMALL, "cpu")
    save(tmp_path, Model(replace(SMALL, dropout=0.0), weights(SMALL, "cuda"), Schedule.linear(T=20)))
    for device in "cpu", "cuda":
        found = load(tmp_path, device).params
        assert backend.is_cuda(found["conv_in"]["weight"]) == (device == "cuda")
        assert all(np.array_equal(backend.to_host(a), b) for a, b in zip(tree.leaves(found), tree.leaves(params), strict=True))
    checkpoint.write(tmp_path / "one", weights(SMALL, "cuda"), {"a": "1"})
    checkpoint.write(tmp_path / "two", params, {"a": "1"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_neither_waits_nor_copies(gpu, objective):
    """Counted, on the stand-in too; there without dropout, whose plain twin draws on the host."""
    cfg, told = settings_for(objective)
    cfg = cfg if gpu.kernels else replace(cfg, dropout=0.0)
    state, s = TrainingState.begin(weights(cfg, "cuda")), told.schedule()
    data = replace(IMAGES, train=backend.to_device(IMAGES.train, "cuda"))
    with Workers(1) as workers:
        train_step(told, cfg, s, state, draw_batch(told, data, 1, "cuda"), workers)             # the schedule goes there once
        batch = draw_batch(told, data, 2, "cuda")
        if gpu.counting is None:
            pytest.skip("nothing is counted on a GPU")
        with gpu.counting() as c:
            metrics = train_step(told, cfg, s, state, batch, workers)
    assert backend.is_cuda(metrics.loss) and backend.is_cuda(metrics.grad_norm)
    assert (c["syncs"], c["h2d"], c.get("d2h", 0)) == (0, 0, 0)
    print(objective, c.get("launches"))
    with gpu.counting() as c:
        draw_batch(told, data, 3, "cuda")
    assert (c["syncs"], c["h2d"]) == (0, 5)                 # which images, t, eps, seeds, which are mirrored


def cost(gpu, monkeypatch, kernels):
    """The counters of a training step and of a sampling step of the CIFAR-10 model's structure, both warm."""
    if not gpu.kernels or gpu.counting is None:
        pytest.skip("launches are counted by --backend emu")
    monkeypatch.setenv("MINDDPM_KERNELS", str(int(kernels)))
    state, s = TrainingState.begin(weights(CIFAR, "cuda")), TOLD.schedule()
    like, steps = backend.to_device(np.zeros(0, np.float32), "cuda"), []
    with Workers(1) as workers:
        for step in 1, 2:
            batch = draw_batch(TOLD, IMAGES, step, "cuda")
            with gpu.counting() as training:
                train_step(TOLD, CIFAR, s, state, batch, workers)
        eps_theta = in_parallel(lambda x_t, t: unet(CIFAR, state.ema, x_t, t, run=discard)[0], workers)
        process = reverse_process(s, eps_theta, (2, 8, 8, 3), 0, like=like)
        next(process), next(process)
        with gpu.counting() as sampling:
            next(process)
        process.close()
    steps = {name: {k: c[k] for k in ("launches", "gemms", "h2d", "d2h", "syncs", "allocs", "peak_bytes")}
             for name, c in (("training", training), ("sampling", sampling))}
    print(f"\nkernels {kernels}:", steps)
    return steps["training"], steps["sampling"]


def test_what_a_step_of_the_cifar10_model_costs(gpu, monkeypatch):
    training, sampling = cost(gpu, monkeypatch, kernels=True)
    assert training["launches"] <= 810 and sampling["launches"] <= 325
    assert (training["syncs"], training["h2d"], training["d2h"]) == (0, 0, 0)
    assert (sampling["syncs"], sampling["h2d"], sampling["d2h"]) == (0, 1, 0)                   # the noise
    plain, plain_sampling = cost(gpu, monkeypatch, kernels=False)
    assert plain["launches"] > 5 * training["launches"] and plain_sampling["launches"] > 2 * sampling["launches"]


def test_the_fused_optimiser_equals_the_plain_one(gpu):
    """Sizes that no block divides, more arrays than a launch takes, and clipping on and off."""
    if not gpu.kernels:
        pytest.skip("kernels need CuPy")
    rng = np.random.default_rng(0)
    shapes = [(1,), (7, 3), (3000,), (2, 3, 5)] * 21
    assert len(shapes) > fused.LEAVES

    def some(device, seed):
        rng = np.random.default_rng(seed)
        return {str(k): backend.to_device(rng.standard_normal(shape, dtype=np.float32), device) for k, shape in enumerate(shapes)}

    for scale in 1.0, 0.25:
        host, device = (TrainingState.begin(some(where, 0)) for where in ("cpu", "cuda"))
        for step in 1, 2, 3:
            gradient, there = some("cpu", step), some("cuda", step)
            assert float(fused.global_norm(there)) == pytest.approx(optim.global_norm(gradient), rel=1e-6)
            optim.adam(host.params, host.m, host.v, tree.map(lambda g, c=scale: g * np.float32(c), gradient), step, 0.01)
            optim.ema(host.ema, host.params, step, 0.9)
            shuffled = {k: there[k] for k in rng.permutation(list(there))}                      # another order of keys
            fused.adam_ema(device, shuffled, step, 0.01, backend.to_device(np.float32(scale), "cuda"), 0.9)
        for name in "params", "m", "v", "ema":
            assert distance(getattr(device, name), getattr(host, name))[0] < 1e-6, name
