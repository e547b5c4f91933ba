"""Users' image files, recognised by their content and never by their suffix; whatever cannot be read is one sentence.

A source is one file, a folder or a tar archive: that is, a row of (name, bytes).  Each format is a function
`(bytes, name) -> images (N,H,W) or (N,H,W,C)`.  Nothing is ever unpickled: a pickle can run code when it is opened.
"""

import gzip
import io
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np

from minddpm.errors import UserError

EXPECTED = ("a folder of pictures, an .npz or .npy array, MNIST idx (plain or .gz), "
            "or CIFAR-10 binary (.bin, a folder of them, or cifar-10-binary.tar.gz)")
CIFAR_RECORD = 1 + 3 * 32 * 32                          # a label, then the red, the green and the blue plane
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")

MAGIC = {
    "picture": rb"\x89PNG|\xff\xd8\xff|GIF8|BM.{4}\0{4}|II\*\0|MM\0\*|RIFF.{4}WEBP|P[56]\s",
    "npy":     rb"\x93NUMPY",
    "npz":     rb"PK(\x03\x04|\x05\x06)",
    "pickle":  rb"\x80[\x02-\x05]",
    "gzip":    rb"\x1f\x8b",
    "tar":     rb".{257}ustar",
    "idx":     rb"\0\0[\x08-\x0e][\x01-\x04]",
}


def read(path):
    """A file or folder -> train (N,H,W,C), held_out (M,H,W,C) or None: uint8, C 1 or 3.

    The held-out part is the one that comes with the files: CIFAR-10's test_batch.bin, MNIST's t10k-images.  A folder's
    files are taken in the order of their names, subfolders included; files that are no images (labels, notes) and hidden
    ones are passed over.  Grey pictures become colour only where others of the set are in colour.
    UserError: nothing readable, damaged, not uint8, no images, or not all of one size.
    """
    path = Path(path)
    train, held_out, other, first = [], [], Counter(), None
    try:
        for name, data in _entries(path):
            form, images = _decode(data, name, alone=name == str(path))
            if images is None:
                other[form] += 1
                continue
            first = first or (name, images.shape)
            if images.shape[1:3] != first[1][1:3]:
                raise UserError(f"{name} is {_size(images.shape)} pixels but {first[0]} is {_size(first[1])}: "
                                "expected images all of one size")
            is_test = form != "picture" and re.match("test_batch|t10k-images", Path(name).name)
            (held_out if is_test else train).append(images)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {_reason(e)}: expected a readable file or folder") from e
    if not train and not held_out:
        if other["pickle"]:
            raise _foreign("pickle", b"", path)
        found = ", ".join(f"{n} {form}" for form, n in other.items()) or "no files"
        raise UserError(f"{path} holds no images (found: {found}): expected {EXPECTED}")
    channels = max(images.shape[3] for images in train + held_out)
    train, held_out = (_join(part, channels) if part else None for part in (train, held_out))
    return (held_out, None) if train is None else (train, held_out)


def _decode(data, name, alone):
    """A file's bytes -> what they are and their images: None for what is passed over in a folder or an archive."""
    form = kind(data)
    if form in READERS and (alone or form in ("picture", "cifar", "idx")):
        images = READERS[form](data, name)
        return ("labels", None) if form == "idx" and images.ndim == 1 and not alone else (form, _nhwc(images, name))
    if alone or name.lower().endswith(SUFFIXES):
        raise _foreign(form, data, name)
    return form, None


def kind(data):
    """The format of a file's bytes: a key of MAGIC, "cifar", "empty" or "unknown".

    CIFAR-10 batches have no magic number: they are whole records whose labels are all below 10, and so may begin like an
    idx file, whose length its own header then contradicts.
    """
    if not data:
        return "empty"
    form = next((form for form, magic in MAGIC.items() if re.match(magic, data, re.DOTALL)), "unknown")
    if len(data) % CIFAR_RECORD == 0 and max(data[::CIFAR_RECORD]) < 10 and not (form == "idx" and _idx_is_whole(data)):
        return "cifar"
    return form


