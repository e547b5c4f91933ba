"""Sec. 3.3's scaling, the order of batches, the built-in sets, and every file format: written here, read back, then broken."""

import gzip
import io
import pickle
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from minddpm import data
from minddpm.data import readers
from minddpm.errors import UserError
from minddpm.fast.device import is_cuda, to_device, to_host
from minddpm.random import rng


def draw(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# ---- the formats, written from their specifications -------------------------------------------------------------------


def idx(images):
    return bytes([0, 0, 8, images.ndim]) + b"".join(n.to_bytes(4, "big") for n in images.shape) + images.tobytes()


def cifar(images):
    return b"".join(bytes([k % 10]) + b"".join(image[:, :, c].tobytes() for c in range(3)) for k, image in enumerate(images))


PICKLE = pickle.dumps({b"data": [1, 2, 3]}, protocol=2)


def saved(save, *args, **kwargs):
    f = io.BytesIO()
    save(f, *args, **kwargs)
    return f.getvalue()


def npy(array):
    return saved(np.save, array)


def npz(**arrays):
    return saved(np.savez, **arrays)


def picture(pixels, form="PNG", **options):
    return saved(Image.fromarray(pixels).save, form, **options)


def archive(files):
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return f.getvalue()


def put(path, content):
    """Bytes at a path, or a dict of bytes as a folder at that path."""
    if isinstance(content, dict):
        for name, part in content.items():
            put(path / name, part)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return path


def tenths(x):
    held = np.arange(len(x)) % 10 == 9
    return x[~held], x[held]


def equal(dataset, train, held_out):
    assert dataset.train.dtype == dataset.held_out.dtype == np.uint8
    np.testing.assert_array_equal(dataset.train, train)
    np.testing.assert_array_equal(dataset.held_out, held_out)
    assert dataset.levels == 256 and dataset.image_shape == train.shape[1:]


# ---- scaling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [256, 17, 2])
def test_sec33_scaling_is_linear_onto_minus_one_to_one_and_exactly_inverted(levels):
    k = np.arange(levels, dtype=np.uint8)
    x = data.scale(k, levels)
    assert x.dtype == np.float32 and x[0] == -1 and x[-1] == 1
    np.testing.assert_allclose(x, [-1 + 2 * i / (levels - 1) for i in range(levels)], rtol=0, atol=1e-7)
    back = data.unscale(x, levels)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, k)
    np.testing.assert_array_equal(data.unscale(x.astype(np.float64), levels), k)


@pytest.mark.parametrize("levels", [256, 17])
def test_sec33_unscale_rounds_to_the_nearest_level_and_clips(levels):
    k, half = np.arange(levels), 1 / (levels - 1)
    x = -1 + 2 * k / (levels - 1)
    np.testing.assert_array_equal(data.unscale(x + 0.99 * half, levels), k)
    np.testing.assert_array_equal(data.unscale(x - 0.99 * half, levels), k)
    np.testing.assert_array_equal(data.unscale(np.array([-7, -1.001, 1.001, 1e30]), levels), [0, 0, levels - 1, levels - 1])


# ---- batches ----------------------------------------------------------------------------------------------------------


def numbered(n):
    """A set of n images of one pixel each, whose values are the images' numbers."""
    return data.Dataset("numbered", np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), draw(0, 1, 1, 1))


def batch_indices(n, batch, step, seed):
    """The numbers of the images in a batch of `numbered`."""
    return data.unscale(numbered(n).batch(batch, step, seed)).ravel()


