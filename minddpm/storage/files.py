"""Files that are written whole or not at all, and JSON that is read without trusting it."""

import contextlib
import json
import os
from pathlib import Path

from minddpm.errors import UserError

MAX_JSON = 10**7                # bytes: what a hostile file may make us parse


def write(path, data):
    """Bytes, or an iterable of pieces of them, each made when it is written -> a file, its folders made as needed.

    Under another name first, flushed to the disk, then renamed: a full disk or an interruption at any moment leaves the old
    file as it was.  UserError: the file cannot be written.
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
    """Remove what `write` left in a folder and its subfolders when it was killed.  Writes that are under way would fail."""
    for part in Path(folder).rglob(".*.part"):
        with contextlib.suppress(OSError):
            part.unlink()


def write_json(path, value):
    """A JSON file, indented.  UserError: the file cannot be written."""
    write(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path):
    """A JSON file that holds one object -> dict.  UserError: missing, unreadable, larger than 10 MB, or not that."""
    try:
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist, or is no regular file; expected a JSON file")
        with open(path, "rb") as f:
            data = f.read(MAX_JSON + 1)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}") from e
    return parse_json(data, path)


def parse_json(data, path):
    """Bytes of JSON, at most 10 MB, from the file at path -> dict.

    UserError: no JSON, no object, nested more than 20 deep, or an object in it has two values for one key.
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
