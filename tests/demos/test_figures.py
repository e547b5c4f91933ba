"""sample.py's progressive estimates and shared latents (Fig. 6, 7, 10, 14), what is measured of them, and the figures' demos."""

import importlib
import math
import sys
from pathlib import Path

import imageio.v3 as iio
import literal
import numpy as np
import oracles
import pytest

from minddpm import data
from minddpm.app import loop, run
from minddpm.diffusion import Schedule
from minddpm.errors import UserError
from minddpm.sample import progressive, reverse_process, sample, shared_latents

DEMOS = Path(__file__).parents[2] / "demos"
S = Schedule.linear(T=25, beta_1=0.01, beta_T=0.3)
LIKE = np.zeros(0)                      # float64


def wavy(x_t, t):
    """Some ε_θ that is not linear."""
    return np.sin(3 * x_t) + np.reshape(0.01 * t, (-1,) + (1,) * (x_t.ndim - 1)).astype(x_t.dtype)


# Fig. 6, 14: progressive generation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [True, False])
def test_fig06_is_eq15_at_every_x_t_of_algorithm_2(clip):
    x = dict(reverse_process(S, wavy, (2, 3), seed=5, clip=clip, like=LIKE))
    estimates = list(progressive(S, wavy, (2, 3), seed=5, clip=clip, like=LIKE))
    assert [t for t, _ in estimates] == list(range(25, 0, -1))
    outside = 0
    for t, x0_hat in estimates:
        for image in range(2):
            expected = np.array(literal.eq15(S.beta.tolist(), lambda x, t: wavy(np.array(x), t).tolist(),
                                             x[t][image].tolist(), t))
            outside += (np.abs(expected) > 1).sum()
            np.testing.assert_allclose(x0_hat[image], np.clip(expected, -1, 1) if clip else expected, rtol=1e-9, atol=1e-9)
    assert outside > 20                                                         # the clip has something to do


@pytest.mark.parametrize("predicts", ["eps", "mu", "x0"])
@pytest.mark.parametrize("clip", [True, False])
def test_fig06_the_last_frame_is_the_sample(clip, predicts):
    how = dict(clip=clip, predicts=predicts, sigma2="beta_tilde", like=LIKE)
    *_, (t, x0_hat) = progressive(S, wavy, (2, 3), 5, **how)
    assert t == 1
    np.testing.assert_allclose(x0_hat, sample(S, wavy, (2, 3), 5, **how), rtol=1e-9, atol=1e-12)


def test_fig06_of_one_known_image_is_that_image_from_the_first_step_on():
    x0 = np.linspace(-0.9, 0.9, 6).reshape(1, 6)
    for _, x0_hat in progressive(S, oracles.point(S, x0), (1, 6), 0, like=LIKE):
        np.testing.assert_allclose(x0_hat, x0, atol=1e-9)


def test_fig06_asks_the_network_once_a_step():
    seen = []
    list(progressive(S, lambda x_t, t: seen.append(t) or wavy(x_t, t), (2, 3), 0))
    assert seen == list(range(25, 0, -1))


def test_fig14_image_k_is_the_same_whatever_the_batch():
    whole = [x for _, x in progressive(S, wavy, (5, 2), 3)]
    part = [x for _, x in progressive(S, wavy, (2, 2), 3, first=3)]
    np.testing.assert_array_equal(np.stack(part), np.stack(whole)[:, 3:])


def test_fig10_estimates_spread_from_the_mean_of_the_data_to_the_data():
    """Gaussian data N(m, v): x̂_0 = E[x_0 | x_t] has variance v · ᾱ_t v / (ᾱ_t v + 1 − ᾱ_t) where x_t is as q has it."""
    s, m, v = Schedule.linear(), 0.3, 0.25
    spread = {t: x.std() for t, x in progressive(s, oracles.gaussian(s, m, v), (5, 1000), 0, clip=False, like=LIKE)
              if t in (1000, 700, 400, 100, 1)}
    for t, found in spread.items():
        signal = s.alpha_bar[t] * v
        assert found == pytest.approx(math.sqrt(v * signal / (signal + 1 - s.alpha_bar[t])), rel=0.05, abs=0.005), t
    assert list(spread.values()) == sorted(spread.values())


# Fig. 7: shared latents ---------------------------------------------------------------------------------------------------


