"""dry_run.py: the memory that `train --dry-run` prints is what a run then takes, and the time about that."""

import re
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from minddpm.app import dry_run, settings
from minddpm.app.settings import Settings
from minddpm.unet import UNetConfig

REQUESTED = Settings(data="mnist16", preset="small", batch=64, steps=12, threads=2, device="cpu", sample_every=0)
WIDE = {"widths": (160, 160), "blocks": 1, "attention": ()}             # its weights weigh more than its activations
RUN = """
import sys
from ast import literal_eval
from dataclasses import replace
from minddpm.app import loop, run, settings
small = replace(settings.PRESETS["small"](), **literal_eval(sys.argv[3]))
settings.PRESETS["small"] = lambda channels=1: small
loop.train(run.begin(sys.argv[1], settings.Settings(**literal_eval(sys.argv[2]))))
with open("/proc/self/status") as f:
    print(*(line for line in f if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process's memory from Linux's /proc")
@pytest.mark.parametrize("memory", settings.MEMORY)
@pytest.mark.parametrize("network, batch", [({}, 64), (WIDE, 4)], ids=["small", "wide"])
def test_the_memory_is_what_a_run_takes(tmp_path, monkeypatch, network, batch, memory):
    requested = replace(REQUESTED, batch=batch, memory=memory)
    monkeypatch.setitem(settings.PRESETS, "small", lambda channels=1: replace(UNetConfig.small(), **network))
    done = subprocess.run([sys.executable, "-c", RUN, tmp_path / "run", repr(asdict(requested)), repr(network)], text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1]) / 1024
    said = int(re.search(r"^memory +about ([\d,]+) MB$", dry_run.dry_run(requested), re.MULTILINE)[1].replace(",", ""))
    print(f"\n{memory}: about {said} MB, and it took {peak:.0f}")
    assert abs(said / peak - 1) < 0.12


@pytest.mark.parametrize("batch, threads, images", [(64, 2, 64), (8, 2, 8), (100, 2, 50), (64, 1, 32), (3, 8, 3)])
def test_the_images_that_are_computed_at_a_time_are_tried_and_the_time_is_a_steps(monkeypatch, batch, threads, images):
    tried, real = [], dry_run.train
    monkeypatch.setattr(dry_run, "train", lambda settings, *more: real(tried.append(settings) or settings, *more))
    monkeypatch.setattr(dry_run, "repeat", lambda step, **more: [1.0])
    requested = Settings(data="digits", batch=batch, threads=threads, steps=1)
    assert f"about {batch / images:.2g} s a step, 0:0{batch // images} in all, on {threads} threads" in dry_run.dry_run(requested)
    [trial] = tried
    assert trial.batch == images and trial.threads == threads and trial.objective == requested.objective