def _entries(path):
    """A path -> (name, bytes) of each file in it, out of their .gz wrapping; a lone file keeps its path as its name."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        twins = {p.with_name(p.name + ".gz") for p in files}                    # x.gz beside x is the same data once more
        for file in files:
            if file not in twins:
                yield str(file), _gunzip(file.read_bytes(), file)
    elif path.is_file():
        data = _gunzip(path.read_bytes(), path)
        if kind(data) == "tar":
            yield from _tar_entries(data, path)
        else:
            yield str(path), data
    else:
        raise UserError(f"{path} is neither a file nor a folder: expected {EXPECTED}")


def _tar_entries(data, path):
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            members = [m for m in tar.getmembers() if m.isfile() and not _hidden(Path(m.name))]
            files = [(f"{path}/{m.name}", tar.extractfile(m).read()) for m in sorted(members, key=lambda m: m.name)]
    except Exception as e:
        raise UserError(f"{path} is a damaged tar archive ({_reason(e)}): expected a whole one") from e
    for name, data in files:
        yield name, _gunzip(data, name)


def _hidden(path):
    return any(part.startswith(".") and part != "." for part in path.parts)


def _gunzip(data, name):
    if kind(data) != "gzip":
        return data
    try:
        return gzip.decompress(data)
    except Exception as e:
        raise UserError(f"{name} is a damaged .gz file ({_reason(e)}): expected a whole one") from e


# ---- the formats ------------------------------------------------------------------------------------------------------


def _idx_shape(data):
    n = data[3]
    return tuple(int.from_bytes(data[4 + 4 * k:8 + 4 * k], "big") for k in range(n)), 4 + 4 * n


def _idx_is_whole(data):
    shape, start = _idx_shape(data)
    return len(data) == start + int(np.prod(shape, dtype=object))


def _read_idx(data, name):
    """Two zeros, a type (8 = uint8), the number of dimensions, each as big-endian uint32, then the values."""
    shape, start = _idx_shape(data)
    if data[2] != 8:
        raise UserError(f"{name} is an idx file of type {data[2]:#04x}: expected 0x08, uint8 values")
    if not _idx_is_whole(data):
        says, follow = "x".join(map(str, shape)), max(0, len(data) - start)
        raise UserError(f"{name} is an idx file of {says} values by its header, but {follow} follow: expected a whole file")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _read_cifar(data, name):
    records = np.frombuffer(data, np.uint8).reshape(-1, CIFAR_RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _read_picture(data, name):
    """One picture -> (1,H,W) if its format says grey, else (1,H,W,3).  What is transparent is shown over black; EXIF turns
    are applied; of an animation the first frame counts."""
    from PIL import Image, ImageOps
    try:
        with Image.open(io.BytesIO(data)) as file:
            picture = ImageOps.exif_transpose(file)
            mode = picture.mode
            if mode[0] not in "IF":
                rgba = picture.convert("RGBA")
                black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
                seen = Image.alpha_composite(black, rgba).convert("L" if mode in ("1", "L", "LA", "La") else "RGB")
                return np.array(seen)[None]
    except Exception as e:
        raise UserError(f"{name} is a damaged picture ({_reason(e)}): expected one that opens") from e
    raise UserError(f"{name} has more than 8 bits a pixel (mode {mode}): expected an 8-bit picture")


def _read_npy(data, name):
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as e:
        raise UserError(f"{name} is an .npy file that cannot be read ({_reason(e)}): expected a whole array of uint8") from e


def _read_npz(data, name):
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            found = arrays.files
            wanted = ("arr_0", "x", "images", *(found if len(found) == 1 else ()))
            images = next((arrays[key] for key in wanted if key in found), None)
    except Exception as e:
        raise UserError(f"{name} is an .npz file that cannot be read ({_reason(e)}): expected a whole archive of arrays") from e
    if not isinstance(images, np.ndarray):
        raise UserError(f"{name} holds {', '.join(found[:6]) or 'nothing'}: expected an array named arr_0, x or images, "
                        "or one array alone")
    return images


READERS = {"idx": _read_idx, "cifar": _read_cifar, "picture": _read_picture, "npy": _read_npy, "npz": _read_npz}


# ---- checks and sentences ---------------------------------------------------------------------------------------------


def _nhwc(images, name):
    """(N,H,W) or (N,H,W,1|3) uint8, not empty -> (N,H,W,C)."""
    if images.dtype != np.uint8:
        raise UserError(f"{name} holds {images.dtype} values: expected uint8, 0 to 255")
    shaped = images[..., None] if images.ndim == 3 else images
    if shaped.ndim != 4 or shaped.shape[3] not in (1, 3) or shaped.size == 0:
        raise UserError(f"{name} holds an array of shape {images.shape}: expected (N,H,W), (N,H,W,1) or (N,H,W,3), not empty")
    return shaped


def _join(parts, channels):
    return np.concatenate([np.broadcast_to(part, (*part.shape[:3], channels)) for part in parts])


def _size(shape):
    return f"{shape[1]}x{shape[2]}"


def _reason(e):
    return " ".join((getattr(e, "strerror", None) or str(e) or type(e).__name__).split())


def _foreign(form, data, name):
    if form == "pickle":
        return UserError(f"{name} holds pickles, which can run code when they are opened: expected CIFAR-10's binary version, "
                         "cifar-10-binary.tar.gz")
    if form == "empty":
        return UserError(f"{name} is empty: expected {EXPECTED}")
    begins = data[:4].hex(" ")
    return UserError(f"{name} is no image file known here ({len(data)} bytes, beginning {begins}): expected {EXPECTED}")
