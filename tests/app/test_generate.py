"""generate.py: samples do not depend on how they are batched, films show the whole way, arrays are what FID tools read."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from minddpm import tree
from minddpm.app import pictures
from minddpm.app.generate import generate
from minddpm.app.pictures import Film, grid, to_uint8
from minddpm.diffusion import Schedule
from minddpm.errors import UserError
from minddpm.fast import Workers
from minddpm.model import Model
from minddpm.sample import image_noise, reverse_process, sample
from minddpm.unet import UNetConfig, init

S = Schedule.linear(12)
TINY = UNetConfig(8, 1, widths=(8, 16), blocks=1, attention=(1,), groups=4)


class Stub(Model):
    """A model whose output is elementwise, so that the same number comes out bit for bit in any batch."""

    def output(self, x_t, t):
        return 0.3 * x_t


def stub(channels=1, **how):
    return Stub(replace(TINY, image_size=4, in_channels=channels), {"conv_in": {"bias": np.zeros(1, np.float32)}}, S, **how)


def network(seed=0):
    """An untrained network with no layer at zero."""
    params, rng = init(TINY, seed), np.random.default_rng(seed)
    return Model(TINY, tree.map(lambda a: a + rng.normal(0, 0.05, a.shape).astype(np.float32), params), S)


def run(model, n, seed=0, threads=1, **more):
    with Workers(threads) as workers:
        return generate(model, n, seed, workers, **more)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("threads", [1, 3])
def test_alg2_samples_are_the_same_whatever_the_batch_and_the_number(batch, threads):
    whole = sample(S, stub().output, (7, 4, 4, 1), seed=5)
    for n in 1, 4, 7:
        x0 = run(stub(), n, 5, threads, batch=batch)
        assert x0.dtype == np.float32
        np.testing.assert_array_equal(x0, whole[:n])


@pytest.mark.parametrize("threads, batch", [(1, 1), (2, 64), (3, 5)])
def test_a_network_draws_the_same_images_to_rounding(threads, batch):
    model = network()
    np.testing.assert_allclose(run(model, 7, 3, threads, batch=batch), run(model, 9, 3, batch=9)[:7], atol=1e-5)
    np.testing.assert_allclose(run(model, 7, 3, threads, batch=batch), model.sample(7, 3), atol=1e-5)


def test_seeds_differ_and_images_of_a_seed_differ():
    a, b = run(stub(), 3, 0), run(stub(), 3, 1)
    images_of_both = [x.tobytes() for x in (*a, *b)]
    assert len(set(images_of_both)) == 6


@pytest.mark.parametrize("sigma2", ["beta", "beta_tilde"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("predicts", ["eps", "mu", "x0"])
def test_the_reverse_process_is_the_models(sigma2, clip, predicts):
    how = dict(sigma2=sigma2, clip=clip, predicts=predicts)
    expected = sample(S, stub().output, (3, 4, 4, 1), 0, **how)
    np.testing.assert_array_equal(run(stub(**how), 3), expected)
    others = dict(sigma2={"beta": "beta_tilde", "beta_tilde": "beta"}[sigma2], predicts="mu" if predicts == "eps" else "eps")
    for name, other in others.items():
        assert not np.array_equal(run(stub(**how | {name: other}), 3), expected), name


def test_on_step_sees_every_batch_on_its_whole_way(capsys):
    seen = []
    run(stub(), 5, batch=2, on_step=lambda k, t, x_t: seen.append((k, t, x_t.shape)))
    assert seen == [(k, t, (size, 4, 4, 1)) for k, size in ((0, 2), (2, 2), (4, 1)) for t in range(S.T, -1, -1)]
    assert capsys.readouterr().out == f"sample  step {3 * S.T}/{3 * S.T}  images 5-5 of 5  ETA 0:00\n"


@pytest.mark.parametrize("T", [1, 2, 7, 49, 50, 51, 100, 999, 1000, 4000])
def test_film_shows_the_noise_the_sample_and_evenly_what_is_between(T):
    film = Film(T)
    for k in 0, 4:                                                              # the second batch is not filmed
        for t in range(T, -1, -1):
            film(k, t, np.full((4, 2, 2, 1), 2 * t / T - 1))
    assert len(film.frames) == min(T, pictures.FRAMES) + 1
    x_t = [2 * t / T - 1 for t in range(T, -1, -1)]
    for frame, x in (film.frames[0], x_t[0]), (film.frames[-1], x_t[-1]):
        np.testing.assert_array_equal(frame, grid(to_uint8(np.full((4, 2, 2, 1), x))))
    if T > pictures.FRAMES:
        steps = -np.diff(sorted(film.times, reverse=True))
        assert steps.max() - steps.min() <= 1


def test_film_is_the_reverse_process(tmp_path):
    film, model = Film(S.T), stub(channels=3)
    run(model, 4, 7, on_step=film)
    way = [grid(to_uint8(x_t)) for _, x_t, _ in reverse_process(S, model.output, image_noise((4, 4, 4, 3), 7))]
    np.testing.assert_array_equal(film.frames, way)
    film.save(tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.n_frames == S.T + 1 and gif.size == way[0].shape[1::-1]


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_and_folders_for_fid_tools(tmp_path, channels):
    x = np.random.default_rng(0).integers(0, 256, (12, 4, 4, channels), dtype=np.uint8)
    pictures.save_npz(tmp_path / "x.npz", x)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0"] and arrays["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(arrays["arr_0"], x)
    pictures.save_png_folder(tmp_path / "pngs", x)
    paths = sorted((tmp_path / "pngs").iterdir())
    assert [p.name for p in paths] == [f"{k:06}.png" for k in range(12)]
    for path, image in zip(paths, x, strict=True):
        with Image.open(path) as file:
            assert file.mode == "RGB" and file.format == "PNG"
            np.testing.assert_array_equal(np.array(file), np.broadcast_to(image, (4, 4, 3)))


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    x, film = np.zeros((1, 4, 4, 1), np.uint8), Film(1)
    film(0, 0, x - 1.0)
    for save in (lambda p: pictures.save_npz(p, x), lambda p: pictures.save_png_folder(p, x), film.save):
        with pytest.raises(UserError, match="cannot be written: "):
            save(tmp_path / "file" / "below")


def test_a_failing_network_is_not_hidden(monkeypatch):
    def broken(self, x_t, t):
        raise ZeroDivisionError

    monkeypatch.setattr(Stub, "output", broken)
    for threads in 1, 2:
        with pytest.raises(ZeroDivisionError):
            run(stub(), 3, threads=threads)


def test_sampling_writes_to_no_weight():
    model = network()
    before = tree.map(np.copy, model.params)
    run(replace(model), 2)
    tree.map(np.testing.assert_array_equal, model.params, before)
