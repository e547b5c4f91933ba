"""Files written atomically, and JSON read without trusting it."""

import contextlib
import json
import os
from pathlib import Path

from minddpm.errors import UserError

MAX_JSON = 10**7                # bytes: a hostile file could otherwise fill the memory


def write(path, data):
    """Write bytes, or an iterable of bytes-like pieces, to a file; missing folders are made.

    Written atomically: to a temporary file, flushed to the disk, then renamed.  A full disk or an interruption at any moment
    leaves the old file as it was.  UserError: the file cannot be written.
    """
    path = Path(path)
    part = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as f:
            for piece in [data] if isinstance(data, bytes) else data:
                f.write(piece)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as e:
        raise UserError(f"{path} cannot be written: {e.strerror or e}") from e
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def sweep(folder):
    """Remove the temporary files of killed calls of `write` from a folder and its subfolders.  A call under way would fail."""
    for part in Path(folder).rglob(".*.part"):
        with contextlib.suppress(OSError):
            part.unlink()


def write_json(path, value):
    """Write a JSON file, indented, atomically.  UserError: the file cannot be written."""
    write(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path):
    """The dict in a file of one JSON object.  UserError: it is missing, unreadable, larger than 10 MB or not one JSON object."""
    try:
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist or is not a regular file; expected a JSON file")
        with open(path, "rb") as f:
            data = f.read(MAX_JSON + 1)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}") from e
    return parse_json(data, path)


def parse_json(data, path):
    """The dict in bytes of JSON.  path: the file that they are from, for messages.

    UserError: more than 10 MB, no valid JSON, no object, nested more than 20 deep, or two values for one key of an object.
    """
    if len(data) > MAX_JSON:
        raise UserError(f"{path} has more than {MAX_JSON // 10**6} MB of JSON; expected a few kB")
    try:
        value = json.loads(data, object_pairs_hook=_object)
        level, depth = [value], 0
        while level:
            depth += 1
            if depth > 20:
                raise RecursionError("nested more than 20 deep")
            level = [child for v in level if isinstance(v, list | dict) for child in (v.values() if isinstance(v, dict) else v)]
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not valid JSON: {' '.join(str(e).split())[:200] or type(e).__name__}") from e
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}; expected an object")
    return value


def _object(pairs):
    value = {}
    for key, v in pairs:
        if key in value:
            raise ValueError(f"two values for {key[:100]!r}")
        value[key] = v
    return value