@given(n=st.integers(1, 40), batch=st.integers(1, 60), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=50)
def test_alg1_batches_cut_a_stream_of_epochs_that_each_hold_every_image_once(n, batch, seed):
    steps = -(-3 * n // batch)
    stream = np.concatenate([batch_indices(n, batch, step, seed) for step in range(1, steps + 1)])
    assert len(stream) == steps * batch
    for epoch in range(3):
        shown = stream[epoch * n:(epoch + 1) * n]
        np.testing.assert_array_equal(shown, rng("order of the images", seed, epoch).permutation(n))
        np.testing.assert_array_equal(np.sort(shown), np.arange(n))


def test_alg1_a_resumed_run_draws_the_same_batches():
    whole = [batch_indices(50, 16, step, 3) for step in range(1, 31)]
    data.sets._epoch.cache_clear()
    for step in (30, 22, 25):
        np.testing.assert_array_equal(batch_indices(50, 16, step, 3), whole[step - 1])
    few = numbered(50)
    few.batch(16, 1, 3)[:] = -1                                             # a caller may write into what it was given
    np.testing.assert_array_equal(data.unscale(few.batch(16, 1, 3)).ravel(), whole[0])
    assert not np.array_equal(batch_indices(50, 16, 1, 3), batch_indices(50, 16, 1, 4))


def test_alg1_batch_is_the_images_of_its_indices_scaled():
    d = data.load("digits")
    stream = np.concatenate([rng("order of the images", 3, epoch).permutation(len(d.train)) for epoch in range(3)])
    for step in 1, 40:
        x0 = d.batch(100, step, seed=3)
        assert x0.dtype == np.float32 and x0.shape == (100, 8, 8, 1)
        np.testing.assert_array_equal(x0, data.scale(d.train[stream[100 * (step - 1):100 * step]], 17))
    assert x0.min() == -1 and x0.max() == 1


def test_appb_flips_mirror_left_and_right_half_of_the_images():
    d = data.Dataset("colour", draw(600, 2, 5, 3), draw(0, 2, 5, 3))
    mirrored = []
    for step in 1, 2:
        plain, flipped = (d.batch(300, step, 0, flips=flips) for flips in (False, True))
        same = (flipped == plain).all((1, 2, 3))
        assert 110 < same.sum() < 190 and flipped.dtype == np.float32
        for b in np.flatnonzero(~same):
            for i, j, c in np.ndindex(2, 5, 3):
                assert flipped[b, i, j, c] == plain[b, i, 4 - j, c]
        np.testing.assert_array_equal(d.batch(300, step, 0, flips=True), flipped)
        mirrored.append(~same)
    assert (mirrored[0] != mirrored[1]).any()


def test_alg1_batch_stays_on_the_device_of_the_images(gpu):
    d = data.load("digits")
    on_device = replace(d, train=to_device(d.train, "cuda"))
    for flips in False, True:
        x0 = on_device.batch(7, 5, 1, flips)
        assert is_cuda(x0) and x0.dtype == np.float32
        np.testing.assert_array_equal(to_host(x0), d.batch(7, 5, 1, flips))


# ---- the built-in sets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, total, shape, levels", [
    ("digits", 1797, (8, 8, 1), 17), ("mnist", 5000, (28, 28, 1), 256),
    ("mnist16", 5000, (16, 16, 1), 256), ("faces16", 6000, (16, 16, 3), 256)])
def test_built_in_sets(name, total, shape, levels):
    d = data.load(name)
    assert d.name == name and d.image_shape == shape and d.levels == levels and name in data.BUILT_IN
    assert d.train.dtype == d.held_out.dtype == np.uint8
    assert len(d.train) + len(d.held_out) == total and len(d.held_out) == total // 10
    assert d.train.min() == 0 and d.train.max() == levels - 1
    for part, expected in zip((d.train, d.held_out), tenths(data.sets._built_in(name)), strict=True):
        np.testing.assert_array_equal(part, expected)
    assert f"{total:,}" in data.BUILT_IN[name] or name == "mnist16"


def test_mnist16_is_padded_and_averaged_as_a_literal_loop_does():
    big, small = data.load("mnist").train, data.load("mnist16").train
    for n in (0, 1234, 4499):
        for i, j in np.ndindex(16, 16):
            inside = [(r, c) for r in (2 * i - 2, 2 * i - 1) for c in (2 * j - 2, 2 * j - 1) if 0 <= r < 28 and 0 <= c < 28]
            assert small[n, i, j, 0] == round(sum(int(big[n, r, c, 0]) for r, c in inside) / 4)


# ---- users' files, read back ------------------------------------------------------------------------------------------

GREY, COLOUR, THIRTYTWO = draw(23, 6, 5), draw(23, 6, 5, 3), draw(23, 32, 32, 3)
TALL = COLOUR.transpose(0, 2, 1, 3)


