"""A run that is killed and resumed, at any step and in any process, equals an uninterrupted one bit for bit."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from minddpm import data, tree
from minddpm.app import loop, run, settings
from minddpm.app.settings import Settings
from minddpm.unet import UNetConfig

REQUESTED = Settings(data="digits", preset="tiny", batch=24, lr=1e-3, lr_final=1e-5, warmup=3, steps=12, ema=0.9, T=20, threads=2,
                dropout=0.3, flips=True, save_every=4, sample_every=0)


def same(a, b):
    tree.map(np.testing.assert_array_equal, a, b)


class Killed(BaseException):
    """What stands for SIGKILL within one process; tests/app/test_run.py sends real ones."""


@pytest.fixture
def smaller(monkeypatch):
    small = UNetConfig(8, 1, widths=(8, 16), blocks=1, attention=(1,), groups=4)
    monkeypatch.setitem(settings.PRESETS, "tiny", lambda channels=1: replace(small, in_channels=channels))


def everything(folder):
    """The bytes of every file of a run; of log.csv without its last column, the speed."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    files["log.csv"] = [line.rsplit(b",", 1)[0] for line in files.get("log.csv", b"").splitlines()]
    return files


def killed_at(monkeypatch, step):
    batch = data.Dataset.batch

    def killed(dataset, size, k, *more):
        if k == step:
            raise Killed
        return batch(dataset, size, k, *more)

    monkeypatch.setattr(data.Dataset, "batch", killed)


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, monkeypatch, smaller):
    whole = run.begin(tmp_path / "whole", REQUESTED)
    assert loop.train(whole)
    current = run.begin(tmp_path / "killed", REQUESTED)
    for step in 1, 3, 5, 8, 9, 12:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_at(patch, step)
            loop.train(current)
        current = run.resume(tmp_path / "killed")
        assert current.state.step == (step - 1) // 4 * 4
    assert loop.train(current)
    assert current.state.step == whole.state.step == 12
    for name in "params", "m", "v", "ema":
        same(getattr(current.state, name), getattr(whole.state, name))
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")


def test_resumed_in_a_fresh_process_equals_uninterrupted(tmp_path, monkeypatch):
    requested = replace(REQUESTED, batch=8, steps=10, save_every=4)
    assert loop.train(run.begin(tmp_path / "whole", requested))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, 7)
        loop.train(run.begin(tmp_path / "killed", requested))
    subprocess.run([sys.executable, "-m", "minddpm", "train", "--resume", tmp_path / "killed"], check=True, capture_output=True)
    fresh = run.resume(tmp_path / "killed").state
    for name in "params", "m", "v", "ema":
        same(getattr(fresh, name), getattr(run.resume(tmp_path / "whole").state, name))
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")