def test_fig07_the_draws_share_x_t_exactly_and_nothing_else():
    trajectory, seen = dict(reverse_process(S, wavy, (2, 3), 7, like=LIKE)), []

    def eps_theta(x_t, t):
        seen.append((t, x_t.copy()))
        return wavy(x_t, t)

    found = list(shared_latents(S, eps_theta, (2, 3), 7, (5, 25, 12), 4, like=LIKE))
    assert [t for t, *_ in found] == [25, 12, 5]
    for t, x_t, x0 in found:
        np.testing.assert_array_equal(x_t, trajectory[t])
        starts = [x for at, x in seen if at == t and len(x) == 8]               # four draws of two images, one after another
        assert any((x == np.concatenate([x_t] * 4)).all() for x in starts)
        assert x0.shape == (4, 2, 3)
        assert len(np.unique(x0.reshape(8, 3), axis=0)) == 8
        assert not np.isclose(x0, sample(S, wavy, (2, 3), 7, like=LIKE)).all(axis=2).any()     # nor the trajectory's own end


def test_fig07_draws_follow_p_theta_given_x_t():
    """Gaussian data: x_0 given x_t is normal, its mean linear in x_t and its variance known; the draws are independent."""
    draws, D, t, m, v = 40, 100, 12, 0.5, 0.2
    [(_, x_t, x0)] = shared_latents(S, oracles.gaussian(S, m, v), (3, D), 2, [t], draws, clip=False, like=LIKE)
    A, C, V = 1.0, 0.0, 0.0
    for k in range(t, 0, -1):
        gain = S.beta[k] / (S.alpha_bar[k] * v + 1 - S.alpha_bar[k])
        a = (1 - gain) / math.sqrt(S.alpha[k])
        A, V = a * A, a * a * V + (S.beta[k] if k > 1 else 0)
        C = a * C + math.sqrt(S.alpha_bar[k]) * gain * m / math.sqrt(S.alpha[k])
    z = ((x0 - (A * x_t + C)) / math.sqrt(V)).swapaxes(1, 2).reshape(-1, 3)     # standard normal
    n = draws * D
    assert np.abs(z.mean(0)).max() < 5 / math.sqrt(n)
    assert np.abs((z**2).mean(0) - 1).max() < 5 * math.sqrt(2 / n)
    assert np.abs(np.corrcoef(z.T) - np.eye(3)).max() < 5 / math.sqrt(n)
    assert abs(np.mean(z.reshape(draws, D, 3)[1:] * z.reshape(draws, D, 3)[:-1])) < 5 / math.sqrt(3 * n)


@pytest.mark.parametrize("t", [25, 12])
def test_fig07_the_noise_after_x_t_is_not_the_noise_before_it(t):
    """Over many trajectories what the draws add to x_t has nothing to do with the trajectory's own noise, nor with each other."""
    shape, model = (40, 100), oracles.gaussian(S)
    x_T = next(reverse_process(S, model, shape, 1, like=LIKE))[1]
    [(_, x_t, x0)] = shared_latents(S, model, shape, 1, [t], 2, clip=False, like=LIKE)
    own = sample(S, model, shape, 1, clip=False, like=LIKE)
    slope = (x0 * x_t).mean() / (x_t**2).mean()
    correlation = np.corrcoef([x.ravel() for x in (x_T, own - slope * x_t, *(x0 - slope * x_t))])
    for draw in 2, 3:
        assert np.abs(np.delete(correlation[draw], draw)).max() < 5 / math.sqrt(x_t.size)


def test_fig07_the_smaller_t_is_the_more_the_draws_have_in_common():
    data_set = np.random.default_rng(0).choice([-0.8, 0.8], (40, 16))
    model = oracles.finite(S, data_set)
    spread = [x0.std(0).mean() for _, _, x0 in shared_latents(S, model, (6, 16), 0, (25, 15, 8, 2, 0), 8, like=LIKE)]
    assert spread == sorted(spread, reverse=True) and spread[0] > 0.5 and spread[-2] < 1e-6 and spread[-1] == 0


def test_fig07_trajectory_k_is_the_same_whatever_the_batch():
    whole = list(shared_latents(S, wavy, (4, 3), 5, (20, 6), 2))
    part = list(shared_latents(S, wavy, (2, 3), 5, (20, 6), 2, first=2))
    for (t, x_t, x0), (t_part, x_t_part, x0_part) in zip(whole, part, strict=True):
        assert t == t_part
        np.testing.assert_array_equal(x_t_part, x_t[2:])
        np.testing.assert_array_equal(x0_part, x0[:, 2:])


def test_fig07_refuses_a_t_that_is_none():
    with pytest.raises(ValueError, match=r"expected 0\.\.25"):
        list(shared_latents(S, wavy, (1, 2), 0, (26, 3), 1))


# The demos ----------------------------------------------------------------------------------------------------------------

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