@pytest.mark.parametrize("name, content, images", [
    ("a-images.idx3-ubyte", idx(GREY), GREY), ("a.idx", idx(GREY), GREY),
    ("a-images-idx3-ubyte.gz", gzip.compress(idx(GREY)), GREY), ("a.bin", cifar(THIRTYTWO), THIRTYTWO),
    ("A.BIN.gz", gzip.compress(cifar(THIRTYTWO)), THIRTYTWO), ("a.npy", npy(GREY), GREY),
    ("a.NPY", npy(GREY[..., None]), GREY), ("a.npy.gz", gzip.compress(npy(COLOUR)), COLOUR),
    ("a.npy", npy(np.asfortranarray(COLOUR)), COLOUR), ("a.npz", npz(arr_0=COLOUR, x=GREY), COLOUR),
    ("a.npz", npz(y=np.arange(23), x=GREY), GREY), ("a.npz", npz(images=GREY, z=COLOUR), GREY),
    ("a.npz", npz(faces=COLOUR), COLOUR), ("a.npz", saved(np.savez_compressed, x=GREY), GREY),
    ("a.png", picture(GREY[0]), GREY[:1]), ("a.JPEG", picture(COLOUR[0]), COLOUR[:1])],
    ids="idx idx2 idx.gz cifar cifar.gz npy npy1 npy3 fortran arr_0 x images only compressed png mistaken".split())
def test_one_file(tmp_path, name, content, images):
    images = images if images.ndim == 4 else images[..., None]
    d = data.load(put(tmp_path / name, content))
    equal(d, *tenths(images))
    assert d.name == name and d.train.flags.writeable


@pytest.mark.parametrize("ending, form, options, images", [
    (".png", "PNG", {}, GREY), (".PNG", "PNG", {}, COLOUR), (".bmp", "BMP", {}, COLOUR), (".tif", "TIFF", {}, GREY),
    (".tiff", "TIFF", {}, COLOUR), (".ppm", "PPM", {}, COLOUR), (".pgm", "PPM", {}, GREY),
    (".webp", "WEBP", {"lossless": True}, COLOUR), (".gif", "GIF", {}, GREY)],
    ids="png png3 bmp tif tiff3 ppm pgm webp gif".split())
def test_folder_of_pictures_in_the_order_of_names_with_subfolders(tmp_path, ending, form, options, images):
    for k in reversed(range(len(images))):
        put(tmp_path / f"sub{k // 8}" / f"{k:03d}{ending}", picture(images[k], form, **options))
    put(tmp_path / "labels.csv", b"name,label\n")
    put(tmp_path / ".hidden.png", b"junk")
    images = images if images.ndim == 4 else images[..., None]
    train, held_out = (np.repeat(x, 3, 3) if form == "GIF" else x for x in tenths(images))      # GIF is always in colour
    equal(data.load(tmp_path), train, held_out)


def test_jpeg_folder_equals_what_pillow_decodes(tmp_path):
    for k, image in enumerate(COLOUR):
        put(tmp_path / f"{k:02d}.jpg", picture(image, "JPEG", quality=90))
    equal(data.load(tmp_path), *tenths(np.stack([np.array(Image.open(p).copy()) for p in sorted(tmp_path.iterdir())])))


def test_jpeg_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3                                                        # turned by 180 degrees
    plain, turned = (picture(COLOUR[0], "JPEG", **extra) for extra in ({}, {"exif": exif}))
    d = data.load(put(tmp_path, {"a.jpg": plain, "b.jpg": turned}))
    np.testing.assert_array_equal(d.train[1], d.train[0, ::-1, ::-1])


def test_transparent_pixels_are_shown_over_black(tmp_path):
    rgba = np.concatenate([COLOUR[0], np.array([[0, 255, 255, 0, 255]] * 6, np.uint8)[..., None]], axis=2)
    la = np.stack([GREY[0], rgba[..., 3]], axis=2)
    seen = rgba[..., 3:] > 0
    np.testing.assert_array_equal(data.load(put(tmp_path / "a", {"x.png": picture(rgba)})).train[0], rgba[..., :3] * seen)
    np.testing.assert_array_equal(data.load(put(tmp_path / "b", {"x.png": picture(la)})).train[0], la[..., :1] * seen)


def test_grey_pictures_become_colour_only_among_colour(tmp_path):
    d = data.load(put(tmp_path, {"a.png": picture(GREY[0]), "b.png": picture(COLOUR[0])}))
    equal(d, np.stack([np.stack([GREY[0]] * 3, axis=2), COLOUR[0]]), COLOUR[:0])


def test_pictures_are_not_held_out_by_their_names(tmp_path):
    names = "a.png", "t10k-images.png", "test_batch.png"
    d = data.load(put(tmp_path, {name: picture(GREY[k]) for k, name in enumerate(names)}))
    equal(d, GREY[:3, ..., None], GREY[:0, ..., None])


NOTES = {"readme.html": b"<html>", "batches.meta.txt": b"airplane\n"}
BATCHES = {"data_batch_1.bin": cifar(THIRTYTWO[:7]), "data_batch_2.bin": cifar(THIRTYTWO[7:13])}
TEST = {"test_batch.bin": cifar(THIRTYTWO[13:])}


