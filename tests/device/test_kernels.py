"""kernels.cu: each kernel against its plain twin at sizes that nothing divides, and planted bugs of each class, which are found.

Needs CuPy: --backend emu or cupy.
"""

import os
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest

from minddpm import tree
from minddpm.fast import cuda
from minddpm.fast.device import cupy, to_device, to_host
from minddpm.unet import layers

SEEDS = np.array([3, 2**63 - 1, 12345])


@pytest.fixture(autouse=True)
def kernels(gpu):
    if not gpu.kernels:
        pytest.skip("kernels need CuPy: --backend emu or cupy")


def there(a):
    return to_device(a, "cuda")


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def params(*shape):
    return {"weight": draw(*shape, seed=1), "bias": draw(shape[-1], seed=2)}


def norm_params(C):
    return {"weight": 1 + 0.3 * draw(C, seed=1), "bias": draw(C, seed=2)}


TWINS = {       # kernels' function, plain twin, arguments
    **{f"conv2d {B}x{H}x{W}x{C} k={k} stride={stride}":
       (cuda.conv2d, layers.conv2d, (params(k, k, C, 3), draw(B, H, W, C), stride))
       for B, H, W, C, k, stride in [(3, 5, 7, 5, 3, 1), (1, 1, 1, 2, 3, 1), (2, 6, 4, 3, 3, 2), (2, 5, 7, 2, 3, 2),
                                     (1, 9, 3, 1, 5, 1), (2, 3, 3, 70, 1, 1), (2, 6, 4, 3, 1, 2)]},
    **{f"group_norm {B}x{H}x{W}x{C} groups={groups}":
       (cuda.group_norm, layers.group_norm, (norm_params(C), draw(B, H, W, C), groups))
       for B, H, W, C, groups in [(2, 3, 5, 6, 2), (1, 1, 3, 4, 1), (3, 7, 5, 9, 3), (2, 9, 9, 70, 5), (1, 3, 2, 600, 2)]},
    "norm_swish": (cuda.norm_swish, layers.norm_swish, (norm_params(9), draw(3, 7, 5, 9), 3)),
    **{f"{name} of {C} channels in a group":
       (getattr(cuda, name), getattr(layers, name), (norm_params(C), draw(2, 1, 3, C), 1))
       for name in ("group_norm", "norm_swish") for C in (1024, 1030)},
    "swish": (cuda.swish, layers.swish, (100 * draw(4, 333),)),
    **{f"attention {T} tokens": (cuda.attention, layers.attention, tuple(3 * draw(2, T, 7, seed=n) for n in range(3)))
       for T in (1, 5, 49, 300)},
    "dropout": (lambda x: cuda.dropout(x, 0.3, there(SEEDS), 7), lambda x: layers.dropout(x, 0.3, SEEDS, 7),
                (draw(3, 5, 7, 3),)),
}


