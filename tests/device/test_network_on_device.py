"""Training and sampling on a device: NumPy's numbers, and what a step costs in launches, copies and synchronisations."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from minddpm import optim, train, tree
from minddpm.data import Dataset
from minddpm.diffusion import Schedule
from minddpm.fast import Workers, adam_cuda, ops_for, parallel
from minddpm.fast.device import device_of, is_cuda, to_device, to_host
from minddpm.fast.training import gradient_by, update_by
from minddpm.model import Model
from minddpm.objective import OBJECTIVES, mse_loss
from minddpm.sample import image_noise, last, reverse_process
from minddpm.storage import weights as files
from minddpm.storage.folder import load, save
from minddpm.train import TrainingState
from minddpm.unet import UNetConfig, parameters

SMALL = UNetConfig(8, 3, widths=(8, 16), blocks=1, attention=(1,), groups=4, dropout=0.1)
CIFAR = replace(UNetConfig.cifar10(), image_size=8, widths=(8, 16, 16, 16), groups=4)        # its structure, not its sizes
ZERO = ("to_k.bias",)                       # its gradient is zero in theory: Adam makes steps of rounding, the sign decides
B, D = 3, 8 * 8 * 3                         # images a step, numbers an image


def noise(size):
    """A data set of ten images of noise, and ten held out."""
    return Dataset("noise", *np.split(np.random.default_rng(0).integers(0, 256, (20, size, size, 3), np.uint8), 2))


def settings(**changes):
    """The settings of train.train."""
    return SimpleNamespace(**dict(seed=0, batch=B, flips=True, objective="simple", sigma2="beta", steps=100, lr=1e-3,
                                  lr_final=None, warmup=2, grad_clip=0.5, ema=0.9) | changes)


def config(objective, cfg=SMALL):
    return replace(cfg, learned_sigma=OBJECTIVES[objective].learned_sigma)


def weights(cfg, device, dtype=np.float32):
    """At the paper's initialisation the network's output, and with it nearly every gradient, is zero: see gradcheck.py."""
    rng = np.random.default_rng(1)

    def draw(d):
        size = 0.1 if d.bound == 0 else np.prod(d.shape[:-1]) ** -0.5
        return to_device((d.centre + size * rng.standard_normal(d.shape)).astype(dtype), device)

    return tree.map(draw, parameters(cfg))


def training(cfg, device, how, resident=True, seen=None, **halves):
    """(state, the iterator of its training steps), from the weights above.  halves: of Alg. 1, line 5, by default the plain ones.

    resident: whether the images are on the device too.  seen: a list that the t of each step is added to.
    """
    state, gradient = TrainingState.begin(weights(cfg, device)), halves.pop("gradient", train.gradient)
    data = noise(cfg.image_size)
    data = replace(data, train=to_device(data.train, device)) if resident else data

    def seen_gradient(objective, cfg, s, params, batch, *more):
        if seen is not None:
            seen.append(batch.t)
        return gradient(objective, cfg, s, params, batch, *more)

    return state, train.train(how, cfg, Schedule.linear(T=10), state, data, seen_gradient, **halves)


def by(workers):
    """The halves of Alg. 1, line 5, for `training`."""
    return dict(gradient=gradient_by(workers), update=update_by(workers))


def distance(a, b):
    """‖a − b‖ / ‖b‖ for each array of two trees -> (the largest, its name)."""
    a, b = tree.flatten(a), tree.flatten(b)
    return max((float(np.linalg.norm(to_host(a[k]) - b[k]) / np.linalg.norm(b[k])), k) for k in b if not k.endswith(ZERO))


@pytest.mark.parametrize("objective, resident", [("simple", True), ("simple", False), ("eps-L", True), ("eps-L-learned", True)])
def test_five_training_steps_equal_the_plain_ones(gpu, objective, resident):
    cfg, how = config(objective), settings(objective=objective, steps=5)
    t, device_t = [], []
    state, steps = training(cfg, "cpu", how, seen=t)
    metrics = [m.checked() for m in steps]
    with Workers(1) as workers:
        device_state, steps = training(cfg, "cuda", how, resident, device_t, **by(workers))
        device_metrics = [m.checked() for m in steps]
    np.testing.assert_array_equal(device_t, t)
    assert 1 in np.concatenate(t) and np.min(t) < np.max(t)             # L is the decoder's at t = 1, a KL elsewhere
    np.testing.assert_allclose(device_metrics, metrics, rtol=1e-5)
    assert metrics[-1].loss != metrics[0].loss and any(m.grad_norm > how.grad_clip for m in metrics)   # it moved, and was clipped
    for name in "params", "ema":
        assert all(is_cuda(leaf) for leaf in tree.leaves(getattr(device_state, name)))
        largest, where = distance(getattr(device_state, name), getattr(state, name))
        assert largest < 1e-5, (name, where, largest)


def test_twenty_sampling_steps_equal_the_plain_ones(gpu):
    s, shape = Schedule.linear(T=20), (2, 8, 8, 3)
    model, there = (Model(SMALL, weights(SMALL, device), s) for device in ("cpu", "cuda"))
    there = replace(there, ops=ops_for(there.params, 8))
    expected = model.sample(2, seed=3)
    assert expected.shape == shape and expected.dtype == np.float32
    with Workers(1) as workers:
        z = image_noise(shape, 3, like=to_device(np.zeros(0, np.float32), "cuda"))
        for x0 in there.sample(2, seed=3), last(reverse_process(s, parallel(there.output, workers), z)):
            assert is_cuda(x0) and x0.dtype == np.float32
            assert np.linalg.norm(to_host(x0) - expected) < 1e-5 * np.linalg.norm(expected)


def test_a_model_goes_to_a_file_and_back_to_the_device(gpu, tmp_path):
    params = weights(SMALL, "cpu")
    save(tmp_path, Model(replace(SMALL, dropout=0.0), weights(SMALL, "cuda"), Schedule.linear(T=20)))
    for device in "cpu", "cuda":
        found = load(tmp_path, device).params
        assert device_of(found["conv_in"]["weight"]) == device
        assert all(np.array_equal(to_host(a), b) for a, b in zip(tree.leaves(found), tree.leaves(params), strict=True))
    files.write(tmp_path / "one", weights(SMALL, "cuda"), {"a": "1"})
    files.write(tmp_path / "two", params, {"a": "1"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


# What a step costs -----------------------------------------------------------------------------------------------------------

POSTERIOR = 3               # of Eq. (7): the two factors of μ̃, and β̃


def copies(name, t):
    """The sizes in bytes of all that a training step copies to the device; t (B,), its times."""
    objective, ε, integers = OBJECTIVES[name], 4 * B * D, 8 * B
    every_step = [integers, B, ε, integers, integers, 4 * B, 4 * B]     # which images, which are mirrored, ε, seeds, t, Eq. (4)
    if objective.loss is mse_loss:
        return every_step + (objective.predicts == "mu") * POSTERIOR * [4 * B]
    mean = {"eps": 2 + 1, "mu": 1, "x0": POSTERIOR + 1}[objective.predicts]             # Eq. (11) or (7), and the slope of it
    variances = 1 + (not objective.learned_sigma)                                       # the KL's β̃, and log σ_t²
    first = np.count_nonzero(t == 1)                                                    # the images that the decoder is for
    return every_step + (POSTERIOR + mean + variances) * [8 * B] + ([8 * first] if first else [])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_training_step_copies_little_and_never_waits(gpu, objective):
    """Counted, on the stand-in too; there without dropout, whose plain layer draws on the host."""
    cfg = config(objective) if gpu.kernels else replace(config(objective), dropout=0.0)
    seen, found = [], []
    with Workers(1) as workers:
        _, steps = training(cfg, "cuda", settings(objective=objective), seen=seen, **by(workers))
        next(steps)
        if gpu.counting is None:
            pytest.skip("nothing is counted on a GPU")
        for _ in range(2):
            with gpu.counting() as c:
                metrics = next(steps)
            assert is_cuda(metrics.loss) and is_cuda(metrics.grad_norm)
            assert (c["syncs"], c.get("d2h", 0)) == (0, 0)
            found.append((c["h2d"], c["h2d_bytes"]))
    expected = [copies(objective, t) for t in seen[1:]]
    assert found == [(len(sizes), sum(sizes)) for sizes in expected]
    assert len({1 in t for t in seen[1:]}) == 2                         # steps with t = 1 and without


def cost(gpu, monkeypatch, kernels):
    """The counters of a training step and of a sampling step of the CIFAR-10 model's structure, both warm."""
    if not gpu.kernels or gpu.counting is None:
        pytest.skip("launches are counted by --backend emu")
    monkeypatch.setenv("MINDDPM_KERNELS", str(int(kernels)))
    with Workers(1) as workers:
        state, steps = training(CIFAR, "cuda", settings(), **by(workers))
        next(steps)
        with gpu.counting() as of_training:
            next(steps)
    model = Model(CIFAR, state.ema, Schedule.linear(T=10), ops=ops_for(state.ema, 8))
    process = reverse_process(model.schedule, model.output, image_noise((2, 8, 8, 3), 0, like=state.ema["conv_in"]["bias"]))
    next(process), next(process)
    with gpu.counting() as of_sampling:
        next(process)
    found = [{k: c[k] for k in ("launches", "gemms", "h2d", "h2d_bytes", "d2h", "syncs", "allocs", "peak_bytes")}
             for c in (of_training, of_sampling)]
    print(f"\nkernels {kernels}:", *found)
    return found


