"""Trees of arrays in safetensors files, in the layout of PyTorch and under the names of diffusers' UNet2DModel.

This is the only module that changes layouts: in memory convolutions are HWIO and dense weights (in, out), in files OIHW and
(out, in).  Vectors are the same in both.
"""

import logging
import re

import numpy as np

from minddpm import tree
from minddpm.device import to_host
from minddpm.errors import UserError, printable
from minddpm.storage import files
from minddpm.storage.safetensors_file import header, open_file

OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}     # diffusers' attention before 2023


def to_file_layout(a):
    """HWIO -> OIHW, (in, out) -> (out, in), (C,) -> (C,)."""
    return a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T


def from_file_layout(a):
    """OIHW -> HWIO, (out, in) -> (in, out), (C,) -> (C,)."""
    return a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T


def write(path, params, metadata=None):
    """Write a tree of float arrays, on either device, as a safetensors file, with a dict of strings as its metadata.

    The default metadata is what PyTorch's readers look for.  Written atomically, see files.write, and array by array, so that it
    needs no more memory than the largest array.  UserError: the file cannot be written.
    """
    flat = tree.flatten(params)

    def pieces():
        yield header({name: (a.dtype, _file_shape(a.shape)) for name, a in flat.items()}, metadata or {"format": "pt"})
        for a in flat.values():
            yield np.ascontiguousarray(to_file_layout(to_host(a)))

    files.write(path, pieces())


def read(path, shapes):
    """The tree in a safetensors file, as float32 on the host, and its metadata, a dict of strings.

    shapes: the tree of shapes, in memory's layout; the file must hold exactly these arrays, attention's under today's names or
    those before 2023.  Weights in another precision are converted to float32, with a line in the log.
    UserError: the file is missing, damaged, has other names or shapes, or holds NaN or infinity.
    """
    expected = {name: _file_shape(shape) for name, shape in tree.flatten(shapes).items()}
    with open_file(path) as stored:
        stored_names = {modern(name): name for name in stored.entries}
        _check_names(path, set(stored_names), set(expected))
        if len(stored_names) < len(stored.entries):
            raise UserError(f"{path} holds some weights twice, under their old and their new names; expected one of the two")
        entries = {name: stored.entries[stored_names[name]] for name in expected}
        for name, entry in entries.items():
            if entry.shape != expected[name]:
                raise UserError(f"{path}: {name} has shape {entry.shape}; expected {expected[name]}")
        flat = {name: _to_memory(path, name, stored.read(entry)) for name, entry in entries.items()}
    others = {entry.dtype for entry in entries.values()} - {"F32"}
    if others:
        # Logged, not a Python warning: nothing needs to change.  Where logging is not set up, Python prints the line.
        logging.getLogger("minddpm").warning("%s holds %s weights: used as float32", path, " and ".join(sorted(others)))
    return tree.unflatten(flat), stored.metadata


def modern(name):
    """Today's name of a weight in diffusers, from that or the one before 2023.

    >>> modern("down_blocks.1.attentions.0.proj_attn.weight")
    'down_blocks.1.attentions.0.to_out.0.weight'
    """
    return re.sub(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{OLD_NAMES[m[2]]}.", name)


def _check_names(path, found, expected):
    for problem, names in ("lacks", expected - found), ("has unexpected", found - expected):
        if names:
            first = printable(min(names)) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            raise UserError(f"{path} {problem} {first}; expected {len(expected)} tensors, found {len(found)}")


def _to_memory(path, name, a):
    with np.errstate(over="ignore"):                    # a float64 that float32 cannot hold becomes infinity: refused below
        a = np.array(from_file_layout(a), dtype=np.float32, order="C")
    if not np.isfinite(a).all():
        raise UserError(f"{path}: {name} holds values that are not finite; expected finite weights")
    return a


def _file_shape(shape):
    return to_file_layout(np.broadcast_to(np.float32(0), shape)).shape
