"""Gradients by random projection: for y, back = f(*args), two ways to one number.

    ⟨dy, J v⟩   by central differences of the forward pass, along one random direction v of one array
    ⟨back(dy), v⟩

for each input and each parameter array by itself, the others held fixed, in float64.  The only tolerance is relative: a
gradient too small to be resolved fails, it does not pass.  Where theory says that a gradient is zero, the case says so, with
its reason, and then both numbers must vanish.
"""

import importlib
import inspect
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minddpm import tree

TOLERANCE = 1e-6
STEP = 1e-4                     # of the five-point difference: it cuts off STEP⁴ f⁽⁵⁾/30 and rounds at about 1e-16 |y| / STEP.
                                # Measured relative errors are largest in the whole U-Net, 1e-8; at 1e-3 they are 8e-5 there
VANISHES = 1e-12, 1e-10         # of ‖dy‖ ‖v‖: what rounding may leave of zero, in the analytic and in the numeric number


class GradientError(AssertionError):
    """A gradient differs from its numerical value, or `back` breaks its contract."""


class Case(NamedTuple):
    """A function to check: bind(module) -> f, so that the planted faults can bind the same f to a faulty module."""

    module: str
    bind: Callable
    args: tuple
    zero: dict = {}             # {"p.to_k.bias": "why its gradient is zero"}

    def f(self, module=None):
        """The function of the module given, by default the real one."""
        return self.bind(module or importlib.import_module(self.module))


def read_only(value):
    """A float64 copy that cannot be written to."""
    copy = np.array(value, dtype=np.float64)
    copy.setflags(write=False)
    return copy


def check_gradient(f, *args, name, seed=0, zero=None, numeric=None):
    """Raises GradientError unless f's gradients are right; see the module's text.

    f(*args) -> y, back, where args and y are arrays or trees of arrays.  back(dy) returns the gradients in the order of args,
    but that of a first argument that is a dict, the parameters, comes last: the calling rule of minddpm.layers.  Also checked:
    dp has p's keys and shapes, back may be called twice, f is a function of its arguments and writes to none of them.
    numeric: what `projections` returned for the same f, args and seed, to save the forward passes.
    """
    dy, expected = numeric or projections(f, *args, seed=seed)
    args = [tree.map(read_only, arg) for arg in args]
    before = [tree.map(np.copy, arg) for arg in args]
    names = names_of(f, args)

    try:
        y, back = f(*args)
        found = by_path(names, args, back(dy))
        again = by_path(names, args, back(dy))
        y_again, _ = f(*args)
    except ValueError as e:
        if "read-only" in str(e):
            raise GradientError(f"{name}: writes to an argument or to dy ({e})") from e
        raise
    leaves = tree.flatten(dict(zip(names, args, strict=True)))
    if not all(np.array_equal(a, b) for a, b in zip(tree.leaves(args), tree.leaves(before), strict=True)):
        raise GradientError(f"{name}: an argument changed")
    if not all(np.array_equal(a, b) for a, b in zip(tree.leaves(y), tree.leaves(y_again), strict=True)):
        raise GradientError(f"{name}: the forward pass is no function of its arguments")
    if set(found) != set(leaves):
        raise GradientError(f"{name}: gradients that are missing or too many: {sorted(set(found) ^ set(leaves))}")
    for path, leaf in leaves.items():
        if found[path].shape != leaf.shape or found[path].dtype != leaf.dtype:
            raise GradientError(f"{name}: gradient of {path} is {found[path].dtype}{found[path].shape}, "
                                f"expected {leaf.dtype}{leaf.shape}")
        if not np.array_equal(found[path], again[path]):
            raise GradientError(f"{name}: a second call of back gives another gradient of {path}")

    compare(name, found, dy, expected, zero=zero, seed=seed)


