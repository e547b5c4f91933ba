"""selftest: it passes here, it is quick, its report holds no path, and each kind of planted fault makes it fail."""

import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from minddpm import unet
from minddpm.app import checks, cli, commands, selftest
from minddpm.fast import ops as layers

CHECKS = {check.name: check for check in checks.checks("cpu")}


@pytest.fixture(autouse=True)
def small_workload(monkeypatch):
    monkeypatch.setitem(selftest.WORKLOADS, "cpu", [("tiny", 2)])


def report(capsys):
    code = cli.main(["selftest", "--device", "cpu"])
    return code, capsys.readouterr().out


def test_selftest_passes_and_its_report_can_be_pasted(capsys):
    code, out = report(capsys)
    assert code == 0 and f"Passed: {len(CHECKS)} of {len(CHECKS)} checks" in out
    assert out.count("| passed |") == len(CHECKS) and "FAILED" not in out
    assert f"NumPy | {np.__version__} with " in out and "| tiny | 2 | " in out and " ms | " in out and " MB |" in out
    for secret in Path.home(), Path.cwd(), Path(selftest.__file__).parent:
        assert str(secret) not in out
    rows = [line for line in out.splitlines() if line.startswith("| ")]
    assert all(row.endswith(" |") for row in rows)


def test_selftest_checks_float32_on_a_gpu_where_CUPY_TF32_is_set(monkeypatch, capsys):
    """CuPy reads the variable at its first product, which is the probe's."""
    def choose(device):
        assert "CUPY_TF32" not in os.environ
        return "cuda"

    monkeypatch.setattr(commands.backend, "choose", choose)
    monkeypatch.setattr(commands.backend, "explain", lambda device: "device cuda: it is said so")
    monkeypatch.setattr(commands, "run_checks", lambda device: "CUPY_TF32" not in os.environ)
    for value, said in (None, False), ("0", False), ("1", True):
        monkeypatch.delenv("CUPY_TF32", raising=False)
        if value is not None:
            monkeypatch.setenv("CUPY_TF32", value)
        assert cli.main(["selftest", "--device", "cuda"]) == 0
        assert ("CUPY_TF32=1 is not heeded here: what is checked is float32\n" in capsys.readouterr().out) == said


def swish_off_in_float32(x):
    """swish as a wrong expf would have it: in float32 only, as the device computes, and by a ten-thousandth."""
    y, back = layers.swish(x)
    return (y * np.float32(1.0001) if x.dtype == np.float32 else y), back


def gradient_off_in_float32(x):
    y, back = layers.swish(x)
    return y, lambda dy: back(dy) * (np.float32(1.0001) if x.dtype == np.float32 else 1)


@pytest.mark.parametrize("fault", [swish_off_in_float32, gradient_off_in_float32])
def test_a_fault_of_a_layer_is_found_and_named(capsys, monkeypatch, fault):
    monkeypatch.setattr(checks, "LAYERS", {"swish": (fault, (3, 5, 7, 3)), "dense layer": checks.LAYERS["dense layer"]})
    monkeypatch.setattr(selftest, "checks", lambda device: islice(checks.checks(device), 2))
    code, out = report(capsys)
    assert code == 1 and "**FAILED**: 1 of 2 checks" in out
    assert "| swish, with gradients | 1.0e-04 | < 1e-05 | **FAILED** |" in out
    assert out.count("**FAILED** |") == 1


def test_a_fault_of_the_fast_convolution_is_found_by_both_comparisons(monkeypatch):
    plain = layers.prepare

    def off(params, side):
        ready = plain(params, side)
        conv = ready["mid_block"]["resnets"][0]["conv1"]
        conv["winograd"] = conv["winograd"] * (1.01 if conv["weight"].dtype == np.float32 else 1)
        return ready

    monkeypatch.setattr(layers, "prepare", off)
    for check in list(CHECKS.values())[-4:-2]:
        found, passed = selftest.verdict(check)
        assert not passed and float(found) > 1e-3


@pytest.mark.parametrize("wrong", [np.nan, 1.05])
def test_a_fault_of_training_is_found(monkeypatch, wrong):
    from minddpm import optim
    right = optim.adam

    def adam(params, m, v, gradient, step, lr):
        right(params, m, v, gradient, step, lr * (wrong if params["conv_in"]["bias"].dtype == np.float32 else 1))

    monkeypatch.setattr(optim, "adam", adam)
    assert not selftest.verdict(CHECKS["20 training steps: losses and averaged weights"])[1]


def test_what_a_check_raises_is_a_finding_with_its_place_and_without_paths(monkeypatch):
    def broken(*arguments):
        raise TypeError(f"Unsupported type | in {Path.home()}/x\nmore")

    monkeypatch.setattr(unet, "conv2d", broken)
    found, passed = selftest.verdict(CHECKS["20 sampling steps"])
    assert not passed and found.startswith("TypeError: Unsupported type / in ~/x (unet.py:")


def test_costs_halve_the_batch_until_it_fits_and_say_where_nothing_does(monkeypatch):
    tried = []

    def measure(preset, n, device):
        tried.append(n)
        if n > limit:
            raise MemoryError("full")
        return 0.5, 0.25, 3 * 2**20

    monkeypatch.setattr(selftest, "measure", measure)
    limit = 5
    assert selftest.costs("small", 16, "cpu") == "| small | 4 | 500.0 ms | 250.0 ms | 3 MB |"
    assert tried == [16, 8, 4]
    limit = 0
    assert selftest.costs("small", 16, "cpu") == "| small | 1 | out of memory | | |"
