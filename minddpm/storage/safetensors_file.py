"""The safetensors format, read without trusting the file: its header is checked whole before any array is made of it.

    8 bytes             the length n of the header, little-endian
    n bytes             JSON: {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …, "__metadata__": {…}}
    the rest            the arrays, row-major and little-endian, each at its offsets, with no gap and no overlap

Unlike the safetensors library this module reads bfloat16, refuses two values for one name, and maps one array at a time, so
that the file's pages are never all in memory beside the weights made of them.
"""

import contextlib
import json
import math
import os
from typing import NamedTuple

import numpy as np

from minddpm.errors import UserError, printable
from minddpm.storage.files import MAX_JSON, parse_json

# NumPy has no bfloat16, the upper half of a float32: its bits are read as uint16.
FLOATS = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def header(arrays, metadata):
    """The bytes before the arrays.  arrays: {name: (dtype, shape)} in the file's order; dtype: float16, float32 or float64."""
    names, entries, end = {FLOATS[name]: name for name in ("F64", "F32", "F16")}, {"__metadata__": metadata}, 0
    for name, (dtype, shape) in arrays.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)                             # so that the arrays are aligned
    return len(text).to_bytes(8, "little") + text


class Entry(NamedTuple):
    """An array of the file: its bytes are [start, stop) of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile(NamedTuple):
    """An open file with a valid header: {name: Entry}, and the metadata, a dict of strings."""

    file: object
    entries: dict
    metadata: dict

    def read(self, entry):
        """The array of an Entry: float16, float32, or float64.  Copy it if it is to be used after the file is closed."""
        if entry.start == entry.stop:
            return np.zeros(entry.shape, np.float32)
        a = np.memmap(self.file, FLOATS[entry.dtype], "r", entry.start, entry.shape)
        return (a.astype("<u4") << 16).view("<f4") if entry.dtype == "BF16" else a


@contextlib.contextmanager
def open_file(path):
    """A context: the TensorFile at path.  UserError: it is missing, unreadable, cut short or no valid safetensors file."""
    try:
        with open(path, "rb") as file:
            yield TensorFile(file, *_read_header(path, file))
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}") from e


def _read_header(path, file):
    size = os.fstat(file.fileno()).st_size
    n = int.from_bytes(file.read(8), "little")
    if size < 8 or n > size - 8:
        raise UserError(f"{path} is cut short, or not a safetensors file: it has {size} bytes, its header {n}")
    if n > MAX_JSON:
        raise UserError(f"{path} has a header of {n} bytes; expected at most {MAX_JSON}")
    values = parse_json(file.read(n), path)
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise UserError(f"{path}: __metadata__ is {printable(str(metadata), 50)}; expected an object of strings")
    entries = {name: _entry(f"{path}: {printable(name)}", value, 8 + n) for name, value in values.items()}
    _check_layout(path, entries, 8 + n, size)
    return entries, metadata


def _entry(array, value, origin):
    """A value of the header -> Entry.  UserError unless its shape, dtype and number of bytes agree.  array: for messages."""
    try:
        dtype, shape, (start, stop) = value["dtype"], value["shape"], value["data_offsets"]
        supported = dtype in FLOATS
        if not all(type(i) is int and 0 <= i < 2**63 for i in (*shape, start, stop)):
            raise ValueError
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{array} has a malformed entry in the header") from e
    if not supported:
        raise UserError(f"{array} has dtype {printable(str(dtype), 50)}; expected one of {', '.join(FLOATS)}")
    if len(shape) > 8:                                          # their product would take long
        raise UserError(f"{array} has {len(shape)} dimensions; expected at most 8")
    if math.prod(shape) * FLOATS[dtype].itemsize != stop - start:
        raise UserError(f"{array} has shape {printable(str(tuple(shape)), 100)} and dtype {dtype}, but {stop - start} bytes")
    return Entry(dtype, tuple(shape), origin + start, origin + stop)


def _check_layout(path, entries, origin, size):
    """UserError unless the arrays follow each other without gap or overlap, from the header's end to the file's."""
    end, previous = origin, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.start != end:
            fault = "overlaps" if entry.start < end else "leaves a gap after"
            raise UserError(f"{path}: {printable(name)} {fault} {previous}; expected the arrays one after the other")
        end, previous = entry.stop, printable(name)
    if end != size:
        raise UserError(f"{path} is {'cut short' if size < end else 'too long'}: {size} bytes; its header describes {end}")