def compare(name, found, dy, expected, zero=None, seed=0):
    """Raises GradientError unless each gradient of `found`, {path: array}, has its number in `expected`: see `projections`."""
    assert set(zero or {}) <= set(found), f"{name}: no such gradients: {set(zero) - set(found)}"
    for path, (v, numeric) in expected.items():
        analytic = float(np.vdot(found[path], v))
        largest = max(abs(analytic), abs(numeric))
        message = f"{name}: gradient of {path}: analytic {analytic!r}, numeric {numeric!r} (seed {seed})"
        if zero and path in zero:
            size = _norm(dy) * float(np.linalg.norm(v))
            if not (abs(analytic) < VANISHES[0] * size and abs(numeric) < VANISHES[1] * size):
                raise GradientError(f"{message}: expected zero, {zero[path]}")
        elif not (largest > 0 and abs(analytic - numeric) < TOLERANCE * largest):
            raise GradientError(f"{message}: relative error {abs(analytic - numeric) / (largest or 1):.2e}")


def projections(f, *args, seed=0):
    """dy, random and of y's shape, and for each path a random direction v and the number ⟨dy, J v⟩ -> dy, {path: (v, number)}.

    A direction that happens to be nearly orthogonal to the gradient leaves too few digits of the difference: then a second one
    is drawn.  The choice does not know what `back` says.
    """
    args = [tree.map(read_only, arg) for arg in args]
    leaves = tree.flatten(dict(zip(names_of(f, args), args, strict=True)))
    y, _ = f(*args)
    for path, leaf in tree.flatten(y).items():
        assert leaf.dtype == np.float64 and np.isfinite(leaf).all(), f"y{path} is {leaf.dtype}, or not finite"
    dys = {path: read_only(_rng(seed, f"dy.{path}").standard_normal(leaf.shape)) for path, leaf in tree.flatten(y).items()}
    dy = dys[""] if "" in dys else tree.unflatten(dys)
    rounding = np.finfo(float).eps * _norm(dy) * _norm(y) / STEP

    def difference(path, v, by):
        """⟨dy, f(… + by v …) − f(… − by v …)⟩, subtracted number by number before they are added."""
        ahead, behind = (tree.leaves(f(*tree.unflatten(leaves | {path: read_only(leaves[path] + step * v)}).values())[0])
                         for step in (by, -by))
        return sum(float(np.vdot(d, a - b)) for d, a, b in zip(dys.values(), ahead, behind, strict=True))

    numbers = {}
    for path, leaf in leaves.items():
        rng = _rng(seed, path)
        for _ in range(2):
            v = rng.standard_normal(leaf.shape)
            number = (8 * difference(path, v, STEP) - difference(path, v, 2 * STEP)) / (12 * STEP)
            if path not in numbers or abs(number) > abs(numbers[path][1]):
                numbers[path] = v, number
            if rounding < TOLERANCE * abs(number):
                break
    return dy, numbers


def names_of(f, args):
    """The names of f's arguments."""
    names = list(inspect.signature(f).parameters)
    assert len(names) == len(args), f"f takes {names}, {len(args)} arguments given"
    return names


def by_path(names, args, gradients):
    """What back returned -> {"x": dx, "p.conv1.weight": ..., ...}, named after the arguments of f."""
    order = names[1:] + names[:1] if isinstance(args[0], dict) else names
    gradients = gradients if len(order) > 1 else (gradients,)
    if len(gradients) != len(order):
        raise GradientError(f"back returns {len(gradients)} gradients, expected {len(order)}: {order}")
    return tree.flatten(dict(zip(order, gradients, strict=True)))


def _rng(seed, path):
    return np.random.default_rng([seed, zlib.crc32(path.encode())])


def _norm(y):
    return float(np.sqrt(sum(np.vdot(leaf, leaf) for leaf in tree.leaves(y))))


def random_parameters(shapes, seed):
    """Parameters where every gradient shows: a tree like `shapes` of float64 arrays, weights of variance 1/fan_in, γ in
    0.5..1.5, biases of both signs.  (At the paper's init conv_out is almost 0, and with it nearly every gradient.)
    """
    def draw(path, shape):
        rng = _rng(seed, path)
        if len(shape) > 1:
            return rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
        return rng.uniform(0.5, 1.5, shape) if path.endswith("weight") else 0.5 * rng.standard_normal(shape)

    return tree.unflatten({path: draw(path, shape) for path, shape in tree.flatten(shapes).items()})
