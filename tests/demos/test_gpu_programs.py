"""The programs for people with a GPU, as far as they go without one: the CIFAR-10 demo's smoke run, and each refusal."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from minddpm import device as backend

ROOT = Path(__file__).parents[2]


@pytest.fixture
def programs(monkeypatch):
    """Imports a program of demos/ or tests/benchmarks/ by its name."""
    monkeypatch.syspath_prepend(ROOT / "demos")
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    monkeypatch.delenv("CUPY_TF32", raising=False)
    return importlib.import_module


def test_cifar10_demo_trains_on_cifar10_files_and_draws(programs, capsys):
    programs("gpu_cifar10").main(["--smoke"])
    out = capsys.readouterr().out
    assert "step 0 of 3" in out and "step 3/3" in out and re.search(r"^wrote .*samples\.png$", out, re.MULTILINE)
    assert "CUPY_TF32" not in os.environ


def test_cifar10_demo_goes_on_with_a_run_that_is_there(programs, capsys, tmp_path, monkeypatch):
    demo = programs("gpu_cifar10")
    monkeypatch.setitem(demo.settings.PRESETS, "cifar10", lambda channels=3: demo.TOY)
    requested = demo.replace(demo.common.SMOKE, data=demo.made_up(tmp_path / "data"), preset="cifar10", device="cpu", batch=4,
                             steps=1)
    demo.train(tmp_path / "run", requested, n=1)
    demo.train(tmp_path / "run", demo.replace(requested, steps=2), n=1)
    assert "step 1 of 2" in capsys.readouterr().out and (tmp_path / "run" / "samples.png").exists()


def test_cifar10_demo_sets_tf32_before_the_first_matrix_product(programs, monkeypatch):
    class FirstProduct(Exception):
        """Raised where the device is looked at."""

    def explain(device):
        assert device == "cuda" and os.environ["CUPY_TF32"] == "1"
        raise FirstProduct

    monkeypatch.setenv("CUPY_TF32", "0")                        # so that it is put back
    monkeypatch.setattr(backend, "explain", explain)
    with pytest.raises(FirstProduct):
        programs("gpu_cifar10").main(["somewhere", "--tf32"])


@pytest.mark.parametrize("words, sentence", [
    (["demos/gpu_cifar10.py"], "gpu_cifar10.py: no data: expected CIFAR-10's binary version"),
    (["demos/gpu_cifar10.py", "x.tar.gz"], "gpu_cifar10.py: device is 'cuda', but CuPy"),
    (["tests/benchmarks/gpu_vs_torch.py"], "gpu_vs_torch.py needs a GPU, but CuPy"),
])
def test_without_a_gpu_each_refuses_in_one_sentence(words, sentence):
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(sentence) and done.stderr.count("\n") == 1


def test_benchmark_compares_the_better_layout_of_torch_without_the_warm_up(programs):
    bench = programs("gpu_vs_torch")
    slow_start = [9.0] * bench.WARM_UP
    measured = {"minddpm": ([0.02, 0.04, 0.03], 100), "torch": ([0.05, 0.05, 0.05], 300),
                "torch channels_last": ([0.01, 0.06, 0.06], 200)}
    sides = {name: SimpleNamespace(wall=slow_start + seconds, memory=memory) for name, (seconds, memory) in measured.items()}
    assert bench.row("demo-train", "tf32", sides) == "| demo-train | tf32 | 20.0 | 10.0 | **0.50** | 2.00 | 100 | 200 |"
    assert bench.WORKLOADS["cifar-train-128"] == ("cifar10", 128, "train")
