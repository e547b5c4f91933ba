"""A whole run, the bound, samples and the coder on a device, as on the host; and how often a run waits for a device."""

import csv
import re
from dataclasses import replace

import numpy as np
import pytest

from minddpm import train as alg1
from minddpm import tree
from minddpm.app import cli, dry_run, loop, run
from minddpm.app.settings import Settings
from minddpm.appendix_a import marginal_bound, path_bound
from minddpm.coding import calibrate, receive, send
from minddpm.data import load as load_data
from minddpm.data import scale
from minddpm.diffusion import Schedule
from minddpm.errors import UserError
from minddpm.fast import ops_for
from minddpm.fast.device import device_of, is_cuda, to_device, to_host
from minddpm.likelihood import reverse_term, vlb
from minddpm.model import Model
from minddpm.storage.folder import load
from minddpm.train import Metrics
from minddpm.unet import UNetConfig, init

SETTINGS = Settings(data="digits", batch=2, steps=12, T=8, save_every=6, sample_every=0, dropout=0.1, warmup=0, lr=1e-4,
                    threads=1)


def log(folder):
    with open(folder / "log.csv", newline="") as f:
        return [[float(value) for value in row[:-1]] for row in list(csv.reader(f))[1:]]


def test_a_run_is_the_hosts_and_its_losses_are_read_when_they_are_due(gpu, tmp_path, monkeypatch):
    read, seen, checked, steps = [], [], Metrics.checked, loop.training_steps

    def watched(*args):
        for metrics in steps(*args):
            seen.append(list(read))
            yield metrics

    assert loop.train(run.begin(tmp_path / "cpu", replace(SETTINGS, device="cpu")))
    monkeypatch.setattr(Metrics, "checked", lambda self: (read.append(self.step), checked(self))[1])
    monkeypatch.setattr(loop, "training_steps", watched)
    assert loop.train(run.begin(tmp_path / "cuda", replace(SETTINGS, device="cuda")))
    assert read == list(range(1, 13))
    assert seen[5] == [] and seen[6] == list(range(1, 7)) and seen[10] == list(range(1, 11))     # to save at 6, to log at 10
    np.testing.assert_allclose(log(tmp_path / "cuda"), log(tmp_path / "cpu"), rtol=1e-4)
    host, there = (load(tmp_path / device).params for device in ("cpu", "cuda"))
    for a, b in zip(tree.leaves(there), tree.leaves(host), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=12 * 2 * 1e-4)
    begun = run.begin(tmp_path / "begun", replace(SETTINGS, device="cpu")).state.params
    moved = [np.concatenate([(a - b).ravel() for a, b in zip(tree.leaves(params), tree.leaves(begun), strict=True)])
             for params in (there, host)]
    assert np.linalg.norm(moved[0] - moved[1]) < 1e-3 * np.linalg.norm(moved[1])                  # the way, not where it began


def test_a_run_goes_on_on_the_device_as_if_it_had_not_stopped(gpu, tmp_path):
    requested = replace(SETTINGS, device="cuda", steps=6, save_every=0)
    assert loop.train(run.begin(tmp_path / "whole", requested))
    assert loop.train(run.begin(tmp_path / "parts", replace(requested, steps=4)))
    resumed = run.resume(tmp_path / "parts", 6)
    assert is_cuda(resumed.dataset.train) and is_cuda(resumed.state.m["conv_in"]["bias"])
    assert loop.train(resumed)
    assert (tmp_path / "whole" / run.STATE).read_bytes() == (tmp_path / "parts" / run.STATE).read_bytes()


def test_a_loss_that_is_not_finite_is_found_before_anything_is_saved(gpu, tmp_path, monkeypatch):
    current, q_sample = run.begin(tmp_path / "run", replace(SETTINGS, device="cuda")), alg1.q_sample
    monkeypatch.setattr(alg1, "q_sample", lambda *args: q_sample(*args) * (np.nan if current.state.step == 7 else 1))
    with pytest.raises(UserError, match="step 8: the loss is nan .*; the state of step 6 is kept in"):
        loop.train(current)
    assert run.resume(tmp_path / "run").state.step == 6


def test_training_images_stay_on_the_host_where_they_do_not_fit(gpu, monkeypatch):
    nbytes = load_data("digits").train.nbytes
    for free, place in (2 * nbytes, "cuda"), (2 * nbytes - 1, "cpu"):
        monkeypatch.setattr(run, "free_bytes", lambda free=free: free)
        _, dataset, device = run.prepare(replace(SETTINGS, device="cuda"))
        assert device == "cuda" and device_of(dataset.train) == place


