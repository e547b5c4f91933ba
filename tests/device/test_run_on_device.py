"""A whole run, the bound, samples and the coder on a device, as on the host; and that a device is not waited for at each step."""

import csv
import re
from dataclasses import replace

import numpy as np
import pytest

from minddpm import coding, tree
from minddpm import device as backend
from minddpm.app import cli, run
from minddpm.app import dry_run as estimate
from minddpm.app.settings import Settings
from minddpm.data import load as load_data
from minddpm.data import scale
from minddpm.diffusion import Schedule
from minddpm.errors import UserError
from minddpm.likelihood import marginal_bound, path_bound, reverse_term, vlb, vlb_estimate
from minddpm.model import Model
from minddpm.storage import load
from minddpm.train import Metrics, draw
from minddpm.unet import UNetConfig, init

TOLD = Settings(data="digits", batch=2, steps=12, T=8, save_every=6, sample_every=0, dropout=0.1, warmup=0, lr=1e-4, threads=1)


def log(folder):
    with open(folder / "log.csv", newline="") as f:
        return [[float(value) for value in row[:-1]] for row in list(csv.reader(f))[1:]]


def test_a_run_is_the_hosts_and_its_losses_are_read_when_they_are_due(gpu, tmp_path, monkeypatch):
    read, seen, real_read, real_step = [], [], Metrics.read, run.train_step
    assert run.train(run.begin(tmp_path / "cpu", replace(TOLD, device="cpu")))
    monkeypatch.setattr(Metrics, "read", lambda self, step: (read.append(step), real_read(self, step))[1])
    monkeypatch.setattr(run, "train_step", lambda *args: (seen.append(list(read)), real_step(*args))[1])
    assert run.train(run.begin(tmp_path / "cuda", replace(TOLD, device="cuda")))
    assert read == list(range(1, 13))
    assert seen[5] == [] and seen[6] == list(range(1, 7)) and seen[10] == list(range(1, 11))     # before the save at 6, and at 10
    np.testing.assert_allclose(log(tmp_path / "cuda"), log(tmp_path / "cpu"), rtol=1e-4)
    host, there = (load(tmp_path / device).params for device in ("cpu", "cuda"))
    for a, b in zip(tree.leaves(there), tree.leaves(host), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=12 * 2 * 1e-4)
    begun = run.begin(tmp_path / "begun", replace(TOLD, device="cpu")).state.params
    moved = [np.concatenate([(a - b).ravel() for a, b in zip(tree.leaves(params), tree.leaves(begun), strict=True)])
             for params in (there, host)]
    assert np.linalg.norm(moved[0] - moved[1]) < 1e-3 * np.linalg.norm(moved[1])                  # the way, not where it began


def test_a_run_goes_on_on_the_device_as_if_it_had_not_stopped(gpu, tmp_path):
    told = replace(TOLD, device="cuda", steps=6, save_every=0)
    assert run.train(run.begin(tmp_path / "whole", told))
    assert run.train(run.begin(tmp_path / "parts", replace(told, steps=4)))
    resumed = run.resume(tmp_path / "parts", 6)
    assert backend.is_cuda(resumed.dataset.train) and backend.is_cuda(resumed.state.m["conv_in"]["bias"])
    assert run.train(resumed)
    assert (tmp_path / "whole" / run.STATE).read_bytes() == (tmp_path / "parts" / run.STATE).read_bytes()


def test_a_loss_that_is_not_finite_is_found_before_anything_is_saved(gpu, tmp_path, monkeypatch):
    def with_nan(told, dataset, step):
        drawn = draw(told, dataset, step)
        return drawn._replace(eps=drawn.eps * np.nan) if step == 8 else drawn

    monkeypatch.setattr(run, "draw", with_nan)
    with pytest.raises(UserError, match="step 8: the loss is nan .*; the state of step 6 is kept in"):
        run.train(run.begin(tmp_path / "run", replace(TOLD, device="cuda")))
    assert run.resume(tmp_path / "run").state.step == 6


def test_training_images_stay_on_the_host_where_they_do_not_fit(gpu, monkeypatch):
    data = load_data("digits")
    assert backend.is_cuda(run.resident(data, "cuda").train)
    monkeypatch.setattr(backend, "free_bytes", lambda: 2 * data.train.nbytes - 1)
    assert run.resident(data, "cuda") is data


def models():
    cfg = UNetConfig(8, 1, widths=(4, 8), blocks=1, attention=(1,), groups=2)
    params, s = init(cfg, 0), Schedule.linear(T=5, beta_T=0.3)
    rng = np.random.default_rng(0)
    params = tree.map(lambda a: a + rng.standard_normal(a.shape, dtype=np.float32) / 4, params)
    return Model(cfg, params, s), Model(cfg, tree.map(lambda a: backend.to_device(a, "cuda"), params), s)


