"""A strict stand-in for CuPy, for tests: an array that computes with NumPy and refuses what CuPy refuses.

What minddpm uses of CuPy is listed here by name; whatever is not listed fails, so that a new call has to be looked up first
(tests/device/test_real_cupy.py looks the list up in real CuPy where it can).  Device arrays never meet host arrays, nothing is
converted silently, and float64 does not come out of float32.  COUNTS has the number of synchronisations, of copies to the
device and of their bytes.  There are no kernels here.
"""

import contextlib
import sys
from collections import Counter
from types import ModuleType, SimpleNamespace

import numpy as np

COUNTS = Counter()

# NumPy's functions that reach CuPy by dispatch, with the keywords that CuPy has too
FUNCTIONS = {
    "arange": {"dtype"}, "asarray": {"dtype"}, "broadcast_to": set(), "clip": set(), "concatenate": {"axis"}, "diagonal": set(),
    "full_like": {"dtype", "shape"}, "mean": {"axis", "dtype", "keepdims"}, "ndim": set(), "vdot": set(), "where": set(),
    "zeros": {"dtype"}, "zeros_like": {"dtype", "shape"},
}
UFUNCS = set("""add subtract multiply divide power matmul exp log log1p sqrt sin cos tanh maximum isinf
    less less_equal greater greater_equal equal not_equal""".split())
SPECIAL = {"log_ndtr"}      # scipy.special's ufuncs, which CuPy looks up in cupyx.scipy.special
METHODS = {
    "all": {"axis"}, "astype": {"copy"}, "max": {"axis", "keepdims"}, "mean": {"axis", "keepdims"}, "repeat": {"axis"},
    "reshape": set(), "sum": {"axis", "keepdims"}, "swapaxes": set(),
}
ATTRIBUTES = ("shape", "dtype", "ndim", "size", "nbytes", "strides")


@contextlib.contextmanager
def counting():
    """with counting() as c: step()    ->    c["syncs"], c["h2d"], c["h2d_bytes"] of the block, filled at its end."""
    before, c = COUNTS.copy(), {}
    yield c
    c.update({name: COUNTS[name] - before[name] for name in ("syncs", "h2d", "h2d_bytes")})


def host(x):
    """What NumPy is to compute with; TypeError for a host array among the arguments."""
    if isinstance(x, ndarray):
        return x._a
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}: a host array of shape {x.shape} meets the device")
    return type(x)(host(i) for i in x) if isinstance(x, list | tuple) else x


def device(x, inputs=()):
    """NumPy's result as a device array; TypeError where float64 comes out of float32 alone."""
    if isinstance(x, bool | int | tuple):
        return x
    kinds = {i.dtype for i in inputs if isinstance(i, ndarray)}
    if x.dtype == np.float64 and np.dtype(np.float32) in kinds and x.dtype not in kinds:
        raise TypeError("float64 comes out of float32: of a NumPy float64 number, or a default dtype")
    made = object.__new__(ndarray)
    made._a = np.asarray(x)
    return made


class ndarray:
    """A device array: see the module's text."""

    __hash__ = None

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_ufunc__(self, ufunc, method, *args, out=None, **more):
        if ufunc.__name__ not in UFUNCS | SPECIAL or method != "__call__" or set(more) - {"dtype"}:
            raise TypeError(f"the stand-in has no {ufunc.__name__}.{method} with {sorted(more)}")
        if out is None:
            return device(ufunc(*host(args), **more), args)
        ufunc(*host(args), out=host(out), **more)
        return out[0]

    def __array_function__(self, function, types, args, more):
        name = function.__name__
        if name not in FUNCTIONS or set(more) - FUNCTIONS[name] - {"like"}:
            raise TypeError(f"the stand-in has no {name} with {sorted(more)}")
        if name == "asarray":
            return asarray(*args, **more)
        inputs = args[0] if name == "concatenate" else args
        explicit = () if "dtype" in more or name in ("arange", "full_like") else inputs
        return device(function(*host(args), **host_keywords(more)), explicit)

    def __getitem__(self, key):
        keys = key if isinstance(key, tuple) else (key,)
        for k in keys:
            if isinstance(k, np.ndarray | list):
                raise TypeError("a host array as an index is copied to the device each time")
            if isinstance(k, ndarray) and k.dtype == bool:
                COUNTS["syncs"] += 1
        return device(self._a[host(key)])

    def __setitem__(self, key, value):
        self._a[host(key)] = host(value)

    def __len__(self):
        return len(self._a)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def get(self):
        COUNTS["syncs"] += 1
        return self._a.copy()

    def __float__(self):
        COUNTS["syncs"] += 1
        return float(self._a)

    def __int__(self):
        COUNTS["syncs"] += 1
        return int(self._a)

    def __bool__(self):
        COUNTS["syncs"] += 1
        return bool(self._a)

    def __format__(self, spec):
        return format(float(self), spec)

    @property
    def T(self):
        return device(self._a.T)


def host_keywords(more):
    return {name: host(value) for name, value in more.items() if name != "like"}


def asarray(a, dtype=None, like=None):
    """To the device: the only way there."""
    if not isinstance(a, ndarray):
        made = device(np.array(a, dtype=dtype))
        COUNTS.update(h2d=made.size > 0, h2d_bytes=made.nbytes)
        return made
    return a if dtype in (None, a.dtype) else device(a._a.astype(dtype))


def _complete():
    """Attributes, methods and operators of ndarray, from the lists above."""
    operators = dict(add="add", sub="subtract", mul="multiply", truediv="divide", pow="power", matmul="matmul")
    comparisons = dict(lt="less", le="less_equal", gt="greater", ge="greater_equal", eq="equal", ne="not_equal")

    def operator(name, swapped=False, in_place=False):
        ufunc = getattr(np, name)

        def f(a, b):
            return a.__array_ufunc__(ufunc, "__call__", *((b, a) if swapped else (a, b)), **({"out": (a,)} if in_place else {}))
        return f

    def method(name):
        def f(a, *args, **more):
            assert not set(more) - METHODS[name], f"the stand-in has no ndarray.{name} with {sorted(more)}"
            return device(getattr(a._a, name)(*args, **more), () if name == "astype" else (a,))
        return f

    for name, ufunc in (operators | comparisons).items():
        setattr(ndarray, f"__{name}__", operator(ufunc))
    for name, ufunc in operators.items():
        setattr(ndarray, f"__r{name}__", operator(ufunc, swapped=True))
        setattr(ndarray, f"__i{name}__", operator(ufunc, in_place=True))
    ndarray.__neg__ = lambda a: device(-a._a)
    for name in METHODS:
        setattr(ndarray, name, method(name))
    for name in ATTRIBUTES:
        setattr(ndarray, name, property(lambda a, name=name: getattr(a._a, name)))


_complete()


def module():
    """What `import cupy` is to give."""
    cupy = ModuleType("cupy")
    cupy.__version__, cupy.ndarray, cupy.asarray = "14.2.0", ndarray, asarray
    cupy.arange = lambda n, dtype: device(np.arange(n, dtype=dtype))
    cupy.get_default_memory_pool = lambda: SimpleNamespace(free_all_blocks=lambda: None, total_bytes=lambda: 0)
    cupy.cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=lambda: 1, memGetInfo=lambda: (2**33, 2**33)))
    return cupy


assert sys.modules.get("standin"), "imported by its name, so that there is one list of counts"
