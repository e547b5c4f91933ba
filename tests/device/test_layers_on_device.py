"""Every layer and loss on device arrays against the plain ones on the host's: values and gradients, in float64 and float32."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_layers import CASES

from minddpm import tree
from minddpm.diffusion import Schedule
from minddpm.fast import cuda
from minddpm.fast.device import is_cuda, to_device, to_host
from minddpm.gaussian import discretized_log_likelihood
from minddpm.objective import OBJECTIVES, Example
from minddpm.unet import layers

DTYPES = {"float64": (np.float64, 1e-12), "float32": (np.float32, 2e-6)}
NO_KERNEL = {"linear", "upsample"}
SEEDS = np.array([3, 2**63 - 1])


@pytest.fixture
def ops(gpu):
    """The layers for the device: on the stand-in, which runs no kernels, the plain ones."""
    return cuda.OPS if gpu.kernels else layers


def moved(value, dtype, device):
    return tree.map(lambda a: to_device(np.asarray(a, dtype), device), value)


def on_host(value):
    assert all(is_cuda(leaf) for leaf in tree.leaves(value))
    return [to_host(leaf) for leaf in tree.leaves(value)]


def close(found, expected, tolerance):
    """Relative to the largest number of each array."""
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_layer(ops, name, dtype):
    kind, tolerance = DTYPES[dtype]
    case = CASES[name]
    y, back = case.bind(layers)(*(moved(arg, kind, "cpu") for arg in case.args))
    device_y, device_back = case.bind(ops)(*(moved(arg, kind, "cuda") for arg in case.args))
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(kind)
    if "offset" in name:
        tolerance *= 300
    close(on_host([device_y]), [y], tolerance)
    gradients, device_gradients = back(dy), device_back(to_device(dy, "cuda"))
    as_list = [list(g) if isinstance(g, tuple) else [g] for g in (gradients, device_gradients)]
    close(on_host(as_list[1]), tree.leaves(as_list[0]), 4 * tolerance)


@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_timestep_embedding(ops, kind, place):
    t, like = np.array([1, 2, 500, 1000]), np.zeros(0, kind)
    for dim in 4, 6, 128:
        found = ops.timestep_embedding(to_device(t, place), dim, like=to_device(like, "cuda"))
        close(on_host([found]), [layers.timestep_embedding(t, dim, like)], 1e-7)


@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_dropout_takes_its_seeds_from_either_device(ops, kind, place):
    x = np.ones((2, 5, 7, 3), kind)
    for f in ops.dropout, layers.dropout:
        y, back = f(to_device(x, "cuda"), 0.3, to_device(SEEDS, place), 5)
        expected, _ = layers.dropout(x, 0.3, SEEDS, 5)
        close(on_host([y, back(to_device(x, "cuda"))]), [expected, expected], 1e-7)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective(gpu, name):
    """float64, as the bound needs; t = 1 among them, where it is the decoder's."""
    rng, objective, s = np.random.default_rng(0), OBJECTIVES[name], Schedule.linear(T=20)
    x0, x_t, eps = rng.choice(np.linspace(-1, 1, 256), (4, 2, 3, 1)), *rng.standard_normal((2, 4, 2, 3, 1))
    output, t = rng.standard_normal((4, 2, 3, 1 + objective.learned_sigma)), np.array([1, 2, 20, 1])
    results = []
    for device in "cpu", "cuda":
        x0_, x_t_, eps_, output_ = (to_device(a, device) for a in (x0, x_t, eps, output))
        loss, back = objective(Example(s, x0_, x_t_, t, eps_), output_)
        gradient = back(np.full_like(loss, 0.25))
        assert is_cuda(gradient) == (device == "cuda")
        results.append([to_host(loss), to_host(gradient)])
    close(results[1], results[0], 1e-12)


@pytest.mark.parametrize("cdf, tolerance", [("erf", 1e-13), ("tanh", 1e-11)])             # tanh: the difference of two Φ near 1
def test_the_decoder_far_in_its_tails(gpu, cdf, tolerance):
    """Eq. (13), whose log Φ is scipy.special's on the host and by NumPy's dispatch cupyx.scipy.special's on a device."""
    sigma, z = 1 / 255, np.concatenate([[-1e4, -300, -40], np.linspace(-9, 9, 19), [40, 300, 1e4]])
    x0 = np.repeat([[-1.0], [-0.2], [1.0]], len(z), axis=1)
    results = [discretized_log_likelihood(to_device(x0, device), to_device(x0 + sigma * z, device), sigma, cdf=cdf)
               for device in ("cpu", "cuda")]
    assert is_cuda(results[1]) and np.isfinite(results[0]).all()
    np.testing.assert_allclose(to_host(results[1]), results[0], rtol=tolerance)


def test_a_host_array_is_refused_beside_device_arrays(ops):
    x = to_device(np.ones((2, 3), np.float32), "cuda")
    with pytest.raises(TypeError):
        x + np.ones((2, 3), np.float32)
    with pytest.raises(TypeError):
        ops.linear({"weight": np.ones((3, 2), np.float32), "bias": np.ones(2, np.float32)}, x)


# Which arrays the kernels take -----------------------------------------------------------------------------------------------


def test_ops_has_every_layer_and_which_of_them_have_kernels():
    assert vars(cuda.OPS).keys() == set(layers.__all__)
    assert {name for name in layers.__all__ if getattr(cuda.OPS, name) is getattr(layers, name)} == NO_KERNEL


FLOATS = "float32", "float64"


@pytest.mark.parametrize("kinds", [(first, others) for first in FLOATS for others in FLOATS])
def test_kernels_are_launched_where_every_array_is_float32(gpu, monkeypatch, kinds):
    """kinds: of a layer's first argument, which may be its parameters, and of the others."""
    if not gpu.kernels:
        pytest.skip("kernels need CuPy: --backend emu or cupy")
    launched, launch, called = set(), cuda.launch, []

    class Ops:
        def __getattr__(self, name):
            called.append(name)
            return getattr(cuda.OPS, name)

    monkeypatch.setattr(cuda, "launch", lambda *args: (launched.add(called[-1]), launch(*args)))
    cases = [case for case in CASES.values() if len(case.args) > 1 or kinds[0] == kinds[1]]
    for case in cases:
        first, *others = case.args
        case.bind(Ops())(moved(first, kinds[0], "cuda"), *(moved(arg, kinds[1], "cuda") for arg in others))
    assert launched == (set(called) - NO_KERNEL if kinds == ("float32", "float32") else set())


def test_kernels_take_float32_arrays_of_fewer_than_2_to_the_31_numbers(monkeypatch):
    monkeypatch.setattr(cuda, "is_cuda", lambda a: True)
    monkeypatch.setattr(layers, "conv2d_plus", lambda p, x, v: "plain")

    def array(size=1, dtype="f"):
        return SimpleNamespace(size=size, dtype=np.dtype(dtype))

    def conv2d_plus(p, x, v):
        return "kernel"

    layer, p, most = cuda.where_it_fits(conv2d_plus), {"weight": array()}, array(2**31 - 1)
    assert layer(p, most, array()) == layer(p, x=array(), v=most) == layer(p, array(), 1) == "kernel"
    for other in array(2**31), array(dtype="f8"), array(dtype="f2"):
        assert layer({"weight": other}, array(), array()) == layer(p, other, array()) == layer(p, array(), v=other) == "plain"