def test_cifar_folder_and_tar_gz_hold_out_their_test_batch(tmp_path):
    files = {f"cifar-10-batches-bin/{name}": content for name, content in (NOTES | BATCHES | TEST).items()}
    equal(data.load(put(tmp_path / "folder", files)), THIRTYTWO[:13], THIRTYTWO[13:])
    equal(data.load(put(tmp_path / "c.tar.gz", gzip.compress(archive(files)))), THIRTYTWO[:13], THIRTYTWO[13:])
    equal(data.load(put(tmp_path / "c.tar", archive(dict(reversed(files.items()))))), THIRTYTWO[:13], THIRTYTWO[13:])


def test_cifar_batches_without_the_test_batch_and_the_test_batch_alone(tmp_path):
    equal(data.load(put(tmp_path / "a", BATCHES | NOTES)), *tenths(THIRTYTWO[:13]))
    equal(data.load(put(tmp_path / "b", TEST)), *tenths(THIRTYTWO[13:]))


@pytest.mark.parametrize("pack, suffix", [(bytes, ""), (gzip.compress, ".gz")])
def test_mnist_folder_holds_out_t10k(tmp_path, pack, suffix):
    files = {"train-images-idx3-ubyte": idx(GREY[:15]), "train-labels-idx1-ubyte": idx(draw(15)),
             "t10k-images-idx3-ubyte": idx(GREY[15:]), "t10k-labels-idx1-ubyte": idx(draw(8))}
    d = data.load(put(tmp_path, {name + suffix: pack(content) for name, content in files.items()}))
    equal(d, GREY[:15, ..., None], GREY[15:, ..., None])


def test_a_gz_beside_its_plain_twin_counts_once(tmp_path):
    equal(data.load(put(tmp_path, {"t.idx": idx(GREY), "t.idx.gz": gzip.compress(idx(GREY))})), *tenths(GREY[..., None]))


def test_labels_notes_and_arrays_beside_images_are_skipped(tmp_path):
    beside = {"labels.npy": npy(np.arange(3)), "l.pkl": PICKLE, "a-labels.idx": idx(draw(9)), "notes": b"", "notes.txt": b"x"}
    equal(data.load(put(tmp_path, beside | {"a.png": picture(GREY[0])})), GREY[:1, ..., None], GREY[:0, ..., None])


