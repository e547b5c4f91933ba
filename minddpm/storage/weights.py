"""Trees of arrays in safetensors files, in the layout that PyTorch and diffusers use.

This file is the one place where layouts change: in memory convolutions are HWIO and dense weights (in, out), in files
they are OIHW and (out, in).  Vectors are the same in both.
"""

import logging

import numpy as np

from minddpm import device as backend
from minddpm import tree
from minddpm.errors import UserError
from minddpm.storage import files, names
from minddpm.storage import safetensors_file as tensorfile


def to_file_layout(a):
    """HWIO -> OIHW, (in, out) -> (out, in), (C,) -> (C,)."""
    return a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T


def from_file_layout(a):
    """OIHW -> HWIO, (out, in) -> (in, out), (C,) -> (C,)."""
    return a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T


def write(path, params, metadata=None):
    """A tree of arrays, from either device -> a safetensors file, and a dict of strings beside it.

    By default the strings are what PyTorch's readers look for.  Whole or not there: see files.write.  Written array by array,
    in no more memory than one of them takes.  UserError: the file cannot be written.
    """
    flat = tree.flatten(params)

    def pieces():
        yield tensorfile.header({name: (a.dtype, _file_shape(a.shape)) for name, a in flat.items()}, metadata or {"format": "pt"})
        for a in flat.values():
            yield np.ascontiguousarray(to_file_layout(backend.to_host(a)))

    files.write(path, pieces())


def read(path, shapes):
    """A safetensors file -> the tree, as float32, and the dict of strings beside it.

    shapes: the tree of shapes, in memory's layout, that the file must hold, no more and no less.  Attention's names before
    2023 are read too.  Weights in another precision are rounded to float32; a line of the log says so.
    UserError: the file is missing, damaged, has other names or shapes, or holds NaN or infinity.
    """
    expected = {name: _file_shape(shape) for name, shape in tree.flatten(shapes).items()}
    with tensorfile.open_file(path) as stored:
        spelled = {names.modern(name): name for name in stored.entries}
        names.check_names(path, set(spelled), set(expected))
        if len(spelled) < len(stored.entries):
            raise UserError(f"{path} holds some weights twice, by their old names and their new ones; expected one of the two")
        entries = {name: stored.entries[spelled[name]] for name in expected}
        _check_entries(path, entries, expected)
        flat = {name: _to_memory(path, name, stored.read(spelled[name])) for name in expected}
    others = {entry.dtype for entry in entries.values()} - {"F32"}
    if others:
        # Not a Python warning: nothing needs to change.  Without a handler of their own, library and command line print it.
        logging.getLogger("minddpm").warning("%s holds %s weights: used as float32", path, " and ".join(sorted(others)))
    return tree.unflatten(flat), stored.metadata


def _check_entries(path, entries, expected):
    for name, entry in entries.items():
        if entry.shape != expected[name]:
            raise UserError(f"{path}: {name} has shape {entry.shape}; expected {expected[name]}")
        if entry.dtype not in tensorfile.FLOATS:
            raise UserError(f"{path}: {name} has dtype {entry.dtype}; expected one of {', '.join(tensorfile.FLOATS)}")


def _to_memory(path, name, a):
    with np.errstate(over="ignore"):                    # a float64 that float32 cannot hold becomes infinity: refused below
        a = np.array(from_file_layout(a), dtype=np.float32, order="C")
    if not np.isfinite(a).all():
        raise UserError(f"{path}: {name} holds values that are not finite; expected finite weights")
    return a


def _file_shape(shape):
    return to_file_layout(np.broadcast_to(np.float32(0), shape)).shape
