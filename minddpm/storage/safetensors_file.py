"""A safetensors file.  It is read without trusting it: every number in its header is checked before any array is made of it.

    8 bytes             the length n of the header, little-endian
    n bytes             JSON: {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …, "__metadata__": {…}}
    the rest            the arrays, row-major and little-endian, each at its offsets, with no gap and no overlap

The library of the same name would read it too.  This reads bfloat16 as well, refuses two values for one name, and maps one
array at a time, so that the file's pages are never all in memory beside the weights made of them.
"""

import contextlib
import json
import math
import os
from typing import NamedTuple

import numpy as np

from minddpm.errors import UserError, printable
from minddpm.storage import files

# NumPy has no bfloat16: the upper half of a float32, read as uint16.
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
OTHERS = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
BYTES = {name: np.dtype(dtype).itemsize for name, dtype in FLOATS.items()} | OTHERS


def header(arrays, metadata):
    """The bytes before the arrays.  arrays: {name: (dtype, shape)} in their order, float16, float32 or float64."""
    names, entries, end = {np.dtype(FLOATS[name]): name for name in ("F64", "F32", "F16")}, {"__metadata__": metadata}, 0
    for name, (dtype, shape) in arrays.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)                             # so that the arrays are aligned
    return len(text).to_bytes(8, "little") + text


class Entry(NamedTuple):
    """Where an array lies: from byte `start` of the file to byte `stop`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile(NamedTuple):
    """An open file whose header is sound: {name: Entry}, and the dict of strings that it carries beside the arrays."""

    path: os.PathLike
    file: object
    entries: dict
    metadata: dict

    def read(self, name):
        """One floating-point array, float16, float32 or float64.  What is read does not outlive the file unless copied."""
        entry = self.entries[name]
        if entry.start == entry.stop:
            return np.zeros(entry.shape, np.float32)
        a = np.memmap(self.file, FLOATS[entry.dtype], "r", entry.start, entry.shape)
        return (a.astype("<u4") << 16).view("<f4") if entry.dtype == "BF16" else a


@contextlib.contextmanager
def open_file(path):
    """A context: the safetensors file at path -> TensorFile.  UserError: missing, unreadable, cut short or not sound."""
    try:
        with open(path, "rb") as file:
            yield TensorFile(path, file, *_header(path, file))
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}") from e


def _header(path, file):
    size = os.fstat(file.fileno()).st_size
    n = int.from_bytes(file.read(8), "little")
    if size < 8 or n > size - 8:
        raise UserError(f"{path} is cut short, or no safetensors file: {size} bytes, of which {n} for the header")
    if n > files.MAX_JSON:
        raise UserError(f"{path} has a header of {n} bytes; expected at most {files.MAX_JSON}")
    header = files.parse_json(file.read(n), path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise UserError(f"{path}: __metadata__ is no object of strings")
    entries = {name: _entry(path, name, value, 8 + n) for name, value in header.items()}
    _check_layout(path, entries, 8 + n, size)
    return entries, metadata


def _entry(path, name, value, origin):
    """One value of the header -> Entry, whose shape, dtype and number of bytes agree."""
    what = f"{path}: {printable(name)}"
    try:
        dtype, shape, (start, stop) = value["dtype"], value["shape"], value["data_offsets"]
        known = dtype in BYTES
        if not all(type(i) is int and 0 <= i < 2**63 for i in (*shape, start, stop)):
            raise ValueError
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{what} has a malformed entry in the header") from e
    if not known:
        raise UserError(f"{what} has dtype {printable(str(dtype), 50)}; expected one of {', '.join(FLOATS)}")
    if len(shape) > 8:
        raise UserError(f"{what} has {len(shape)} dimensions; expected at most 8")
    if math.prod(shape) * BYTES[dtype] != stop - start:
        raise UserError(f"{what} has shape {printable(str(tuple(shape)), 100)} and dtype {dtype}, but {stop - start} bytes")
    return Entry(dtype, tuple(shape), origin + start, origin + stop)


def _check_layout(path, entries, origin, size):
    """The arrays follow each other from the header's end to the file's, each byte in one of them."""
    end, last = origin, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            fault = "overlaps" if entry.start < end else "leaves a gap after"
            raise UserError(f"{path}: {printable(name)} {fault} {last}; expected the arrays one after the other")
        end, last = entry.stop, printable(name)
    if end != size:
        raise UserError(f"{path} is {'cut short' if size < end else 'too long'}: {size} bytes; its header describes {end}")
