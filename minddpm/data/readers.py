"""A user's image files as arrays: the ending of a file's name gives its format.

A source is a file, a folder or a tar archive, that is, a series of (name, bytes).  Each format has a function
`(bytes, name) -> images (N,H,W) or (N,H,W,C)`.  Nothing is ever unpickled: a pickle can run code when it is opened.
"""

import gzip
import io
import math
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np

from minddpm.errors import UserError, printable

EXPECTED = ("a folder of pictures (.png, .jpg, .webp, ...), an .npz or .npy array, MNIST idx files (...-ubyte or .idx, plain or "
            ".gz), or CIFAR-10 binary batches (.bin, a folder of them, or cifar-10-binary.tar.gz)")
CIFAR_RECORD = 1 + 3 * 32 * 32                          # a label, then the red, the green and the blue plane
PILLOW = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")           # not EPS, for which Pillow runs Ghostscript


def read(path):
    """A file or folder -> train (N,H,W,C), held_out (M,H,W,C) or None: uint8, C 1 or 3.

    The held-out part is the one that comes with the files: CIFAR-10's test_batch.bin, MNIST's t10k-images.  The files of a
    folder are read in the order of their names, those in subfolders too; labels, notes and hidden files are skipped.  Grey
    pictures become colour only if others of the set are in colour.
    UserError: nothing readable, damaged, not uint8, no images, or not all of one size.
    """
    path = Path(path)
    train, held_out, skipped, first = [], [], Counter(), None
    try:
        for name, data in _files(path):
            images = _images(name, data, alone=name == str(path))
            if images is None:
                skipped["pickle" if re.match(rb"\x80[\x02-\x05]", data) else Path(name).suffix or "without an ending"] += 1
                continue
            first = first or (name, images.shape)
            if images.shape[1:3] != first[1][1:3]:
                (H, W), (first_H, first_W) = images.shape[1:3], first[1][1:3]
                raise UserError(f"{name} is {H}x{W} pixels but {first[0]} is {first_H}x{first_W}: "
                                "expected images all of one size")
            (held_out if re.match(r"test_batch.*bin|t10k-images.*(ubyte|idx)", Path(name).name) else train).append(images)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {_reason(e)}: expected a readable file or folder") from e
    if not train and not held_out:
        raise _no_images(path, skipped)
    channels = max(images.shape[3] for images in train + held_out)
    train, held_out = (np.concatenate([np.broadcast_to(images, (*images.shape[:3], channels)) for images in part])
                       if part else None for part in (train, held_out))
    return (held_out, None) if train is None else (train, held_out)


def _no_images(path, skipped):
    if skipped["pickle"]:
        return UserError(f"{path} holds pickles, which can run code when they are opened: expected CIFAR-10's binary version, "
                         "cifar-10-binary.tar.gz")
    found = ", ".join(f"{n} {ending}" for ending, n in skipped.items()) or "no files"
    return UserError(f"{path} holds no images (found: {found}): expected {EXPECTED}")