@pytest.mark.parametrize("bound", [vlb, path_bound, marginal_bound, lambda *args: vlb_estimate(*args, terms=3)])
def test_the_bound_is_the_hosts(gpu, bound):
    x0, found = scale(load_data("digits").held_out[:3], 17), []
    for model, device in zip(models(), ("cpu", "cuda"), strict=True):
        result = bound(model.schedule, model.eps_theta, backend.to_device(x0, device), np.random.default_rng(1))
        found.append(result if isinstance(result, tuple) else (result,))
    for a, b in zip(*found, strict=True):
        assert isinstance(b, np.ndarray)
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("t", [1, 3, "of its own"])
@pytest.mark.parametrize("sigma2", ["beta", "learned"])
@pytest.mark.parametrize("cdf", ["erf", "tanh"])
def test_a_term_of_the_bound_neither_waits_nor_copies(gpu, t, sigma2, cdf):
    """Counted for a network that is an array expression; the numbers are the host's."""
    if gpu.counting is None:
        pytest.skip("nothing is counted on a GPU")
    s, rng = Schedule.linear(T=5, beta_T=0.3), np.random.default_rng(0)
    t = np.array([2, 5, 3]) if t == "of its own" else t
    arguments, found = (scale(load_data("digits").held_out[:3], 17), t, rng.standard_normal((3, 8, 8, 1))), []

    def eps_theta(x_t, t):
        return np.concatenate([x_t / 2, x_t / 4 - 3], axis=-1) if sigma2 == "learned" else x_t / 2

    for device in "cpu", "cuda":
        x0, t_, eps = (a if np.ndim(a) == 0 else backend.to_device(a, device) for a in arguments)
        s.on(x0)                                                                                # the schedule goes there once
        with gpu.counting() as c:
            L, mse = reverse_term(s, eps_theta, x0, t_, eps, sigma2, levels=17, cdf=cdf)
        assert backend.is_cuda(L) == backend.is_cuda(mse) == (device == "cuda")
        assert (c["syncs"], c["h2d"], c.get("d2h", 0)) == (0, 0, 0)
        found.append([backend.to_host(a) for a in (L, mse)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


def test_images_are_sent_with_a_network_on_the_device(gpu):
    """The coder is the host's work, and its network may be anywhere: then its ε comes to the host."""
    model, x0 = models()[1], load_data("digits").train[:2]

    def eps_theta(x_t, t):
        return backend.to_host(model.eps_theta(backend.to_device(x_t, "cuda"), t))

    codec = coding.calibrate(model.schedule, eps_theta, x0, 17)
    *_, last = coding.receive(codec, coding.send(codec, x0).message, 2)
    np.testing.assert_array_equal(last.x_t, x0)


def test_the_dry_run_measures_the_device_that_it_speaks_of(gpu, monkeypatch):
    places, real = [], estimate.train_step
    monkeypatch.setattr(estimate, "train_step", lambda told, cfg, s, state, batch, workers: (
        places.append([backend.is_cuda(a) for a in (batch.x0, state.params["conv_in"]["bias"])]),
        real(told, cfg, s, state, batch, workers))[1])
    text = estimate.estimate(replace(TOLD, device="cuda", dropout=0.0))
    assert places == [[True, True]] * 2 and re.search(r"^time .* in all, on the GPU$", text, re.MULTILINE)
    assert "on the GPU" not in estimate.estimate(replace(TOLD, device="cpu")) and places[2:] == [[False, False]] * 2


def test_the_dry_run_counts_the_images_that_are_on_the_device(gpu, monkeypatch):
    told, data = replace(TOLD, device="cuda"), load_data("digits")
    there = estimate._trial(told)
    weights = 4 * tree.size(there.state.params)
    assert estimate._peak(there, 1000) == 4 * weights + 1000 + data.train.nbytes
    monkeypatch.setattr(backend, "free_bytes", lambda: 0)
    assert estimate._peak(estimate._trial(told), 1000) == 4 * weights + 1000


def test_the_command_line_trains_samples_and_evaluates_on_the_device(gpu, tmp_path, capsys):
    folder = tmp_path / "run"
    for line in ("train --data digits --steps 2 --batch 2 --T 3 --beta-T 0.9 --device cuda --out {}",
                 "sample {} -n 3 --device cuda --npz {}/a.npz", "sample {} -n 3 --device cpu --npz {}/b.npz",
                 "evaluate {} -n 2 --bpd --device cuda"):
        assert not cli.main([word.format(folder) for word in line.split()])
    assert re.match(r"device cuda: CuPy \S+ sees \d+ GPU\(s\) and computes on the first\n", capsys.readouterr().out)
    with np.load(folder / "a.npz") as a, np.load(folder / "b.npz") as b:
        assert np.abs(a["arr_0"].astype(int) - b["arr_0"]).max() <= 1