def equal_their_twins(name):
    kernel, plain, args = TWINS[name]
    device_args = [tree.map(there, arg) if isinstance(arg, dict | np.ndarray) else arg for arg in args]
    y, back = plain(*args)
    device_y, device_back = kernel(*device_args)
    dy = draw(*y.shape, seed=9)
    for expected, found in ([y], [device_y]), (back(dy), device_back(there(dy))):
        listed = [list(g) if isinstance(g, tuple) else [g] for g in (found, expected)]
        for a, b in zip(*map(tree.leaves, listed), strict=True):
            np.testing.assert_allclose(to_host(a), b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("name", TWINS)
def test_kernels_equal_their_plain_twins(name):
    equal_their_twins(name)


@pytest.mark.parametrize("name", [name for name in TWINS if name.startswith("conv2d")])
def test_a_convolution_in_parts_is_the_same(monkeypatch, name):
    monkeypatch.setattr(cuda, "WORKSPACE", 1)                           # one image at a time
    equal_their_twins(name)


@pytest.mark.parametrize("shape", [(3, 1), (3, 16), (3, 17), (3, 5, 7, 3)])
def test_dropout_draws_numpys_masks(shape):
    x = np.ones(shape, np.float32)
    for rate in 0.1, 0.5:
        for layer in 0, 21:
            found, _ = cuda.dropout(there(x), rate, there(SEEDS), layer)
            np.testing.assert_array_equal(to_host(found) > 0, layers.dropout(x, rate, SEEDS, layer)[0] > 0)


# Planted bugs ----------------------------------------------------------------------------------------------------------------


def planted(before, after):
    """kernels.cu, compiled with a bug."""
    source = resources.files("minddpm.fast").joinpath("kernels.cu").read_text(encoding="utf-8")
    assert before in source
    module = cupy().RawModule(code=source.replace(before, after))
    return lambda: module


BUGS = {
    "wrong factor, swish's derivative": ("(swish ? s + z * s * (1 - s) : 1)", "(swish ? s + z * (1 - s) : 1)", "norm_swish"),
    "wrong factor, scale of attention": ("d[e] = scale * p[e]", "d[e] = p[e]", "attention 49 tokens"),
    "wrong factor, dropout's scale":    ("x[place] * scale : 0.0f", "x[place] : 0.0f", "dropout"),
    "wrong counter, dropout":           ("{k + 1ull, 0, 0, 0}", "{k + 0ull, 0, 0, 0}", "dropout"),
    "wrong index, one tap too far":     ("w + before - j, oh", "w + before - j + 1, oh", "conv2d 3x5x7x5 k=3 stride=1"),
    "no barrier in the sum":            ("        __syncthreads();\n    }\n    float total", "    }\n    float total",
                                         "group_norm 3x7x5x9 groups=3"),
}
BUGS["never written: the padding"] = (
    "        patches[e] = h >= 0 && h < H && w >= 0 && w < W ? x[((unsigned)(b * H + h) * W + w) * C + c] : 0.0f;",
    "        if (h >= 0 && h < H && w >= 0 && w < W) patches[e] = x[((unsigned)(b * H + h) * W + w) * C + c];",
    "conv2d 3x5x7x5 k=3 stride=1")


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(gpu, monkeypatch, bug):
    if gpu.name != "emu":
        pytest.skip("undefined behaviour is planted in the emulator only")
    before, after, name = BUGS[bug]
    monkeypatch.setattr(cuda, "module", planted(before, after))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        equal_their_twins(name)


BY_A_SWITCH = [    # switch, bug, twin, what the switch makes of it
    ("EMU_GUARD", ("i < (n);", "i <= (n);"), "swish", "Segmentation fault"),
    ("EMU_REVERSE", ("FOR(e, n) y[e] =", "FOR(e, n) y[e + (e + 1 < n)] = 0, y[e] ="), "swish", "Not equal to tolerance"),
]


@pytest.mark.parametrize("switch, bug, name, text", BY_A_SWITCH)
def test_a_bug_that_only_the_switch_shows_is_found(gpu, switch, bug, name, text):
    if gpu.name != "emu":
        pytest.skip("undefined behaviour is planted in the emulator only")
    code = ("import faulthandler, os, sys; faulthandler.enable()\n"
            "sys.path[:0] = [os.environ['MINDDPM_CUPY_ON_CPU'], *sys.argv[1:3]]\n"
            "import cupy_on_cpu; cupy_on_cpu.install(); import test_kernels as t\n"
            "t.cuda.module = t.planted(*sys.argv[3:5]) if sys.argv[3] else t.cuda.module; t.equal_their_twins(sys.argv[5])")
    here = os.path.dirname(__file__)
    plain = {name: value for name, value in os.environ.items() if name not in ("EMU_GUARD", "EMU_REVERSE")}
    for planted_bug, switches, found in (("", ""), {switch: "1"}, None), (bug, {}, None), (bug, {switch: "1"}, text):
        done = subprocess.run([sys.executable, "-c", code, here, os.path.dirname(here), *planted_bug, name],
                              capture_output=True, text=True, env=plain | switches)
        assert done.returncode == 0 if found is None else done.returncode and found in done.stderr, done.stderr
