"""Every layer and loss on device arrays against NumPy's: output and gradients, plain in float64, by kernels in float32."""

import numpy as np
import pytest
from test_layers import CASES, NORM_SWISH, PLAN, PRODUCTS, THIN, WINOGRAD

from minddpm import device as backend
from minddpm import tree
from minddpm.diffusion import Schedule
from minddpm.fast import ops as layers
from minddpm.objective import OBJECTIVES, Example

HOSTS = WINOGRAD, NORM_SWISH, PRODUCTS, THIN
ON_DEVICE = {name: case for name, case in CASES.items() if case.module not in HOSTS}
DTYPES = {"float64": (np.float64, 1e-12), "float32": (np.float32, 2e-6)}


def moved(value, dtype, device):
    return tree.map(lambda a: backend.to_device(np.asarray(a, dtype), device), value)


def on_host(value):
    assert all(backend.is_cuda(leaf) for leaf in tree.leaves(value))
    return [backend.to_host(leaf) for leaf in tree.leaves(value)]


def close(found, expected, tolerance):
    """Relative to the largest number of each array."""
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ON_DEVICE)
def test_layer(gpu, name, dtype):
    kind, tolerance = DTYPES[dtype]
    case = ON_DEVICE[name]
    f = case.bind(layers)
    args, device_args = ([moved(arg, kind, device) for arg in case.args] for device in ("cpu", "cuda"))
    y, back = f(*args)
    device_y, device_back = f(*device_args)
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(kind)
    if "offset" in name:
        tolerance *= 300
    close(on_host([device_y]), [y], tolerance)
    gradients, device_gradients = back(dy), device_back(backend.to_device(dy, "cuda"))
    as_list = [list(g) if isinstance(g, tuple) else [g] for g in (gradients, device_gradients)]
    close(on_host(as_list[1]), tree.leaves(as_list[0]), 4 * tolerance)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_timestep_embedding(gpu, kind):
    t, like = np.array([1, 2, 500, 1000]), np.zeros(0, kind)
    for dim in 4, 6, 128:
        found = layers.timestep_embedding(backend.to_device(t, "cuda"), dim, backend.to_device(like, "cuda"))
        close(on_host([found]), [layers.timestep_embedding(t, dim, like)], 1e-7)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective(gpu, name):
    """float64, as the bound needs; t = 1 among them, where it is the decoder's."""
    rng, objective, s = np.random.default_rng(0), OBJECTIVES[name], Schedule.linear(T=20)
    x0, x_t, eps = rng.choice(np.linspace(-1, 1, 256), (4, 2, 3, 1)), *rng.standard_normal((2, 4, 2, 3, 1))
    output, t = rng.standard_normal((4, 2, 3, 1 + objective.learned_sigma)), np.array([1, 2, 20, 1])
    results = []
    for device in "cpu", "cuda":
        x0_, x_t_, t_, eps_, output_ = (backend.to_device(a, device) for a in (x0, x_t, t, eps, output))
        loss, back = objective(Example(s.on(t_), x0_, x_t_, t_, eps_), output_)
        gradient = back(np.full_like(loss, 0.25))
        assert backend.is_cuda(gradient) == (device == "cuda")
        results.append([backend.to_host(loss), backend.to_host(gradient)])
    close(results[1], results[0], 1e-12)


def test_ones_are_made_once_for_each_size_dtype_and_device(gpu):
    like = [moved(np.zeros(1), kind, device) for kind in (np.float32, np.float64) for device in ("cpu", "cuda")]
    made = [backend.ones(n, a) for n in (3, 4) for a in like]
    for (n, a), found in zip([(n, a) for n in (3, 4) for a in like], made, strict=True):
        assert found.shape == (n,) and found.dtype == a.dtype and backend.is_cuda(found) == backend.is_cuda(a)
        assert backend.to_host(found).tolist() == [1] * n and backend.ones(n, a) is found


def test_a_host_array_is_refused_beside_device_arrays(gpu):
    x = backend.to_device(np.ones((2, 3), np.float32), "cuda")
    with pytest.raises(TypeError):
        x + np.ones((2, 3), np.float32)
    with pytest.raises(TypeError):
        layers.linear({"weight": np.ones((3, 2), np.float32), "bias": np.ones(2, np.float32)}, x)
