"""Where memory runs out there is one sentence with the reason and the way out, and what was saved is kept."""

import importlib.metadata
import os
import subprocess
import sys

import numpy as np
import pytest
from test_train import small

import minddpm
from minddpm import train, unet
from minddpm.app import cli, dry_run, loop, run, settings
from minddpm.app.generate import generate
from minddpm.app.settings import Settings
from minddpm.errors import UserError
from minddpm.fast import Workers
from minddpm.fast.device import is_out_of_memory, out_of_memory, reason

POOL = "Out of memory allocating 604,000,000 bytes (allocated so far: 8,000,000,000 bytes)."
FULL = [MemoryError(POOL), RuntimeError("cudaErrorMemoryAllocation: out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")]
REQUESTED = Settings(data="digits", batch=16, steps=3, T=8, save_every=1, sample_every=0, threads=1)
ADVICE = "try a smaller --batch or --memory checkpoint"


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
def test_training_out_of_memory_is_one_sentence(tmp_path, monkeypatch, error):
    monkeypatch.setattr(train, "unet", memory_for(8, error))
    with pytest.raises(UserError) as e:
        loop.train(run.begin(tmp_path / "run", REQUESTED))
    assert str(e.value) == (f"out of memory while training with --batch 16 ({type(error).__name__}: {error}); {ADVICE}; "
                            "nothing had been saved yet")


def test_training_out_of_memory_keeps_what_was_saved_and_a_smaller_batch_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "unet", memory_for(4, after=2))
    words = ["train", "--data", "digits", "--steps", "3", "--threads", "1", "--save-every", "1", "--device", "cpu"]
    assert cli.main([*words, "--batch", "16", "--out", str(tmp_path / "a")]) == 2
    err = capsys.readouterr().err
    assert err == (f"minddpm: out of memory while training with --batch 16 ({reason(FULL[0])}); {ADVICE}; "
                   f"the state of step 2 is kept in {tmp_path / 'a'}\n")
    assert run.resume(tmp_path / "a").state.step == 2
    assert cli.main([*words, "--batch", "4", "--out", str(tmp_path / "b")]) == 0


def test_a_dry_run_out_of_memory_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dry_run, "train", lambda *args: iter(memory_for(0)(None, None, [1]) for _ in [1]))
    words = ["train", "--data", "digits", "--device", "cpu", "--out", str(tmp_path / "run"), "--dry-run", "--batch", "32"]
    assert cli.main(words) == 2
    assert capsys.readouterr().err == (f"minddpm: out of memory while trying a step with --batch 32 ({reason(FULL[0])}); "
                                       f"{ADVICE}\n")


def test_sampling_out_of_memory_is_one_sentence(tmp_path, monkeypatch):
    trained = run.begin(tmp_path / "run", REQUESTED)
    monkeypatch.setattr(minddpm.model, "unet", memory_for(3))
    with Workers(1) as workers, pytest.raises(UserError, match=r"while sampling with --batch 10 \(.*\); try a smaller --batch$"):
        generate(trained.model, 12, 0, workers, batch=10)
    with Workers(1) as workers:
        assert generate(trained.model, 3, 0, workers, batch=2).shape == (3, 8, 8, 1)


@pytest.mark.parametrize("error", [ValueError("x has shape"), UserError("a sentence with cudaErrorMemoryAllocation"),
                                   KeyboardInterrupt()])
def test_other_errors_are_left_alone(error):
    with pytest.raises(type(error)) as e, out_of_memory("testing", "try again"):
        raise error
    assert e.value is error


@pytest.mark.parametrize("error", [None, *FULL[1:]])
def test_memory_that_ends_elsewhere_is_a_sentence_too(monkeypatch, capsys, error):
    def full(name):
        if error:
            raise error
        np.empty((10**8, 10**8))

    monkeypatch.setattr(run, "load", full)
    assert cli.main(["train", "--device", "cpu"]) == 2
    expected = reason(error) if error else "MemoryError: Unable to allocate"
    err = capsys.readouterr().err
    assert err.startswith(f"minddpm: out of memory: {expected}") or "_ArrayMemoryError" in err
    assert err.count("\n") == 1


def test_the_real_cupy_says_so_as_a_memory_error_and_without_a_driver_in_the_probes_sentence():
    try:
        version = importlib.metadata.version("cupy-cuda13x")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("cupy-cuda13x is not installed")
    code = ("from minddpm.fast.device import is_out_of_memory, probe, reason; print(probe()[1]); "
            "from cupy.cuda.memory import OutOfMemoryError as E; "
            "e = E(604000000, 8000000000, 0); print(is_out_of_memory(e), reason(e))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    sentence, memory = done.stdout.splitlines()
    assert sentence.startswith(f"CuPy {version} is installed but ")
    assert memory.startswith("True OutOfMemoryError: Out of memory allocating 604,000,000 bytes")
    assert is_out_of_memory(FULL[1])
