"""estimate.py: what `train --dry-run` says of the memory is what a run then takes."""

import re
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from minddpm.app import dry_run as estimate
from minddpm.app import settings
from minddpm.app.settings import Settings
from minddpm.unet import UNetConfig

TOLD = Settings(data="mnist16", preset="small", batch=64, steps=3, threads=2, device="cpu", sample_every=0)
WIDE = {"widths": (160, 160), "blocks": 1, "attention": ()}             # its weights weigh more than its activations
RUN = """
import sys
from ast import literal_eval
from dataclasses import replace
from minddpm import run, settings
small = replace(settings.PRESETS["small"](), **literal_eval(sys.argv[3]))
settings.PRESETS["small"] = lambda channels=1: small
run.train(run.begin(sys.argv[1], settings.Settings(**literal_eval(sys.argv[2]))))
with open("/proc/self/status") as f:
    print(*(line for line in f if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel that tells a process's peak is Linux")
@pytest.mark.parametrize("memory", settings.MEMORY)
@pytest.mark.parametrize("network, batch", [({}, 64), (WIDE, 4)], ids=["small", "wide"])
def test_the_memory_is_what_a_run_takes(tmp_path, monkeypatch, network, batch, memory):
    told = replace(TOLD, batch=batch, memory=memory)
    monkeypatch.setitem(settings.PRESETS, "small", lambda channels=1: replace(UNetConfig.small(), **network))
    done = subprocess.run([sys.executable, "-c", RUN, tmp_path / "run", repr(asdict(told)), repr(network)], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1]) / 1024
    said = int(re.search(r"^memory +about ([\d,]+) MB", estimate.estimate(told), re.MULTILINE)[1].replace(",", ""))
    print(f"\n{memory}: about {said} MB, and it took {peak:.0f}")
    assert abs(said / peak - 1) < 0.12


@pytest.mark.parametrize("batch, threads, parts, at_a_time", [
    (64, 2, [32, 32], 2), (8, 2, [4, 4], 2), (100, 2, [25] * 4, 2), (64, 1, [32, 32], 1), (3, 8, [1, 1, 1], 3)])
def test_a_batch_is_measured_in_the_parts_that_it_is_trained_in(batch, threads, parts, at_a_time):
    trial = estimate.Trial(replace(TOLD, batch=batch, threads=threads), None, None, None, "cpu")
    assert (trial.parts, trial.threads) == (parts, at_a_time)
