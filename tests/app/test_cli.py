"""cli.py: every command, every flag, and every kind of bad input: one sentence, exit code 2, nothing harmed."""

import argparse
import fcntl
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_run import CHILD, REQUESTED, child, ends, flags, one_sentence
from test_train import small

import minddpm
from minddpm import data, tree
from minddpm.app import cli, commands, loop, run, settings
from minddpm.app.pictures import grid
from minddpm.app.settings import Settings
from minddpm.fast.device import probe
from minddpm.unet import UNetConfig, init


@pytest.fixture(autouse=True)
def smaller(monkeypatch, tmp_path):
    """Small networks, and an empty current folder."""
    monkeypatch.setitem(settings.PRESETS, "tiny", lambda channels=1: small(channels, 0.0))
    monkeypatch.setitem(settings.PRESETS, "small",
                        lambda channels=1: UNetConfig(16, channels, widths=(8,), blocks=1, attention=(), groups=4))
    monkeypatch.delenv("MINDDPM_DEVICE", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def T8(monkeypatch):
    """The default of Settings.T is 8: a dataclass keeps its defaults in those of its __init__."""
    defaults = dict(zip((f.name for f in fields(Settings)), Settings.__init__.__defaults__, strict=True))
    monkeypatch.setattr(Settings.__init__, "__defaults__", tuple((defaults | dict(T=8)).values()))
    assert Settings().T == 8


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(settings.PRESETS, "tiny", lambda channels=1: small(channels, 0.0))
        assert loop.train(run.begin(folder, REQUESTED))
    return folder


def main(*words):
    return cli.main([str(word) for word in words])


def said(capsys, *words, code=0):
    assert main(*words) == code
    out, err = capsys.readouterr()
    assert "\r" not in out and (err == "" or code)
    return out


def files_here():
    return sorted(str(p) for p in Path().rglob("*"))


def parsers(parser=None, name="minddpm"):
    """Every command's name and parser."""
    parser = parser or cli._parser()
    subparsers = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    yield name, parser
    for action in subparsers:
        for word, p in action.choices.items():
            yield from parsers(p, f"{name} {word}")


PARSERS = dict(parsers())


# ---- what there is --------------------------------------------------------------------------------------------------------


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main("--version")
    assert end.value.code == 0 and capsys.readouterr().out == f"minddpm {minddpm.__version__}\n"


@pytest.mark.parametrize("name", PARSERS)
def test_every_command_and_every_flag_has_help(name):
    parser = PARSERS[name]
    assert parser.description
    parser.format_help()                                            # a stray % in a text would raise here
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            assert action.help and action.help[0] != " ", action
        else:
            assert len(action._choices_actions) == len(action.choices)
            for choice in action._choices_actions:
                assert choice.help, choice


@pytest.mark.parametrize("name, flags", [
    ("minddpm", "--version"),
    ("minddpm demo", "--out --minutes"),
    ("minddpm train", "--data --preset --steps --batch --lr --objective --seed --threads --device --save-every --out --dry-run "
                      "--resume"),
    ("minddpm sample", "-n --seed --batch --sigma2 --no-clip --out --gif --npz --png-dir"),
    ("minddpm data preview", ""),
    ("minddpm data list", ""),
])
def test_the_flags_of_design_section_6(name, flags):
    there = {flag for action in PARSERS[name]._actions for flag in action.option_strings}
    assert set(flags.split()) <= there


@pytest.mark.parametrize("f", fields(Settings), ids=lambda f: f.name)
def test_every_setting_is_a_flag_of_train(f):
    action = next(a for a in PARSERS["minddpm train"]._actions if a.dest == f.name)
    assert f"--{f.name.replace('_', '-')}" in action.option_strings
    assert f.metadata["help"] in action.help and action.default is None and not action.required
    assert (f"(default: {f.default})" in action.help) == (f.default is not None)


# ---- demo -----------------------------------------------------------------------------------------------------------------


def suggestions(out):
    """The command lines of `What to try next`, without the words that explain them."""
    lines = out[out.index("What to try next:"):].splitlines()[1:]
    return [re.split(r"\s{2,}", line.strip())[0] for line in lines]


def test_demo_trains_samples_and_says_what_to_try_next(capsys, monkeypatch, T8):
    out = said(capsys, "demo", "--out", "my demo", "--minutes", "0.003", "--threads", 2, "--device", "cpu")
    folder = Path("my demo").absolute()
    steps = settings.read(folder).steps
    assert re.search(rf"^[\d.]+ s a step on this machine: {steps} steps in 0.003 minutes, then 64 samples$", out, re.MULTILINE)
    assert f"run folder: {folder}\n" in out and f"{folder}/samples.png" in out and f"{folder}/reverse.gif" in out
    assert {"samples.png", "reverse.gif", run.STATE, "model_index.json", "unet"} <= {p.name for p in folder.iterdir()}
    with Image.open(folder / "samples.png") as picture:
        assert picture.size[0] == picture.size[1] >= 64 * 2 and picture.format == "PNG"
    with Image.open(folder / "reverse.gif") as film:
        assert film.n_frames == 9
    model = minddpm.load(folder)
    assert model.schedule.T == 8 and model.config.image_size == 16 and settings.read(folder).data == "mnist16"

    lines = suggestions(out)
    assert len(lines) == 4
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "minddpm"
        assert callable(cli._parser().parse_args(words).command)
    more, longer = (shlex.split(line)[1:] for line in lines[:2])
    said(capsys, *more)                                             # they do what they say
    assert f"step {2 * steps} of {2 * steps}" in said(capsys, *longer)

    weights = (folder / run.STATE).read_bytes()                     # a second demo goes on with the run, which is done
    again = said(capsys, "demo", "--out", "my demo", "--minutes", "1000")
    assert f"{folder} holds a run: going on with it" in again and f"resumed at step {2 * steps} of {2 * steps}" in again
    assert "device cpu: requested\n" in again                        # as saved, whatever --device is now
    assert (folder / run.STATE).read_bytes() == weights


def test_demo_goes_on_where_it_was_stopped(capsys, monkeypatch, T8):
    monkeypatch.setattr(commands, "seconds_per_step", lambda requested: 1.0)
    real = data.Dataset.batch

    def interrupted(dataset, size, step, *more):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        return real(dataset, size, step, *more)

    with monkeypatch.context() as patch:
        patch.setattr(data.Dataset, "batch", interrupted)
        out = said(capsys, "demo", "--minutes", "0.1", code=130)
    assert "stopped and saved: step 3 of 6" in out and "What to try next" not in out
    assert not Path("runs/demo/samples.png").exists()
    out = said(capsys, "demo", "--minutes", "0.1")
    assert "resumed at step 3 of 6" in out and Path("runs/demo/samples.png").exists()


# ---- train ----------------------------------------------------------------------------------------------------------------


def test_train_says_where_it_is_and_how_to_go_on(capsys):
    out = said(capsys, *flags(REQUESTED, "out"))
    folder = Path("out").absolute()
    assert out.splitlines()[0].startswith("device cpu: ")
    assert out.count(f"run folder: {folder}") == 1 and f"\nrun folder:  {folder}\n" in out
    assert f"\nresume it:   minddpm train --resume {folder} --steps 8\n" in out
    assert f"\nsample from: minddpm sample {folder}\n" in out
    assert f"resumed at step 4 of 8\n{''}" in said(capsys, "train", "--resume", "out", "--steps", 8)
    assert "trained: step 8 of 8" in said(capsys, "train", "--resume", folder)


def test_train_takes_every_setting(capsys):
    values = dict(data="digits", preset="tiny", steps=1, batch=3, lr=0.01, lr_final=0.001, warmup=2, grad_clip=0.5, ema=0.5,
                  dropout=0.1, flips=True, objective="simple", T=7, beta_schedule="quadratic", beta_1=0.001, beta_T=0.03,
                  sigma2="beta_tilde", seed=3, memory="checkpoint", threads=1, device="cpu", save_every=4, sample_every=0)
    assert values.keys() == {f.name for f in fields(Settings)}
    requested = Settings(**values)
    said(capsys, *flags(requested, "out"))
    assert settings.read("out") == requested


def test_train_without_out_finds_a_folder_of_its_own(capsys):
    words = flags(replace(REQUESTED, steps=1), "x")
    words[1:3] = []
    for name in "digits-simple", "digits-simple-2", "digits-simple-3":
        assert f"run folder: {Path('runs', name).absolute()}\n" in said(capsys, *words)


@pytest.mark.parametrize("more", [[], ["--out", "out"], ["--batch", 100, "--threads", 1]])
def test_dry_run_creates_nothing_on_the_disk(capsys, more):
    out = said(capsys, *flags(REQUESTED, "out")[:1], "--data", "digits", "--steps", 1000, "--dry-run", *more)
    assert files_here() == []
    assert f"{sum(a.size for a in tree.leaves(init(small(), 0))):,}" in out and "1618 images to train on, 179 held out" in out
    for f in fields(Settings):
        assert re.search(rf"^  {f.name} +\S", out, re.MULTILINE)
    assert re.search(r"^memory +about \d+ MB$", out, re.MULTILINE)
    assert re.search(r"^time +about \S+ s a step, (\d+:)?\d+:\d\d in all, on \d+ threads$", out, re.MULTILINE)


def test_a_schedule_that_leaves_x0_in_x_T_is_warned_of_before_the_training_and_in_the_dry_run(capsys):
    for more in [], ["--dry-run"]:
        for T, warned in (100, True), (1000, False):
            words = flags(replace(REQUESTED, T=T, steps=1), f"run-{T}")
            out = said(capsys, *words, *more)
            assert out.count("warning: the schedule leaves ᾱ_T = ") == warned
            assert not warned or f"at T = {T}: L_T is up to " in out


# ---- sample ---------------------------------------------------------------------------------------------------------------


def sampled(capsys, folder, *words):
    said(capsys, "sample", folder, "--npz", "x.npz", *words)
    with np.load("x.npz", allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0"]
        return arrays["arr_0"]


def test_sample_writes_all_that_is_asked_for(capsys, trained):
    x = sampled(capsys, trained, "-n", 5, "--batch", 3, "--out", "a/grid.png", "--gif", "b/film.gif", "--png-dir", "pngs")
    assert x.dtype == np.uint8 and x.shape == (5, 8, 8, 1)
    assert files_here() == ["a", "a/grid.png", "b", "b/film.gif", "pngs", *(f"pngs/{k:06}.png" for k in range(5)), "x.npz"]
    with Image.open("a/grid.png") as picture:
        np.testing.assert_array_equal(np.array(picture), grid(x)[..., 0])
    with Image.open("b/film.gif") as film:
        assert film.n_frames == REQUESTED.T + 1
    for k in range(5):
        with Image.open(f"pngs/{k:06}.png") as picture:
            assert picture.mode == "RGB"
            np.testing.assert_array_equal(np.array(picture), np.broadcast_to(x[k], (8, 8, 3)))


def test_sample_puts_its_grid_beside_the_model_and_says_so(capsys, trained):
    out = said(capsys, "sample", trained, "-n", 2)
    assert f"wrote {trained / 'samples.png'}" in out and (trained / "samples.png").exists()
    (trained / "samples.png").unlink()


def test_alg2_samples_are_the_same_whatever_n_batch_and_threads(capsys, trained):
    whole = sampled(capsys, trained, "-n", 9, "--batch", 64)
    for words in ["-n", 9, "--batch", 1], ["-n", 4, "--batch", 3, "--threads", 1], ["-n", 7, "--threads", 3]:
        x = sampled(capsys, trained, *words)
        assert np.abs(x.astype(int) - whole[:len(x)]).max() <= 1            # float32 sums in another order, then rounding
        assert np.mean(x != whole[:len(x)]) < 0.01


def test_seed_sigma2_and_no_clip_change_the_samples(capsys, trained):
    words = [["--seed", 0], ["--seed", 1], ["--sigma2", "beta_tilde"], ["--no-clip"]]
    assert len({sampled(capsys, trained, "-n", 2, *w).tobytes() for w in words}) == 4
    assert np.array_equal(sampled(capsys, trained, "-n", 2), sampled(capsys, trained, "-n", 2, "--sigma2", "beta", "--seed", 0))


def test_sample_draws_from_the_average_of_the_weights(capsys, trained):
    model = minddpm.load(trained)
    tree.map(np.testing.assert_array_equal, model.params, run.resume(trained).state.ema)
    minddpm.save("alone", model)                                            # a model's folder, without a run
    assert np.array_equal(sampled(capsys, "alone", "-n", 2), sampled(capsys, trained, "-n", 2))


# ---- data -----------------------------------------------------------------------------------------------------------------


def test_data_list(capsys):
    out = said(capsys, "data", "list")
    assert all(re.search(rf"^{name} +\S", out, re.MULTILINE) for name in data.BUILT_IN)


@pytest.mark.parametrize("name, shape, levels", [
    ("digits", "8x8x1", 17), ("mnist", "28x28x1", 256), ("mnist16", "16x16x1", 256), ("faces16", "16x16x3", 256)])
def test_data_preview(capsys, name, shape, levels):
    out = said(capsys, "data", "preview", name, "-n", 12)
    assert " images to train on, " in out and f"{shape}, {levels} levels\nwrote {Path(f'{name}.png').absolute()}\n" in out
    with Image.open(f"{name}.png") as picture:
        assert picture.mode == ("RGB" if shape.endswith("3") else "L")


def test_data_preview_of_ones_own_shows_them_spread_out(capsys):
    x = np.repeat(np.arange(20, dtype=np.uint8)[:, None, None] * 10, 9, 1).repeat(7, 2)
    np.save("mine.npy", x)
    assert "mine.npy: 18 images to train on, 2 held out, 9x7x1, 256 levels" in said(capsys, "data", "preview", "mine.npy",
                                                                                   "-n", 3, "--out", "p.png")
    with Image.open("p.png") as picture:
        np.testing.assert_array_equal(np.array(picture), grid(x[[0, 6, 13]][..., None])[..., 0])


# ---- bad input ------------------------------------------------------------------------------------------------------------


TRAIN = ["train", "--data", "digits", "--out", "out"]


@pytest.mark.parametrize("words, sentence", [
    ([*TRAIN, "--data", "digitz"], "'digitz' is no built-in set (digits, mnist, mnist16, faces16) and no path that exists"),
    ([*TRAIN, "--data", ""], "'' is no built-in set"),
    ([*TRAIN, "--data", "file"], "is empty: expected"),
    ([*TRAIN, "--preset", "small"], "data set digits has 8x8x1 images; preset small expects 16x16"),
    ([*TRAIN, "--batch", "5000"], "batch 5000 is larger than the training set of 1618 images"),
    ([*TRAIN, "--batch", "5000", "--dry-run"], "batch 5000 is larger than the training set of 1618 images"),
    ([*TRAIN, "--batch", "0"], "batch is 0; expected at least 1"),
    ([*TRAIN, "--lr", "nan"], "lr is nan; expected 0 to 1"),
    ([*TRAIN, "--lr", "1e38"], "lr is 1e+38; expected 0 to 1"),
    ([*TRAIN, "--steps", "-1"], "steps is -1; expected 1 to 1000000000"),
    ([*TRAIN, "--warmup", "1" + 400 * "0"], "expected 0 to 1000000000"),
    ([*TRAIN, "--T", "0"], "T is 0; expected 1 to 1000000"),
    ([*TRAIN, "--beta-T", "1"], "expected 0 < beta < 1 for t = 1..T"),
    ([*TRAIN, "--dropout", "1"], "dropout is 1.0; expected 0 to 0.99"),
    ([*TRAIN, "--seed", "-1"], "seed is -1; expected 0 to"),
    ([*TRAIN, "--threads", "0"], "threads is 0; expected 1 to 4096"),
    ([*TRAIN, "--device", "cuda"], "device is 'cuda', but CuPy is not installed"),
    ([*TRAIN, "--out", "full"], "full is not empty; choose another --out"),
    ([*TRAIN, "--out", "file"], "file is not empty; choose another --out"),
    ([*TRAIN, "--out", "file/run"], "cannot be written: "),
    ([*TRAIN, "--out", "/proc/run"], "cannot be written: "),
    ([*TRAIN, "--out", "x" * 300], "File name too long"),
    (["train", "--resume", "nowhere"], "nowhere holds no run to resume; expected a settings.json in it"),
    (["train", "--resume", ""], "holds no run to resume"),
    (["train", "--resume", "TRAINED", "--lr", "1"], "expected no other flag than --steps, found --lr"),
    (["train", "--resume", "TRAINED", "--seed", "0"], "expected no other flag than --steps, found --seed"),
    (["train", "--resume", "TRAINED", "--no-flips"], "expected no other flag than --steps, found --flips"),
    (["train", "--resume", "TRAINED", "--out", "x"], "expected no other flag than --steps, found --out"),
    (["train", "--resume", "TRAINED", "--dry-run"], "expected no other flag than --steps, found --dry-run"),
    (["train", "--resume", "TRAINED", "--steps", "3"], "has done 4; expected at least as many"),
    (["train", "--resume", "TRAINED", "--steps", "0"], "steps is 0; expected 1 to"),
    (["demo", "--out", "full"], "full is not empty; choose another --out"),
    (["demo", "--out", "file/run", "--minutes", "0.0001"], "cannot be written: "),
    (["demo", "--device", "cuda"], "device is 'cuda', but CuPy is not installed"),
    (["sample", "nowhere"], "nowhere is not a folder"),
    (["sample", "full"], "full has no model_index.json"),
    (["sample", "file"], "file is not a folder"),
    (["sample", "TRAINED", "-n", "0"], "-n is 0"),
    (["sample", "TRAINED", "-n", "-5"], "-n is -5"),
    (["sample", "TRAINED", "--batch", "0"], "--batch 0"),
    (["sample", "TRAINED", "-n", "1", "--out", "file/x.png"], "cannot be written: "),
    (["sample", "TRAINED", "-n", "1", "--out", "."], "cannot be written: "),
    (["sample", "TRAINED", "-n", "1", "--out", "ok.png", "--gif", "file/x.gif"], "cannot be written: "),
    (["sample", "TRAINED", "-n", "1", "--out", "ok.png", "--npz", "file/x.npz"], "cannot be written: "),
    (["sample", "TRAINED", "-n", "1", "--out", "ok.png", "--png-dir", "file"], "cannot be written: "),
    (["sample", "TRAINED", "--device", "cuda"], "device is 'cuda', but CuPy is not installed"),
    (["data", "preview", "digitz"], "'digitz' is no built-in set"),
    (["data", "preview", "full"], "holds no images"),
    (["data", "preview", "digits", "-n", "0"], "a picture of 0 images cannot be drawn"),
    (["data", "preview", "digits", "-n", "-1"], "a picture of 0 images cannot be drawn"),
    (["data", "preview", "digits", "--out", "file/p.png"], "cannot be written: "),
])
def test_bad_input_is_one_sentence(capsys, monkeypatch, trained, words, sentence):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr("minddpm.app.commands.seconds_per_step", lambda requested: requested.resolved((16, 16, 1)) and 1.0)
    probe.cache_clear()
    Path("file").touch()
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    assert main(*(str(trained) if word == "TRAINED" else word for word in words)) == 2
    assert sentence in one_sentence(capsys.readouterr().err)
    assert before == {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    assert set(files_here()) <= {"file", "full", "full/mine.txt", "ok.png"}
    probe.cache_clear()


@pytest.mark.parametrize("words, end", [
    ([], "the following arguments are required: COMMAND"),
    (["trian"], "invalid choice: 'trian'"),
    (["train", "--stepz", "5"], "unrecognized arguments: --stepz 5"),
    (["train", "--steps", "many"], "argument --steps: invalid int value: 'many'"),
    (["train", "--preset", "huge"], "argument --preset: invalid choice: 'huge'"),
    (["train", "--objective", "complex"], "argument --objective: invalid choice: 'complex'"),
    (["train", "--steps"], "argument --steps: expected one argument"),
    (["demo", "--minutes", "0"], "argument --minutes: '0'; expected a positive number of minutes"),
    (["demo", "--minutes", "nan"], "argument --minutes: 'nan'; expected a positive number of minutes"),
    (["demo", "--minutes", "five"], "argument --minutes: 'five'; expected a positive number of minutes"),
    (["demo", "--threads", "0"], "argument --threads: '0'; expected a whole number from 1 to 4096"),
    (["sample", "x", "--threads", "-1"], "argument --threads: '-1'; expected a whole number from 1 to 4096"),
    (["evaluate", "x", "--threads", "4097"], "argument --threads: '4097'; expected a whole number from 1 to 4096"),
    (["demo", "--seed", "-1"], "argument --seed: '-1'; expected a whole number from 0 to 2^63 - 1"),
    (["sample"], "the following arguments are required: DIR"),
    (["sample", "x", "--seed", "-1"], "argument --seed: '-1'; expected a whole number from 0 to 2^63 - 1"),
    (["sample", "x", "--seed", "one"], "argument --seed: 'one'; expected a whole number from 0 to 2^63 - 1"),
    (["sample", "x", "--sigma2", "1"], "argument --sigma2: invalid choice: '1'"),
    (["data"], "the following arguments are required: list|preview"),
])
def test_wrong_flags_end_with_code_2_too(capsys, words, end):
    with pytest.raises(SystemExit) as stopped:
        main(*words)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert re.match(r"minddpm( \w+)?: ", err) and end in err and err.count("\n") == 1      # without the usage
    assert out == "" and files_here() == []


def test_ctrl_c_outside_of_training_is_one_word(capsys, monkeypatch, trained):
    def interrupted(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "generate", interrupted)
    assert main("sample", trained) == 130
    assert one_sentence(capsys.readouterr().err) == "minddpm: stopped\n"


@pytest.mark.parametrize("error, sentence", [
    (PermissionError(13, "Permission denied", "/root/x"), "minddpm: /root/x: Permission denied\n"),
    (OSError(28, "No space left on device"), "minddpm: output: No space left on device\n"),
])
def test_errors_of_the_system_are_one_sentence_too(capsys, monkeypatch, error, sentence):
    def refused(name):
        raise error

    monkeypatch.setattr(data, "load", refused)
    assert main("data", "preview", "digits") == 2
    assert one_sentence(capsys.readouterr().err) == sentence


def test_a_mistake_of_ours_is_not_dressed_up_as_the_users(monkeypatch):
    def wrong(name):
        raise ZeroDivisionError

    monkeypatch.setattr(data, "load", wrong)
    with pytest.raises(ZeroDivisionError):
        main("data", "preview", "digits")


# ---- terminals and pipes ----------------------------------------------------------------------------------------------------


def test_the_installed_command():
    for command in [Path(sys.executable).with_name("minddpm")], [sys.executable, "-m", "minddpm"]:
        done = subprocess.run([*command, "sample", "nowhere"], capture_output=True, text=True)
        assert done.returncode == 2 and done.stdout == ""
        assert one_sentence(done.stderr) == ("minddpm: nowhere is not a folder; expected a model's or a run's folder, "
                                             "with model_index.json in it\n")


def test_a_pipe_gets_plain_lines():
    out, err = ends(child(*flags(REQUESTED, "out")), 0)
    assert "\r" not in out + err and "\x1b" not in out and err == ""
    assert re.search(r"^train  step 4/4  loss [\d.]+  grad norm [\d.]+  lr \S+  \d+ images/s  ETA 0:00$", out, re.MULTILINE)


@pytest.mark.parametrize("columns", [0, 60, 120])                      # 0: a container's or a serial terminal does not know
def test_a_terminal_gets_a_bar(columns):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {k: value for k, value in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen([sys.executable, "-c", CHILD.format(""), *flags(REQUESTED, "out")], stdout=theirs, stderr=theirs,
                               env=env)
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 4096):
            shown += block
    except OSError:                                                 # Linux's way to say that the other side is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0
    text = shown.decode()
    assert "\r" in text.replace("\r\n", "\n") and "4/4" in text and "100%" in text
    assert max(len(line) for line in re.split("\r|\n", text) if line.startswith("train:")) <= (columns or 80)
    if columns == 120:
        assert "loss " in text and "grad norm " in text and "images/s" in text
    assert "step 4/4" not in text and "trained: step 4 of 4" in text


def test_a_reader_that_stops_reading_is_no_traceback():
    process = child("data", "list", env={**os.environ, "PYTHONUNBUFFERED": "1"}, code="sys.stdin.read()", stdin=subprocess.PIPE)
    process.stdout.close()
    process.stdin.close()
    assert process.wait(60) == 2
    assert one_sentence(process.stderr.read()) == "minddpm: the output was closed before all of it was written\n"
    process.stderr.close()


@pytest.mark.parametrize("words", [["train", "--help"], ["sample", "--help"], ["data", "list"]])
def test_a_terminal_without_greek(words):
    assert ends(child(*words, env={**os.environ, "PYTHONIOENCODING": "ascii"}), 0)[0].isascii()
