"""selftest: it passes here, it is quick, its report holds no path, and each kind of planted fault makes it fail."""

import os
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import minddpm
from minddpm.app import cli, commands, selftest
from minddpm.fast import adam, ops
from minddpm.unet import layers

CHECKS = {check.name: check for check in selftest.checks("cpu")}


def report(capsys):
    code = cli.main(["selftest", "--device", "cpu"])
    return code, capsys.readouterr().out


def test_selftest_passes_and_its_report_can_be_pasted(capsys):
    code, out = report(capsys)
    assert code == 0 and f"Passed: {len(CHECKS)} of {len(CHECKS)} checks" in out
    assert out.count("| passed |") == len(CHECKS) and "FAILED" not in out
    assert f"NumPy | {np.__version__} with " in out
    for secret in Path.home(), Path.cwd(), Path(minddpm.__file__).parent:
        assert str(secret) not in out
    rows = [line for line in out.splitlines() if line.startswith("| ")]
    assert all(row.endswith(" |") for row in rows)


def test_selftest_checks_every_layer():
    assert {name for name, *_ in selftest.LAYERS.values()} == set(layers.__all__) - {"timestep_embedding"}    # in the U-Net


def test_selftest_checks_float32_on_a_gpu_where_CUPY_TF32_is_set(monkeypatch, capsys):
    """CuPy reads the variable at its first product, which is the probe's."""
    def choose(device):
        assert "CUPY_TF32" not in os.environ
        return "cuda"

    monkeypatch.setattr(commands, "choose", choose)
    monkeypatch.setattr(commands, "explain", lambda device: "device cuda")
    monkeypatch.setattr(commands, "run_checks", lambda device: "CUPY_TF32" not in os.environ)
    for value, ignored in (None, False), ("0", False), ("1", True):
        monkeypatch.delenv("CUPY_TF32", raising=False)
        if value is not None:
            monkeypatch.setenv("CUPY_TF32", value)
        assert cli.main(["selftest", "--device", "cuda"]) == 0
        assert ("CUPY_TF32=1 is ignored here: the checks are for float32\n" in capsys.readouterr().out) == ignored


def swish_off(x):
    """swish as a wrong expf would have it: off by a ten-thousandth."""
    y, back = layers.swish(x)
    return y * np.float32(1.0001), back


def gradient_off(x):
    y, back = layers.swish(x)
    return y, lambda dy: back(dy) * np.float32(1.0001)


@pytest.mark.parametrize("fault", [swish_off, gradient_off])
def test_a_fault_of_a_layer_is_found_and_named(capsys, monkeypatch, fault):
    monkeypatch.setattr(selftest, "LAYERS", {name: selftest.LAYERS[name] for name in ("swish", "dense layer")})
    monkeypatch.setattr(selftest, "ops_for", lambda *args, **more: SimpleNamespace(swish=fault, linear=layers.linear))
    real = selftest.checks
    monkeypatch.setattr(selftest, "checks", lambda device: islice(real(device), 2))
    code, out = report(capsys)
    assert code == 1 and "**FAILED**: 1 of 2 checks" in out
    assert "| swish, with gradients | 1.0e-04 | < 1e-05 | **FAILED** |" in out
    assert out.count("**FAILED** |") == 1


def test_a_fault_of_the_fast_convolution_is_found(monkeypatch):
    right = ops.transform
    monkeypatch.setattr(ops, "transform", lambda w, *more: right(w * np.float32(1.01), *more))
    found, passed = selftest.verdict(CHECKS["U-Net with attention and dropout, with gradients"])
    assert not passed and float(found) > 1e-3


@pytest.mark.parametrize("wrong", [np.nan, 1.05])
def test_a_fault_of_training_is_found(monkeypatch, wrong):
    right = adam.adam_ema

    def adam_ema(*leaves, lr, **more):
        right(*leaves, lr=lr * wrong, **more)

    monkeypatch.setattr(adam, "adam_ema", adam_ema)
    assert not selftest.verdict(CHECKS["20 training steps: losses and averaged weights"])[1]


def test_a_fault_of_sampling_is_found(monkeypatch):
    right = selftest.ops_for

    def off(params, image_size, **more):
        fast = right(params, image_size, **more)
        fast.norm_swish = lambda p, x, *more: (1.01 * layers.norm_swish(p, x, *more)[0], None)
        return fast

    monkeypatch.setattr(selftest, "ops_for", off)
    assert not selftest.verdict(CHECKS["20 sampling steps"])[1]


def test_what_a_check_raises_is_a_finding_with_its_place_and_without_paths(monkeypatch):
    def broken(*arguments):
        raise TypeError(f"Unsupported type | in {Path.home()}/x\nmore")

    monkeypatch.setattr(layers, "swish", broken)
    found, passed = selftest.verdict(CHECKS["20 sampling steps"])
    assert not passed and found.startswith("TypeError: Unsupported type / in ~/x (unet/network.py:")
