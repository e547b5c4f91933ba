"""standin.py refuses what CuPy refuses: without that, the tests in device/ would prove nothing."""

import numpy as np
import pytest
import standin
from scipy.special import log_ndtr, ndtr


@pytest.fixture
def x():
    return standin.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))


HOST = np.ones((2, 3), np.float32)


@pytest.mark.parametrize("use, message", [
    (lambda x: np.asarray(x), "Implicit conversion"),
    (lambda x: np.float32(x[0, 0]), "Implicit conversion"),
    (lambda x: x + HOST, "meets the device"),
    (lambda x: HOST * x, "meets the device"),
    (lambda x: np.matmul(x, HOST.T), "meets the device"),
    (lambda x: np.concatenate([x, HOST]), "meets the device"),
    (lambda x: np.where(x > 0, x, HOST), "meets the device"),
    (lambda x: x.__setitem__(0, HOST[0]), "meets the device"),
    (lambda x: x[np.array([0, 1])], "host array as an index"),
    (lambda x: x * np.float64(2), "float64 comes out of float32"),
    (lambda x: x / np.sqrt(2.0), "float64 comes out of float32"),
    (lambda x: x + standin.asarray(np.arange(3)), "float64 comes out of float32"),
    (lambda x: np.maximum.reduce(x), "has no maximum.reduce"),
    (lambda x: np.add(x, x, where=x > 0), "has no add.__call__ with"),
    (lambda x: np.mean(x, where=x > 0), "has no mean with"),
    (lambda x: np.geomspace(x, 2 * x), "has no geomspace"),
    (lambda x: np.ones((2, 3), like=x), "has no ones"),
    (lambda x: ndtr(x), "has no ndtr"),
])
def test_what_cupy_refuses_is_refused(x, use, message):
    with pytest.raises(TypeError, match=message):
        use(x)


def test_what_is_allowed_is_numpys():
    a = np.random.default_rng(0).standard_normal((3, 4), dtype=np.float32)
    x = standin.asarray(a)
    for f in (lambda a: np.exp(a - a.max(axis=-1, keepdims=True)), lambda a: 2 * a @ a.T, lambda a: np.where(a > 0, a, 0),
              lambda a: a[:, ::2].repeat(2, axis=1), lambda a: np.clip(a, -1, 1).sum(), lambda a: -a / (a * a + 1), log_ndtr):
        found = f(x)
        assert isinstance(found, standin.ndarray) and found.dtype == np.float32
        np.testing.assert_array_equal(found.get(), f(a))


def test_waiting_and_copying_are_counted(x):
    with standin.counting() as c:
        y = (x * x).sum()
    assert c == {"syncs": 0, "h2d": 0, "h2d_bytes": 0}
    with standin.counting() as c:
        assert float(y) == 55 and y > 1 and y.get() == 55 and f"{y:.0f}" == "55" and int(y) == 55
        standin.asarray(HOST), np.asarray(HOST, like=x), np.asarray(x, like=x), standin.asarray(HOST[:0])
    assert c == {"syncs": 5, "h2d": 2, "h2d_bytes": 48}
