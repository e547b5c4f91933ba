"""The figures' demos: the sheets that they draw, what they measure, and what they refuse."""

import importlib
import sys
from pathlib import Path

import imageio.v3 as iio
import literal
import numpy as np
import pytest

from minddpm import data
from minddpm.app import loop, run
from minddpm.errors import UserError
from minddpm.sample import progressive

DEMOS = Path(__file__).parents[2] / "demos"

SHEETS = {  # demo: rows and columns of images of its sheet, with -n 2
    "fig6_progressive": (2, 11),
    "fig7_shared_latents": (2, 4),
    "fig8_interpolation": (2, 13),
    "fig9_coarse_to_fine": (18, 13),
    "fig12_nearest_neighbours": (2, 11),
}


@pytest.fixture(scope="module")
def demos():
    """The demos as modules, by name."""
    sys.path.insert(0, str(DEMOS))
    try:
        modules = {name: importlib.import_module(name) for name in ("common", *SHEETS, "fig10_quality_over_time")}
    finally:
        sys.path.remove(str(DEMOS))
    yield modules
    for name in modules:
        del sys.modules[name]


@pytest.fixture(scope="module")
def toy(demos, tmp_path_factory):
    """The run that --smoke trains, in a folder that stays."""
    toy = run.begin(tmp_path_factory.mktemp("figures") / "run", demos["common"].SMOKE)
    assert loop.train(toy)
    return str(toy.folder)


@pytest.fixture
def shown(demos, monkeypatch):
    """What the demos put on their sheets: lists of (x, columns, rows)."""
    sheets, sheet = [], demos["common"].sheet

    def recorded(path, x, columns, caption, rows=(), **more):
        sheets.append((x, columns, rows))
        sheet(path, x, columns, caption, rows, **more)

    monkeypatch.setattr(demos["common"], "sheet", recorded)
    return sheets


@pytest.mark.parametrize("name", SHEETS)
def test_figures_demo_draws_its_sheet(demos, toy, shown, tmp_path, name):
    demos[name].main(["--run", toy, "--out", str(tmp_path / "f.png"), "-n", "2"])
    picture = iio.imread(tmp_path / "f.png")
    assert picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8
    assert (picture[0] == 255).all() and 0 < picture.mean() < 255
    [(x, columns, rows)] = shown
    assert x.shape[:2] == SHEETS[name] and x.shape[4] == 1
    assert len(columns) == x.shape[1] and len(rows) in (0, x.shape[0])
    assert np.isfinite(x).all()


def test_fig06_demo_shows_the_estimates_of_its_model(demos, toy, shown, tmp_path):
    demos["fig6_progressive"].main(["--run", toy, "--out", str(tmp_path / "f.png"), "-n", "2", "--seed", "3"])
    [(x, columns, _)] = shown
    assert columns[0] == "t = 20" and columns[-1] == "t = 1"
    model = demos["common"].load(toy)
    for t, x0_hat in progressive(model.schedule, model.output, (2, 8, 8, 1), 3, **model.how):
        if f"t = {t}" in columns:
            np.testing.assert_allclose(x[:, columns.index(f"t = {t}")], x0_hat, atol=1e-4)


def test_fig08_fig09_demo_rows_begin_and_end_with_their_sources(demos, toy, shown, tmp_path):
    held_out = data.scale(data.load("digits").held_out, 17)
    demos["fig8_interpolation"].main(["--run", toy, "--out", str(tmp_path / "f.png"), "-n", "2"])
    demos["fig9_coarse_to_fine"].main(["--run", toy, "--out", str(tmp_path / "f.png")])
    for x, columns, _ in shown:
        assert columns[0] == columns[-1] == "source" and columns[1] == columns[-2] == "rec."
        assert all((held_out == source).all((1, 2, 3)).any() for source in (*x[:, 0], *x[:, -1]))
        assert not (x[:, 0] == x[:, -1]).all((1, 2, 3)).any()
    x, columns, rows = shown[1]
    assert rows == ["t = 0", "t = 2", "t = 5", "t = 7", "t = 10", "t = 12", "t = 15", "t = 17", "t = 20"]
    np.testing.assert_array_equal(x[0, 1], x[0, 0])                             # at t = 0 the reconstruction is the source
    np.testing.assert_allclose(x[0, 6], 0.5 * x[0, 0] + 0.5 * x[0, -1], atol=1e-6)
    assert (x[:, 0] == x[0, 0]).all() and (x[:, -1] == x[0, -1]).all()


