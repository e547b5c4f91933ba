"""fast/: every fast form of a layer against the plain layer, its oracle, over one table; and which of them is chosen."""

from unittest import mock

import numpy as np
import pytest
from gradcheck import Case, check_gradient, random_parameters, read_only

from minddpm import tree
from minddpm.fast import ops_for
from minddpm.fast.winograd import transform
from minddpm.unet import UNetConfig, init, layers

MATMUL, NORM = "minddpm.fast.matmul", "minddpm.fast.norm"
NARROW, WINOGRAD = "minddpm.fast.narrow_conv", "minddpm.fast.winograd"


def draw(*shape, seed=0, offset=0.0, scale=1.0):
    return read_only(offset + scale * np.random.default_rng([seed, *shape]).standard_normal(shape))


def weights(*shape):
    return random_parameters({"weight": shape, "bias": shape[-1:]}, seed=len(shape))


def winograd(m, training):
    return lambda w: lambda p, x: w.winograd(p, x, transform(p["weight"], m, training))


def winograd_plus(m):
    return lambda w: lambda p, x, v: w.winograd_plus(p, x, v, transform(p["weight"], m))


def image_by_image(w):
    """Winograd's convolution with so small a limit that every image is a block of its own."""
    def f(p, x):
        with mock.patch.multiple(w, create=True, BLOCK=1, TILES=0):
            return w.winograd(p, x, transform(p["weight"], 2))
    return f


# What is computed: the plain layer's name, a Case of the fast form with the same arrays, and what the plain layer takes besides.
FORMS = {
    "linear, on pixels": ("linear", Case(MATMUL, lambda m: lambda p, x: m.linear(p, x), (weights(4, 2), draw(2, 3, 5, 4)))),
    "linear, one row":   ("linear", Case(MATMUL, lambda m: lambda p, x: m.linear(p, x), (weights(3, 1), draw(1, 3)))),
    "conv1x1":           ("conv2d", Case(MATMUL, lambda m: lambda p, x: m.conv1x1(p, x),
                                    (weights(1, 1, 3, 4), draw(2, 4, 3, 3)))),
    **{f"narrow_conv2d k={k}": ("conv2d", Case(NARROW, lambda m: lambda p, x: m.narrow_conv2d(p, x),
                                               (weights(k, k, 4, 2), draw(2, 4, 3, 4)))) for k in (1, 3, 5)},
    **{f"group_norm groups={groups}":
       ("group_norm", Case(NORM, lambda m, groups=groups: lambda p, x: m.group_norm(p, x, groups),
                            (weights(6), draw(3, 3, 5, 6))), groups)
       for groups in (1, 2, 6)},
    "group_norm offset 300": ("group_norm", Case(NORM, lambda m: lambda p, x: m.group_norm(p, x, 2),
                                                 (weights(4), draw(2, 3, 3, 4, offset=300))), 2),
    **{f"norm_swish groups={groups}":
       ("norm_swish", Case(NORM, lambda m, groups=groups: lambda p, x: m.norm_swish(p, x, groups),
                            (weights(6), draw(3, 3, 5, 6))), groups)
       for groups in (1, 2, 6)},
    "norm_swish offset 300": ("norm_swish", Case(NORM, lambda m: lambda p, x: m.norm_swish(p, x, 2),
                                                 (weights(4), draw(2, 3, 3, 4, offset=300))), 2),
    **{f"winograd m={m} {B}x{H}x{W}{' training' * training}":
       ("conv2d", Case(WINOGRAD, winograd(m, training), (weights(3, 3, 3, 2), draw(B, H, W, 3))))
       for m in (2, 4) for B, H, W in ((2, 4, 8), (1, 5, 3)) for training in (False, True)},
    "winograd image by image": ("conv2d", Case(WINOGRAD, image_by_image, (weights(3, 3, 3, 2), draw(3, 3, 4, 3)))),
    **{f"winograd_plus m={m}":
       ("conv2d_plus", Case(WINOGRAD, winograd_plus(m), (weights(3, 3, 3, 2), draw(2, 5, 3, 3), draw(2, 2))))
       for m in (2, 4)},
}
CASES = {f"fast {name}": case for name, (_, case, *_) in FORMS.items()}