def _files(path):
    """Yields (name, bytes) of each file at a path, decompressed, but no hidden ones; a lone file's name is the path."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        packed = {p.with_name(p.name + ".gz") for p in files}                   # x.gz beside x holds the same images
        for file in files:
            if file not in packed:
                yield str(file), _gunzip(file.read_bytes(), file)
    elif path.is_file():
        data = _gunzip(path.read_bytes(), path)
        if path.name.lower().endswith((".tar", ".tar.gz", ".tgz")):
            yield from _members(data, path)
        else:
            yield str(path), data
    else:
        raise UserError(f"{path} is neither a file nor a folder: expected {EXPECTED}")


def _members(data, path):
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            members = [m for m in tar.getmembers() if m.isfile() and not _hidden(Path(m.name))]
            files = [(m.name, tar.extractfile(m).read()) for m in sorted(members, key=lambda m: m.name)]
    except Exception as e:
        raise UserError(f"{path} is a damaged tar archive ({_reason(e)}): expected a whole one") from e
    for member, data in files:
        name = f"{path}/{printable(member, len(member))}"
        yield name, _gunzip(data, name)


def _hidden(path):
    return any(part.startswith(".") and part != "." for part in path.parts)


def _gunzip(data, name):
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except Exception as e:
        raise UserError(f"{name} is a damaged .gz file ({_reason(e)}): expected a whole one") from e


def _images(name, data, alone):
    """The images (N,H,W,C) in a file; None for a file that is not alone and holds none, such as labels or notes."""
    ending = name.lower().removesuffix(".gz")
    reader = next((reader for endings, reader in READERS.items() if ending.endswith(endings)), None)
    if not data and (alone or reader):
        raise UserError(f"{name} is empty: expected {EXPECTED}")
    if reader is None or (reader is _read_numpy and not alone):
        return None
    images = reader(data, name)
    if images.ndim == 1 and not alone:
        return None
    if images.dtype != np.uint8:
        raise UserError(f"{name} holds {images.dtype} values: expected uint8, 0 to 255")
    shaped = images[..., None] if images.ndim == 3 else images
    if shaped.ndim != 4 or shaped.shape[3] not in (1, 3) or shaped.size == 0:
        raise UserError(f"{name} holds an array of shape {images.shape}: expected (N,H,W), (N,H,W,1) or (N,H,W,3), not empty")
    return shaped


def _read_idx(data, name):
    """Two zeros, a type (8 = uint8), the number of dimensions, each as big-endian uint32, then the values."""
    if not re.match(rb"\0\0\x08[\x01-\x04]", data):
        raise UserError(f"{name} begins with {data[:4].hex(' ')}: expected an idx file of uint8 values, so 00 00 08")
    n, start = data[3], 4 + 4 * data[3]
    shape = [int.from_bytes(data[4 + 4 * k:8 + 4 * k], "big") for k in range(n)]
    if len(data) != start + math.prod(shape):
        raise UserError(f"{name} is an idx file of {'x'.join(map(str, shape))} values by its header, but "
                        f"{max(0, len(data) - start)} follow: expected a whole file")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _read_cifar(data, name):
    if len(data) % CIFAR_RECORD or max(data[::CIFAR_RECORD]) > 9:
        raise UserError(f"{name} is no CIFAR-10 batch ({len(data)} bytes): expected records of {CIFAR_RECORD} bytes, each "
                        "beginning with a label, 0 to 9")
    records = np.frombuffer(data, np.uint8).reshape(-1, CIFAR_RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _read_picture(data, name):
    """One picture -> (1,H,W) if its format is grey, else (1,H,W,3).

    Transparent pixels are shown over black, EXIF's rotation is applied, and of an animation the first frame is taken.
    """
    from PIL import Image, ImageOps
    try:
        with Image.open(io.BytesIO(data), formats=PILLOW) as file:
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


def _read_numpy(data, name):
    """An .npy file's array; of an .npz file the array arr_0, x or images, or the only one."""
    try:
        arrays = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            return arrays
        found = arrays.files
        wanted = ("arr_0", "x", "images", *(found if len(found) == 1 else ()))
        images = next((arrays[key] for key in wanted if key in found), None)
    except Exception as e:
        raise UserError(f"{name} cannot be read as .npy or .npz ({_reason(e)}): expected a whole file of uint8 arrays") from e
    if not isinstance(images, np.ndarray):
        raise UserError(f"{name} holds {', '.join(found[:6]) or 'nothing'}: expected an array named arr_0, x or images, "
                        "or one array alone")
    return images


READERS = {
    (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"): _read_picture,
    (".npy", ".npz"): _read_numpy,
    ("ubyte", ".idx"): _read_idx,
    ".bin": _read_cifar,
}


def _reason(e):
    text = getattr(e, "strerror", None) or str(e) or type(e).__name__
    return " ".join(text.split("<_io.")[0].split())                            # Pillow names the object that it reads from