def test_fig10_demo_measures_the_estimates_beside_held_out_images_and_noise(demos, toy, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    demos["fig10_quality_over_time"].main(["--run", toy, "--out", str(tmp_path / "f.png"), "-n", "20"])
    assert iio.imread(tmp_path / "f.png").shape[:2] > (300, 300)
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if len(line.split()) == 2 and line.split()[0].isdecimal()]
    assert [int(t) for t, _ in table] == list(range(20, 0, -1))
    noise, held_out = (float(line.split()[0]) for line in lines if "for as many" in line)
    assert held_out < noise and all(float(d) > held_out for _, d in table)      # a toy of ten steps is no match for real images


def test_fig12_neighbours_are_those_of_a_search_by_hand(demos):
    rng = np.random.default_rng(0)
    x, images = rng.standard_normal((3, 2, 2, 1)), rng.standard_normal((30, 2, 2, 1))
    images[17] = x[1]
    found = demos["fig12_nearest_neighbours"].neighbours(x, images, 4)
    for k in range(3):
        by_hand = sorted(range(30), key=lambda i, k=k: literal.norm2((x[k] - images[i]).ravel().tolist()))
        assert found[k].tolist() == by_hand[:4]
    assert found[1, 0] == 17


def test_fig15_a_copied_training_image_finds_itself(demos, toy, shown, tmp_path, monkeypatch):
    train = data.scale(data.load("digits").train, 17)
    demo = demos["fig12_nearest_neighbours"]
    monkeypatch.setattr(demo, "generate", lambda *args, **how: train[[5, 900]].copy())
    demo.main(["--run", toy, "--out", str(tmp_path / "f.png"), "-n", "2"])
    [(x, columns, rows)] = shown
    assert rows == ["0", "0"]
    for column in "sample", "pixels 1", "PCA 1":
        np.testing.assert_array_equal(x[:, columns.index(column)], train[[5, 900]])


def test_figures_demo_says_what_is_wrong(demos, toy, tmp_path, monkeypatch, capsys):
    out = ["--out", str(tmp_path / "f.png")]
    for name, arguments, message in [
        ("fig6_progressive", ["--run", str(tmp_path / "none")], "none"),
        ("fig6_progressive", ["--run", toy, "-n", "0"], "-n is 0; expected at least 1"),
        ("fig8_interpolation", ["--run", toy, "-n", "100"], "200 held-out images, but digits has 179"),
        ("fig8_interpolation", ["--run", toy, "--t", "21"], r"--t is 21; expected 0\.\.20"),
    ]:
        with pytest.raises(UserError, match=message):
            demos[name].main(arguments + out)
    with pytest.raises(SystemExit) as stopped:
        demos["common"].start(lambda: demos["fig6_progressive"].main(["--run", toy, "-n", "0"]))
    assert stopped.value.code == 2 and "expected at least 1" in capsys.readouterr().err
    assert not (tmp_path / "f.png").exists()


def test_figures_demo_trains_the_demo_run_where_there_is_none(demos, toy, tmp_path, monkeypatch):
    """Without --run it is runs/demo, and `minddpm demo` makes that."""
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demos["common"].cli, "main", lambda argv: calls.append(argv) or Path("runs").mkdir() or
                        Path("runs/demo").symlink_to(toy))
    for _ in range(2):
        demos["fig6_progressive"].main(["--out", "f.png", "-n", "1"])
    assert calls == [["demo", "--out", "runs/demo", "--device", "auto"]]
    monkeypatch.setattr(demos["common"].cli, "main", lambda argv: 130)
    Path("runs/demo").unlink()
    with pytest.raises(SystemExit) as stopped:
        demos["fig6_progressive"].main([])
    assert stopped.value.code == 130


@pytest.mark.parametrize("name", ["fig6_progressive", pytest.param("fig10_quality_over_time", marks=pytest.mark.slow)])
def test_figures_demo_smoke_needs_nothing(demos, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    demos[name].main(["--smoke"])
    assert [f.name for f in tmp_path.iterdir()] == [f"{name}.png"]