@pytest.mark.parametrize("name", FORMS)
def test_a_fast_form_computes_what_the_plain_layer_does(name):
    plain, case, *besides = FORMS[name]
    (y, back), (expected, plain_back) = case.f()(*case.args), getattr(layers, plain)(*case.args, *besides)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    dy = np.cos(np.arange(y.size)).reshape(y.shape)
    found, gradients = (tree.flatten(list(b(dy)) if isinstance(b(dy), tuple) else [b(dy)]) for b in (back, plain_back))
    assert found.keys() == gradients.keys()
    for path in gradients:
        np.testing.assert_allclose(found[path], gradients[path], rtol=0, atol=1e-11 * np.abs(gradients[path]).max(), err_msg=path)


@pytest.mark.parametrize("name", CASES)
def test_gradient(name):
    case = CASES[name]
    check_gradient(case.f(), *case.args, name=name, zero=case.zero)


@pytest.mark.parametrize("name", CASES)
def test_float32_stays_float32(name):
    case = CASES[name]
    y, back = case.f()(*tree.map(np.float32, list(case.args)))
    gradients = back(y)
    found = tree.leaves(list(gradients) if isinstance(gradients, tuple) else [gradients])
    assert y.dtype == np.float32 and all(g.dtype == np.float32 for g in found)


def test_every_layer_is_there_and_every_fast_one_in_the_table():
    ops = ops_for(init(UNetConfig.tiny(), 0), 8)
    fast = {name for name in layers.__all__ if getattr(ops, name) is not getattr(layers, name)}
    assert fast == {plain for plain, *_ in FORMS.values()}


class Calls:
    """A module whose functions note their own names."""

    def __init__(self, *names):
        self.seen = []
        for name in names:
            setattr(self, name, lambda *args, name=name: self.seen.append(name))


def test_each_convolution_goes_to_the_form_that_is_fastest_for_it(monkeypatch):
    cfg = UNetConfig(16, 1, (16, 32), blocks=1, attention=(), groups=4)
    params, x, v = init(cfg, 0), draw(1, 16, 16, 16), draw(1, 16)
    ops, calls = ops_for(params, 16), Calls("conv1x1", "conv2d", "conv2d_plus")
    monkeypatch.setattr("minddpm.fast.ops.matmul", calls)
    monkeypatch.setattr("minddpm.fast.ops.layers", calls)
    for name in "narrow_conv2d", "winograd", "winograd_plus":
        monkeypatch.setattr(f"minddpm.fast.ops.{name}", lambda *args, name=name: calls.seen.append(name))
    resnet = params["down_blocks"][1]["resnets"][0]
    ops.conv2d(resnet["conv1"], x)
    ops.conv2d_plus(resnet["conv1"], x, v)
    ops.conv2d(resnet["conv_shortcut"], x)
    ops.conv2d(params["conv_out"], x)
    ops.conv2d(params["conv_in"], x)
    ops.conv2d(params["down_blocks"][0]["downsamplers"][0]["conv"], x, 2)
    ops.conv2d(tree.map(np.copy, resnet["conv1"]), x)                   # other weights than those that were transformed
    assert calls.seen == ["winograd", "winograd_plus", "conv1x1", "narrow_conv2d", "conv2d", "conv2d", "conv2d"]


def test_minddpm_kernels_0_chooses_the_plain_layers(monkeypatch):
    params = init(UNetConfig.tiny(), 0)
    assert ops_for(params, 8) is not layers
    monkeypatch.setenv("MINDDPM_KERNELS", "0")
    assert ops_for(params, 8) is layers
