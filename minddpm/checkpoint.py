"""Trees of arrays in safetensors files, in the layout that PyTorch and diffusers use.

This file is the one place where layouts change: in memory convolutions are HWIO and dense weights (in, out), in files
they are OIHW and (out, in).  Vectors are the same in both.
"""

import contextlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from minddpm import backend, files, tree
from minddpm.errors import UserError


def to_file_layout(a):
    """HWIO -> OIHW, (in, out) -> (out, in), (C,) -> (C,)."""
    return a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T


def from_file_layout(a):
    """OIHW -> HWIO, (out, in) -> (in, out), (C,) -> (C,)."""
    return a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T


def write(path, params, metadata=None):
    """A tree of arrays, from either device -> a safetensors file, and a dict of strings beside it.

    Whole or not there: see files.write.  UserError: the file cannot be written.
    """
    arrays = {name: np.ascontiguousarray(to_file_layout(backend.to_host(a))) for name, a in tree.flatten(params).items()}
    files.write(path, save(arrays, {"format": "pt"} | (metadata or {})))


def read(path, shapes):
    """A safetensors file -> the tree, as float32, and the dict of strings beside it.

    shapes: the tree of shapes, in memory's layout, that the file must hold, no more and no less.
    UserError: the file is missing, truncated, no safetensors file, has other names or shapes, or holds NaN or infinity.
    """
    with _open(path) as file:
        expected = {name: _file_shape(shape) for name, shape in tree.flatten(shapes).items()}
        _check_names(path, set(file.keys()), set(expected))
        flat = {}
        for name, shape in expected.items():
            stored = file.get_slice(name)
            found, dtype = tuple(stored.get_shape()), stored.get_dtype()
            if found != shape:
                raise UserError(f"{path}: {name} has shape {found}; expected {shape}")
            if dtype not in ("F64", "F32", "F16"):
                raise UserError(f"{path}: {name} has dtype {dtype}; expected floating-point weights, F64, F32 or F16")
        for name in expected:
            a = file.get_tensor(name)
            if not np.isfinite(a).all():
                raise UserError(f"{path}: {name} holds values that are not finite; expected finite weights")
            flat[name] = np.ascontiguousarray(from_file_layout(a), dtype=np.float32)
        return tree.unflatten(flat), file.metadata() or {}


def _file_shape(shape):
    return to_file_layout(np.broadcast_to(np.float32(0), shape)).shape


@contextlib.contextmanager
def _open(path):
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; expected a safetensors file")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as e:
        raise UserError(f"{path} is no whole safetensors file: {' '.join(str(e).split())}") from e


def _check_names(path, found, expected):
    for problem, names in ("lacks", expected - found), ("has unexpected", found - expected):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{path} {problem} {min(names)}{more}; expected {len(expected)} tensors, found {len(found)}")
