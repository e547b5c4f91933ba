"""Writing files that are whole or not there."""

import contextlib
import json
import os
from pathlib import Path

from minddpm.errors import UserError


def write(path, data):
    """Bytes -> a file, its folders made as needed.

    Under another name first, flushed to the disk, then renamed: a full disk or an interruption at any moment leaves the old
    file as it was.  UserError: the file cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as e:
        raise UserError(f"{path} cannot be written: {e.strerror or e}") from e
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_json(path, value):
    """A JSON file, indented.  UserError: the file cannot be written."""
    write(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path):
    """A JSON file that holds one object -> dict.  UserError: missing, unreadable, or not that."""
    try:
        value = json.loads(Path(path).read_bytes())
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not valid JSON: {str(e) or type(e).__name__}") from e
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}; expected an object")
    return value
