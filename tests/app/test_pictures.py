"""pictures.py: the grid against a literal loop, PNG and GIF read back, and files written atomically."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minddpm.app import pictures
from minddpm.data import scale
from minddpm.errors import UserError
from minddpm.storage import files


def draw(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_sec33_display_is_the_exact_inverse_of_the_scaling():
    k = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(pictures.to_uint8(scale(k)), k)


def test_sec33_seventeen_levels_are_spread_over_0_to_255():
    shown = pictures.to_uint8(scale(np.arange(17, dtype=np.uint8), 17), 17)
    assert shown.dtype == np.uint8 and shown.tolist() == [round(k * 255 / 16) for k in range(17)]
    assert pictures.to_uint8(np.array([-9, 0.01, 9]), 17).tolist() == [0, 128, 255]


@given(n=st.integers(1, 12), h=st.integers(1, 4), w=st.integers(1, 4), c=st.sampled_from([1, 3]),
       columns=st.integers(1, 12) | st.none(), enlarged=st.integers(1, 3), gap=st.integers(0, 2))
@settings(deadline=None, max_examples=60)
def test_grid_puts_each_pixel_where_a_literal_loop_does(n, h, w, c, columns, enlarged, gap):
    x = draw(n, h, w, c)
    picture = pictures.grid(x, columns, enlarged, gap)
    columns = min(n, columns or int(np.ceil(np.sqrt(n * h / w))))
    rows = -(-n // columns)
    height, width = (rows * (h + gap) - gap) * enlarged, (columns * (w + gap) - gap) * enlarged
    expected = np.full((height, width, c), pictures.BACKGROUND, np.uint8)
    for k in range(n):
        for i, j in np.ndindex(h * enlarged, w * enlarged):
            top, left = (k // columns) * (h + gap) * enlarged, (k % columns) * (w + gap) * enlarged
            expected[top + i, left + j] = x[k, i // enlarged, j // enlarged]
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize("n, shape", [(64, (8, 8, 1)), (64, (16, 16, 3)), (64, (32, 32, 3)), (1, (28, 28, 1)), (36, (16, 32, 3))])
def test_grid_is_nearly_square_and_about_512_pixels(n, shape):
    H, W, C = pictures.grid(draw(n, *shape)).shape
    assert 384 <= max(H, W) <= 640 and 0.7 < H / W < 1.4 and C == shape[2]


def test_grid_of_large_images_is_not_shrunk_and_of_none_is_refused():
    assert pictures.grid(draw(4, 600, 600, 3), gap=0).shape == (1200, 1200, 3)
    with pytest.raises(UserError, match="^a picture of 0 images cannot be drawn: expected at least 1$"):
        pictures.grid(draw(0, 8, 8, 1))


@pytest.mark.parametrize("shape, mode", [((7, 3), "L"), ((7, 3, 1), "L"), ((7, 5, 3), "RGB"), ((1, 1, 3), "RGB")])
def test_png_round_trip(tmp_path, shape, mode):
    picture, path = draw(*shape), tmp_path / "new" / "folders" / "p.picture"
    pictures.save_png(path, picture)
    with Image.open(path) as file:
        assert file.format == "PNG" and file.mode == mode
        np.testing.assert_array_equal(np.array(file), picture[..., 0] if shape[-1] == 1 else picture)
    assert [p.name for p in path.parent.iterdir()] == ["p.picture"]


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("shape", [(6, 3), (6, 4, 1), (6, 4, 3)])
def test_gif_has_the_frames_their_times_and_loops(tmp_path, shape, count):
    frames = [draw(*shape, seed=k) for k in range(count)]
    pictures.save_gif(tmp_path / "film.gif", frames, fps=20)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.format == "GIF" and getattr(film, "n_frames", 1) == count and film.size == (shape[1], shape[0])
        durations = []
        for k in range(count):
            film.seek(k)
            durations.append(film.info["duration"])
            frame = frames[k].reshape(*shape[:2], -1)
            np.testing.assert_array_equal(np.array(film.convert("RGB")), np.broadcast_to(frame, (*shape[:2], 3)))
        assert durations == [50] * (count - 1) + [pictures.LAST_FRAME]
        assert film.info["loop"] == 0


def test_gif_of_equal_frames_rests_for_the_sum_of_their_times(tmp_path):
    pictures.save_gif(tmp_path / "film.gif", [draw(4, 4)] * 3, fps=10)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.info["duration"] == 2 * 100 + pictures.LAST_FRAME


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_picture(tmp_path, monkeypatch, broken):
    old, path = draw(4, 4, 3), tmp_path / "p.png"
    pictures.save_png(path, old)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, broken, full_disk)
    with pytest.raises(UserError, match="p.png cannot be written: No space left on device$"):
        pictures.save_png(path, draw(4, 4, 3, seed=1))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["p.png"]


@pytest.mark.parametrize("path, reason", [("file/p.png", "File exists|Not a directory"), ("folder", "Is a directory")])
def test_a_place_that_cannot_be_written(tmp_path, path, reason):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"cannot be written: ({reason})$"):
        pictures.save_png(tmp_path / path, draw(4, 4))