def test_what_a_step_of_the_cifar10_model_costs(gpu, monkeypatch):
    training, sampling = cost(gpu, monkeypatch, kernels=True)
    assert training["launches"] + training["gemms"] <= 1246 and sampling["launches"] + sampling["gemms"] <= 450
    assert (training["syncs"], training["h2d"], training["d2h"]) == (0, 7, 0)                   # see `copies`
    assert (sampling["syncs"], sampling["h2d"], sampling["d2h"]) == (0, 2, 0)                   # the noise, and t
    assert sampling["h2d_bytes"] == 2 * D * 4 + 2 * 8
    plain, plain_sampling = cost(gpu, monkeypatch, kernels=False)
    assert plain["launches"] > 5 * training["launches"] and plain_sampling["launches"] > 2 * sampling["launches"]


# The optimiser ---------------------------------------------------------------------------------------------------------------


def test_the_fused_optimiser_equals_the_plain_one(gpu):
    """Sizes that no block divides, more arrays than a launch takes, and clipping on and off."""
    if not gpu.kernels:
        pytest.skip("kernels need CuPy")
    shapes = [(1,), (7, 3), (3000,), (2, 3, 5)] * 21
    assert len(shapes) > adam_cuda.LEAVES

    def some(device, seed):
        rng = np.random.default_rng(seed)
        return {str(k): to_device(rng.standard_normal(shape, dtype=np.float32), device) for k, shape in enumerate(shapes)}

    for scale in 1.0, 0.25:
        host, device = (TrainingState.begin(some(where, 0)) for where in ("cpu", "cuda"))
        for step in 1, 2, 3:
            gradient, there = some("cpu", step), some("cuda", step)
            assert float(adam_cuda.global_norm(there)) == pytest.approx(float(optim.global_norm(gradient)), rel=1e-6)
            optim.adam(host.params, host.m, host.v, tree.map(lambda g, c=scale: g * np.float32(c), gradient), step, 0.01)
            optim.ema(host.ema, host.params, step, 0.9)
            shuffled = {k: there[k] for k in reversed(there)}                                   # another order of keys
            adam_cuda.adam_ema(device, shuffled, step, 0.01, to_device(np.float32(scale), "cuda"), 0.9)
        for name in "params", "m", "v", "ema":
            assert distance(getattr(device, name), getattr(host, name))[0] < 1e-6, name