@given(n=st.integers(1, 30))
def test_every_tenth_image_is_held_out_and_none_is_in_both(n):
    x = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 1, 1, 1))
    train, held_out = tenths(x)
    assert not set(train.ravel()) & set(held_out.ravel()) and held_out.ravel().tolist() == [9, 19, 29][:n // 10]


# ---- users' files, broken ---------------------------------------------------------------------------------------------

BINARY = "cifar-10-binary.tar.gz"


def zipped(**files):
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w") as z:
        for name, content in files.items():
            z.writestr(name, content)
    return f.getvalue()


@pytest.mark.parametrize("name, content, found, expected", [
    ("x", b"", "is empty", "a folder of pictures"),
    ("x.npy", b"", "is empty", "a folder of pictures"),
    ("x.idx.gz", gzip.compress(b""), "is empty", "a folder of pictures"),
    ("x", b"hello world", "holds no images (found: 1 without an ending)", "MNIST idx"),
    ("x.csv", npy(GREY), "holds no images (found: 1 .csv)", "an .npz or .npy"),
    ("x.bin", cifar(THIRTYTWO)[:-1], f"is no CIFAR-10 batch ({23 * 3073 - 1} bytes)", "records of 3073 bytes"),
    ("x.bin", b"\x0a" + cifar(THIRTYTWO)[1:], "is no CIFAR-10 batch", "a label, 0 to 9"),
    ("x.idx", idx(GREY)[:-1], "of 23x6x5 values by its header, but 689 follow", "a whole file"),
    ("x.idx", idx(GREY) + b"x", "of 23x6x5 values by its header, but 691 follow", "a whole file"),
    ("x.idx", idx(GREY)[:9], "but 0 follow", "a whole file"),
    ("x.idx", b"\0\0\x0d\x03" + idx(GREY)[4:], "begins with 00 00 0d 03", "an idx file of uint8 values, so 00 00 08"),
    ("x.idx", npy(GREY), "begins with 93 4e 55 4d", "an idx file"),
    ("x.idx", b"\0", "begins with 00:", "an idx file"),
    ("x.idx", idx(draw(9)), "holds an array of shape (9,)", "(N,H,W)"),
    ("x.idx.gz", gzip.compress(idx(GREY))[:-30], "is a damaged .gz file (Compressed file ended", "a whole one"),
    ("x.gz", gzip.compress(b"hello"), "holds no images (found: 1 .gz)", "an .npz or .npy"),
    ("data_batch_1", PICKLE, "holds pickles, which can run code", BINARY),
    ("x.gz", gzip.compress(PICKLE), "holds pickles", BINARY),
    ("x.tar.gz", gzip.compress(archive({"a/data_batch_1": PICKLE, "a/readme.html": b"<html>"})), "holds pickles", BINARY),
    ("x", {"data_batch_1": PICKLE, "batches.meta": PICKLE}, "holds pickles", BINARY),
    ("x.tar", archive({"a.bin": cifar(THIRTYTWO)})[:9000], "is a damaged tar archive (unexpected end of data)", "a whole one"),
    ("x.tar.gz", b"hello", "is a damaged tar archive (truncated header)", "a whole one"),
    ("x.tar", archive(NOTES), "holds no images (found: 1 .txt, 1 .html)", "a folder of pictures"),
    ("x.tar", archive({"a.\x1b[2Jb\nc": b"x"}), "holds no images (found: 1 .?[2Jb?c)", "a folder of pictures"),
    ("x", {".keep": b""}, "holds no images (found: no files)", "a folder of pictures"),
    ("x", {"a.npy": npy(GREY), "b.npy": npy(GREY), "l.idx": idx(draw(9))}, "holds no images (found: 2 .npy, 1 .idx)", "a folder"),
    ("x", {"a.png": b"junk"}, "a.png is a damaged picture (cannot identify image file)", "one that opens"),
    ("x", {"a.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, "a.jpg is a damaged picture (cannot", "that opens"),
    ("x", {"a.PNG": b""}, "a.PNG is empty", "a folder of pictures"),
    ("x", {"a.png": picture(GREY[0]), "b.png": picture(GREY[1])[:-40]}, "b.png is a damaged picture (", "one that opens"),
    ("x", {"a.png": picture(GREY[0]), "b.png": picture(TALL[1]), "c.png": picture(TALL[2])}, "b.png is 5x6 pixels but", "size"),
    ("x", {"a.png": picture(THIRTYTWO[0][:8]), "data.bin": cifar(THIRTYTWO)}, "data.bin is 32x32 pixels but", "one size"),
    ("x", BATCHES | {"data_batch_2.bin": cifar(THIRTYTWO)[:5000]}, "_2.bin is no CIFAR-10 batch (5000 bytes)", "records"),
    ("x", {"a.png": picture(GREY[0].astype(np.uint16) * 257)}, "a.png has more than 8 bits a pixel (mode I", "8-bit"),
    ("x.npy", npy(GREY.astype(np.float32)), "holds float32 values", "uint8, 0 to 255"),
    ("x.npy", npy(GREY[0]), "holds an array of shape (6, 5)", "(N,H,W), (N,H,W,1) or (N,H,W,3)"),
    ("x.npy", npy(draw(5, 3, 6, 6)), "holds an array of shape (5, 3, 6, 6)", "(N,H,W,3)"),
    ("x.npy", npy(GREY[:0]), "holds an array of shape (0, 6, 5)", "not empty"),
    ("x.npy", npy(np.uint8(3)), "holds an array of shape ()", "(N,H,W)"),
    ("x.npy", npy(GREY)[:-1], "cannot be read as .npy or .npz (", "a whole file of uint8 arrays"),
    ("x.npy", npy(np.array([{}], dtype=object)), "cannot be read as .npy or .npz (Object arrays cannot be loaded", "uint8"),
    ("x.npy", PICKLE, "cannot be read as .npy or .npz (", "a whole file of uint8 arrays"),
    ("x.npz", npz(a=GREY, b=GREY), "holds a, b:", "an array named arr_0, x or images"),
    ("x.npz", npz(), "holds nothing:", "an array named arr_0, x or images"),
    ("x.npz", npz(x=np.array([{}], dtype=object)), "cannot be read as .npy or .npz (Object arrays", "a whole file"),
    ("x.npz", npz(x=GREY.astype(int)), "holds int64 values", "uint8"),
    ("x.npz", npz(x=GREY)[:-60], "cannot be read as .npy or .npz (", "a whole file"),
    ("x.npz", zipped(**{"a.txt": "hello"}), "holds a.txt:", "an array named arr_0, x or images"),
])
def test_bad_files_are_one_sentence_that_names_found_and_expected(tmp_path, name, content, found, expected):
    with pytest.raises(UserError) as e:
        data.load(put(tmp_path / name, content))
    sentence = str(e.value)
    assert sentence.startswith(str(tmp_path / name)) and "\n" not in sentence and " object at 0x" not in sentence
    assert found in sentence and expected in sentence.split(": expected ")[1]


@pytest.mark.parametrize("name", ["cat", "", "no/such/folder", "mnist\n", "nul\0", "x" * 5000])
def test_unknown_name_lists_the_built_in_sets(name):
    with pytest.raises(UserError) as e:
        data.load(name)
    assert str(e.value) == f"{name!r} is no built-in set (digits, mnist, mnist16, faces16) and no path that exists"


def test_what_is_neither_file_nor_folder():
    with pytest.raises(UserError, match="^/dev/null is neither a file nor a folder: expected a folder of pictures"):
        data.load("/dev/null")


def test_what_may_not_be_read(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(readers.Path, "read_bytes", refuse)
    path = put(tmp_path / "x.npy", npy(GREY))
    with pytest.raises(UserError, match="/x.npy cannot be read: Permission denied: expected a readable file"):
        data.load(path)


def test_a_built_in_name_wins_over_a_file_and_a_dot_slash_reaches_the_file(tmp_path, monkeypatch):
    put(tmp_path / "digits", {"a.png": picture(COLOUR[0])})
    monkeypatch.chdir(tmp_path)
    assert data.load("digits").levels == 17
    for path in ("./digits", readers.Path("digits")):
        equal(data.load(path), COLOUR[:1], COLOUR[:0])


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle ran')",)


@pytest.mark.parametrize("name", ["x", "x.npy", "x.npz", "x.idx", "x.bin", "x.png", "x.tar", "x.tar.gz"])
@pytest.mark.parametrize("content", [
    pickle.dumps(Bomb()), pickle.dumps(Bomb(), 0), npy(np.array([Bomb()], dtype=object)), npz(x=np.array([Bomb()], dtype=object)),
    {"data_batch_1": pickle.dumps(Bomb())}, {"data_batch_1.bin": pickle.dumps(Bomb())},
    archive({"data_batch_1": pickle.dumps(Bomb())})])
def test_no_pickle_is_ever_opened(tmp_path, name, content):
    with pytest.raises(UserError):
        data.load(put(tmp_path / name, content))


# ---- fuzz -------------------------------------------------------------------------------------------------------------

WHOLE = {
    "x.idx": idx(GREY), "x-ubyte.gz": gzip.compress(idx(GREY)), "x.bin": cifar(THIRTYTWO[:2]),
    "x.tar": archive(BATCHES), "x.tar.gz": gzip.compress(archive(BATCHES | TEST)), "x": PICKLE,
    "x.npy": npy(COLOUR), "x.npz": npz(x=GREY, y=COLOUR), "deflated.npz": saved(np.savez_compressed, x=GREY),
    "x.png": picture(COLOUR[0]), "x.jpg": picture(COLOUR[0], "JPEG"), "x.gif": picture(GREY[0], "GIF"),
    "x.bmp": picture(COLOUR[0], "BMP"), "x.tif": picture(GREY[0], "TIFF"), "x.webp": picture(COLOUR[0], "WEBP"),
}


def survives(path, content):
    try:
        dataset = data.load(put(path, content))
    except UserError as e:
        assert "\n" not in str(e) and ": expected " in str(e)
    else:
        assert dataset.train.dtype == np.uint8 and dataset.train.ndim == 4 and len(dataset.train)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", WHOLE)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draws=st.data())
def test_truncated_or_changed_files_raise_nothing_but_usererror(fuzzed, name, draws):
    content = bytearray(WHOLE[name])
    early = st.integers(0, min(300, len(content) - 1))                      # headers break more interestingly than pixels
    for place in draws.draw(st.lists(early | st.integers(0, len(content) - 1), max_size=4)):
        content[place] = draws.draw(st.integers(0, 255))
    survives(fuzzed / name, bytes(content[:draws.draw(st.just(len(content)) | early | st.integers(0, len(content)))]))


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(WHOLE)), magic=st.sampled_from([b"", *(c[:k] for c in WHOLE.values() for k in (2, 8))]),
       rest=st.binary(max_size=400))
def test_random_bytes_raise_nothing_but_usererror(fuzzed, name, magic, rest):
    survives(fuzzed / name, magic + rest)