def models():
    cfg = UNetConfig(8, 1, widths=(4, 8), blocks=1, attention=(1,), groups=2)
    params, s = init(cfg, 0), Schedule.linear(T=5, beta_T=0.3)
    rng = np.random.default_rng(0)
    params = tree.map(lambda a: a + rng.standard_normal(a.shape, dtype=np.float32) / 4, params)
    there = tree.map(lambda a: to_device(a, "cuda"), params)
    return Model(cfg, params, s), Model(cfg, there, s, ops=ops_for(there, 8))


@pytest.mark.parametrize("bound", [vlb, path_bound, marginal_bound])
def test_the_bound_is_the_hosts(gpu, bound):
    x0, found = scale(load_data("digits").held_out[:3], 17), []
    for model, device in zip(models(), ("cpu", "cuda"), strict=True):
        result = bound(model.schedule, model.eps_theta, to_device(x0, device), np.random.default_rng(1))
        found.append(result if isinstance(result, tuple) else (result,))
        assert {device_of(a) for a in found[-1]} == {device}
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(to_host(b), to_host(a), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("t", [1, 3])
@pytest.mark.parametrize("sigma2", ["beta", "learned"])
@pytest.mark.parametrize("cdf", ["erf", "tanh"])
def test_a_term_of_the_bound_never_waits_and_copies_nothing(gpu, t, sigma2, cdf):
    """Counted for a network that is an array expression; the numbers are the host's."""
    if gpu.counting is None:
        pytest.skip("nothing is counted on a GPU")
    s, rng = Schedule.linear(T=5, beta_T=0.3), np.random.default_rng(0)
    x0, eps, found = scale(load_data("digits").held_out[:3], 17), rng.standard_normal((3, 8, 8, 1)), []

    def eps_theta(x_t, t):
        return np.concatenate([x_t / 2, x_t / 4 - 3], axis=-1) if sigma2 == "learned" else x_t / 2

    for device in "cpu", "cuda":
        x0_, eps_ = to_device(x0, device), to_device(eps, device)
        with gpu.counting() as c:
            L, mse = reverse_term(s, eps_theta, x0_, t, eps_, sigma2, levels=17, cdf=cdf)
        assert is_cuda(L) == is_cuda(mse) == (device == "cuda")
        assert (c["syncs"], c["h2d"], c["h2d_bytes"], c.get("d2h", 0)) == (0, 0, 0, 0)
        found.append([to_host(a) for a in (L, mse)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


def test_images_are_sent_with_a_network_on_the_device(gpu):
    """The coder runs on the host, its network on the device: then its ε is copied to the host."""
    model, x0 = models()[1], load_data("digits").train[:2]

    def eps_theta(x_t, t):
        return to_host(model.eps_theta(to_device(x_t, "cuda"), t))

    codec = calibrate(model.schedule, eps_theta, x0, 17)
    *_, last = receive(codec, send(codec, x0).message, 2)
    np.testing.assert_array_equal(last.x_t, x0)


def test_the_dry_run_measures_the_device_that_it_prints(gpu, monkeypatch):
    places, steps = [], dry_run.train

    def watched(settings, cfg, s, state, dataset, *halves):
        places.append([device_of(a) for a in (dataset.train, state.params["conv_in"]["bias"])])
        return steps(settings, cfg, s, state, dataset, *halves)

    monkeypatch.setattr(dry_run, "train", watched)
    monkeypatch.setattr(dry_run, "pool_bytes", lambda: 2**20 * 1234)                # what CuPy's pool holds after a step
    text = dry_run.dry_run(replace(SETTINGS, device="cuda", dropout=0.0))
    assert places == [["cuda", "cuda"]] and re.search(r"^memory +about 1,234 MB$", text, re.MULTILINE)
    assert re.search(r"^time .* in all, on the GPU$", text, re.MULTILINE)
    assert "on the GPU" not in dry_run.dry_run(replace(SETTINGS, device="cpu")) and places[1:] == [["cpu", "cpu"]]


def test_the_command_line_trains_samples_and_evaluates_on_the_device(gpu, tmp_path, capsys):
    folder = tmp_path / "run"
    for line in ("train --data digits --steps 2 --batch 2 --T 3 --beta-T 0.9 --device cuda --out {}",
                 "sample {} -n 3 --device cuda --npz {}/a.npz", "sample {} -n 3 --device cpu --npz {}/b.npz",
                 "evaluate {} -n 2 --bpd --device cuda"):
        assert not cli.main([word.format(folder) for word in line.split()])
    assert re.match(r"device cuda: CuPy \S+ finds \d+ GPU\(s\) and computes on the first\n", capsys.readouterr().out)
    with np.load(folder / "a.npz") as a, np.load(folder / "b.npz") as b:
        assert np.abs(a["arr_0"].astype(int) - b["arr_0"]).max() <= 1
