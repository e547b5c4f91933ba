"""fitting.py: where memory runs out, one sentence names a batch that was seen to fit."""

import importlib.metadata
import os
import subprocess
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
from test_train import small

import minddpm
from minddpm import device as backend
from minddpm import train, unet
from minddpm.app import cli, fitting, generate, run, settings
from minddpm.app import dry_run as estimate
from minddpm.app.settings import Settings
from minddpm.errors import UserError
from minddpm.fast.workers import Workers
from minddpm.unet import recompute as memory

POOL = "Out of memory allocating 604,000,000 bytes (allocated so far: 8,000,000,000 bytes)."
FULL = [MemoryError(POOL), RuntimeError("cudaErrorMemoryAllocation: out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")]
TOLD = Settings(data="digits", batch=16, steps=3, T=8, save_every=1, sample_every=0, threads=1)


@pytest.fixture(autouse=True)
def smaller(monkeypatch):
    monkeypatch.setitem(settings.PRESETS, "tiny", lambda channels=1: small(channels, 0.0))


def memory_for(images, error=FULL[0], after=0):
    """A U-Net that runs out of memory with more images than that, from a number of calls on."""
    calls = []

    def network(cfg, p, x, *args, **more):
        calls.append(len(x))
        if len(calls) > after and len(x) > images:
            raise error
        return unet.unet(cfg, p, x, *args, **more)

    return network


@pytest.mark.parametrize("error", FULL)
@pytest.mark.parametrize("most, fits", [(8, "--batch 8 fits"), (5, "--batch 4 fits"), (0, "a single image does not fit either")])
def test_training_out_of_memory_proposes_a_batch_that_fits(tmp_path, monkeypatch, error, most, fits):
    monkeypatch.setattr(train, "unet", memory_for(most, error))
    with pytest.raises(UserError) as e:
        run.train(run.begin(tmp_path / "run", TOLD))
    assert str(e.value) == (f"out of memory while training with --batch 16 ({type(error).__name__}: {error}); {fits}; "
                            "nothing had been saved yet")


@pytest.mark.parametrize("policy", memory.TRAINING)
def test_the_batch_that_is_proposed_was_tried_under_the_memory_policy_of_the_run(tmp_path, monkeypatch, policy):
    tried, network = [], memory_for(4)
    monkeypatch.setattr(train, "unet", lambda *args: (tried.append((len(args[2]), args[5])), network(*args))[1])
    with pytest.raises(UserError, match="--batch 4 fits"):
        run.train(run.begin(tmp_path / "run", replace(TOLD, memory=policy)))
    assert tried == [(n, memory.TRAINING[policy]) for n in (16, 8, 4)]


def test_training_out_of_memory_keeps_what_was_saved_and_trains_with_the_batch_it_proposed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "unet", memory_for(4, after=2))
    words = ["train", "--data", "digits", "--steps", "3", "--threads", "1", "--save-every", "1", "--device", "cpu"]
    assert cli.main([*words, "--batch", "16", "--out", str(tmp_path / "a")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("minddpm: out of memory while training with --batch 16 ") and said.count("\n") == 1
    assert f"--batch 4 fits; the state of step 2 is kept in {tmp_path / 'a'}" in said
    assert run.resume(tmp_path / "a").state.step == 2
    assert cli.main([*words, "--batch", "4", "--out", str(tmp_path / "b")]) == 0


def test_a_dry_run_out_of_memory_proposes_a_batch_that_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "unet", memory_for(5))
    words = ["train", "--data", "digits", "--steps", "1", "--threads", "1", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert cli.main([*words, "--dry-run", "--batch", "32"]) == 2
    said = capsys.readouterr().err
    assert said == f"minddpm: out of memory while trying a step with --batch 32 ({backend.reason(FULL[0])}); --batch 4 fits\n"
    assert cli.main([*words, "--batch", "4"]) == 0


def test_a_dry_run_says_where_only_the_other_memory_policy_does_not_fit(monkeypatch):
    def network(cfg, p, x, t, seeds, run):
        if run is memory.keep:
            raise MemoryError(POOL)
        return unet.unet(cfg, p, x, t, seeds, run)

    monkeypatch.setattr(train, "unet", network)
    assert "MB; with --memory keep it does not fit\n" in estimate.estimate(replace(TOLD, memory="checkpoint"))
    with pytest.raises(UserError, match="a single image does not fit either"):
        estimate.estimate(TOLD)


def test_sampling_out_of_memory_proposes_a_batch_that_fits(tmp_path, monkeypatch):
    trained = run.begin(tmp_path / "run", TOLD)
    monkeypatch.setattr(minddpm.model, "unet", memory_for(3))
    with Workers(1) as workers, pytest.raises(UserError, match=r"while sampling with --batch 10 \(.*\); --batch 2 fits$"):
        generate.generate(trained.model, 12, 0, workers, batch=10)
    with Workers(1) as workers:
        assert generate.generate(trained.model, 3, 0, workers, batch=2).shape == (3, 8, 8, 1)


def test_memory_of_the_failed_attempt_is_free_before_the_next():
    class Block:
        """Stands for an array that the failed computation had made."""

    alive, seen = [], []

    def compute():
        block = Block()
        alive.append(weakref.ref(block))
        raise MemoryError(POOL)

    with pytest.raises(UserError, match="--batch 4 fits"):
        fitting.proposing(compute, 8, lambda n: seen.append(alive[0]()), "cpu", "testing")
    assert seen == [None]


@pytest.mark.parametrize("error", [ValueError("x has shape"), UserError("a sentence"), KeyboardInterrupt()])
def test_other_errors_are_left_alone(error):
    def raises(n=0):
        raise error

    with pytest.raises(type(error)) as e:
        fitting.proposing(raises, 8, raises, "cpu", "testing")
    assert e.value is error
    with pytest.raises(type(error)):
        fitting.fitting(raises, 8, "cpu")


def test_memory_that_ends_elsewhere_is_a_sentence_too(monkeypatch, capsys):
    def full(name):
        np.empty((10**8, 10**8))

    monkeypatch.setattr(run, "load", full)
    assert cli.main(["train", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("minddpm: out of memory: MemoryError: Unable to allocate") and said.count("\n") == 1


def test_the_real_cupy_says_so_as_a_memory_error_and_without_a_driver_in_the_probes_sentence():
    try:
        version = importlib.metadata.version("cupy-cuda13x")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("cupy-cuda13x is not installed")
    code = ("from minddpm import device as backend; print(backend.probe()[1]); from cupy.cuda.memory import OutOfMemoryError as E; "
            "e = E(604000000, 8000000000, 0); print(backend.is_out_of_memory(e), backend.reason(e))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    sentence, memory = done.stdout.splitlines()
    assert sentence.startswith(f"CuPy {version} is installed but ")
    assert memory.startswith("True OutOfMemoryError: Out of memory allocating 604,000,000 bytes")
    assert backend.is_out_of_memory(FULL[1])
