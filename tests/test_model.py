"""model.py: a model and its folder, there and back; how long the paper's network takes to load, and how much memory."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import minddpm
from minddpm import tree
from minddpm.diffusion import Schedule
from minddpm.errors import UserError
from minddpm.model import Model
from minddpm.unet import UNetConfig, init, unet
from minddpm.unet.recompute import inference

CFG = UNetConfig(8, 3, (8, 16), 1, (1,), groups=4)


def model(cfg=CFG, seed=0, **more):
    rng = np.random.default_rng(seed)
    params = tree.map(lambda a: a + rng.normal(0, 0.1, a.shape).astype(np.float32), init(cfg, seed))
    return Model(cfg, params, **{"schedule": Schedule.linear()} | more)


def same(a, b):
    a, b = tree.flatten(a), tree.flatten(b)
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("more", [
    {}, {"sigma2": "beta_tilde"}, {"clip": False}, {"schedule": Schedule.quadratic(77)}, {"schedule": Schedule.constant(5, 0.5)},
    {"predicts": "mu"}, {"predicts": "x0"},
], ids=str)
def test_save_and_load(tmp_path, more):
    before = model(**more)
    minddpm.save(tmp_path, before)
    after = minddpm.load(tmp_path)
    same(before.params, after.params)
    assert (after.config, after.sigma2, after.clip, after.predicts) == (CFG, before.sigma2, before.clip, before.predicts)
    np.testing.assert_allclose(after.schedule.beta, before.schedule.beta, rtol=1e-14)


def test_a_learned_variance_is_saved_and_loaded(tmp_path):
    cfg = UNetConfig(8, 1, (8, 16), 1, (), groups=4, learned_sigma=True)
    minddpm.save(tmp_path, model(cfg, sigma2="learned"))
    after = minddpm.load(tmp_path)
    assert after.sigma2 == "learned" and after.config == cfg
    assert after.output(np.zeros((1, 8, 8, 1), np.float32), 3).shape == (1, 8, 8, 2)


@pytest.mark.parametrize("learned, sigma2", [(True, "beta"), (False, "learned")])
def test_a_variance_that_does_not_fit_the_network_is_refused(tmp_path, learned, sigma2):
    minddpm.save(tmp_path, model(UNetConfig(8, 1, (8, 16), 1, (), groups=4, learned_sigma=learned), sigma2=sigma2))
    with pytest.raises(UserError, match="does not fit the variance_type"):
        minddpm.load(tmp_path)


def test_saving_again_and_again_gives_the_same_bytes(tmp_path):
    before = model()
    minddpm.save(tmp_path / "a", before)
    minddpm.save(tmp_path / "b", minddpm.load(tmp_path / "a"))
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert [str(path) for path in files] == ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
                                             "unet/diffusion_pytorch_model.safetensors"]
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)


def test_save_names_the_path_that_it_cannot_write(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file.* cannot be written"):
        minddpm.save(tmp_path / "file", model())


def test_what_is_loaded_is_ones_own(tmp_path):
    """Weights can be written to, and the file can be replaced or go away while they are in use."""
    minddpm.save(tmp_path, model())
    loaded = minddpm.load(tmp_path)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)
    assert all(a.flags.writeable and a.flags.c_contiguous and a.dtype == np.float32 for a in tree.leaves(loaded.params))
    same(model().params, loaded.params)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_eps_theta_is_the_network(dtype):
    m, x = model(), np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(dtype)
    t = np.array([1, 500])
    eps = m.eps_theta(x, t)
    expected, _ = unet(CFG, m.params, x.astype(np.float32), t, policy=inference)
    assert eps.dtype == dtype and np.array_equal(eps, expected.astype(dtype))
    assert np.abs(m.eps_theta(x, 3)[1] - m.eps_theta(x[1:], np.array([3]))[0]).max() < 1e-3


def test_attention_on_one_way_only(tmp_path):
    cfg = UNetConfig(8, 1, (8, 16), 2, (0,), groups=4, attention_up=(1,))
    m = model(cfg)
    assert ["attentions" in block for block in m.params["down_blocks"]] == [True, False]
    assert ["attentions" in block for block in m.params["up_blocks"]] == [True, False]          # the lowest level first
    minddpm.save(tmp_path, m)
    same(minddpm.load(tmp_path).params, m.params)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    assert config["down_block_types"] == ["AttnDownBlock2D", "DownBlock2D"]
    assert config["up_block_types"] == ["AttnUpBlock2D", "UpBlock2D"]


MEASURE = """
import sys, threading, time
import minddpm, minddpm.model
from minddpm import tree

def status(field):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(field))

seconds = []
for _ in range(3):
    before, start = status("VmRSS"), time.perf_counter()
    model = minddpm.load(sys.argv[1])
    seconds.append(time.perf_counter() - start)
    if len(seconds) == 1:
        peak, weights = status("VmHWM") - before, sum(a.nbytes for a in tree.leaves(model.params)) / 2**20
    del model
print(min(seconds), peak, weights)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of the process's memory from Linux's /proc")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_papers_network_loads_fast_and_lean(tmp_path, dtype):
    """Issue 5: under 1 s, and at most 1.3 times the weights' memory, pages of the mapped file and all."""
    minddpm.save(tmp_path, Model(UNetConfig.cifar10(), init(UNetConfig.cifar10(), 0), Schedule.linear()))
    if dtype != np.float32:
        path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
        save_file({name: a.astype(dtype) for name, a in load_file(path).items()}, path)
    out = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    seconds, peak, weights = map(float, out.split())
    print(f"\n{seconds:.2f} s, peak {peak:.0f} MiB for {weights:.0f} MiB of weights: {peak / weights:.2f} times", end="")
    assert seconds < 1 and peak < 1.3 * weights
