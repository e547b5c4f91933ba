"""run.py, loop.py: a run's folder, and what becomes of it when the run is killed or stopped, the disk full, or the input wrong.

Whatever happens, a resumed run ends as an uninterrupted one: every file bit for bit, log.csv up to the speed.
"""

import csv
import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_resume import everything
from test_train import small

import minddpm
from minddpm import data, tree
from minddpm.app import cli, commands, loop, run, settings
from minddpm.app.generate import generate
from minddpm.app.pictures import grid, to_uint8
from minddpm.app.settings import Settings
from minddpm.errors import UserError
from minddpm.fast import Workers
from minddpm.fast.device import probe
from minddpm.storage import files
from minddpm.storage.weights import to_file_layout

REQUESTED = Settings(data="digits", batch=4, lr=1e-3, warmup=3, steps=4, ema=0.9, T=8, threads=2, dropout=0.2, flips=True,
                save_every=2, sample_every=0)
LONG = replace(REQUESTED, steps=24, save_every=7)

# A fresh interpreter with the small network, and whatever else a test wants to go wrong in it.
CHILD = """
import os, signal, sys, time
from pathlib import Path
from minddpm.app import cli, loop, run, settings
from minddpm.storage import files
from minddpm.unet import UNetConfig
settings.PRESETS["tiny"] = lambda channels=1: UNetConfig(8, channels, widths=(8, 16), blocks=1, attention=(1,), groups=4)
def die(): os.kill(os.getpid(), signal.SIGKILL)
{}
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def smaller(monkeypatch):
    monkeypatch.setitem(settings.PRESETS, "tiny", lambda channels=1: small(channels, 0.0))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What uninterrupted runs leave behind, by their settings."""
    done = {}

    def whole(requested):
        if requested not in done:
            folder = tmp_path_factory.mktemp("whole") / "run"
            assert loop.train(run.begin(folder, requested))
            done[requested] = everything(folder)
        return done[requested]

    return whole


def flags(requested, folder):
    given = {name: value for name, value in asdict(requested).items() if value is not None and name != "flips"}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    return ["train", "--out", str(folder), *words, "--flips" if requested.flips else "--no-flips"]


def child(*words, code="", **more):
    command = [sys.executable, "-c", CHILD.format(code), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def ends(process, code):
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    return out, err


def one_sentence(err):
    assert err.startswith("minddpm: ") and err.count("\n") == 1 and err.endswith("\n"), err
    return err


def go_on(folder):
    """What a person would do: resume it, or begin it again where there is nothing to resume."""
    current = run.resume(folder) if (folder / "settings.json").exists() else run.begin(folder, REQUESTED)
    assert loop.train(current)
    return everything(folder)


def rows(folder):
    with open(folder / "log.csv", newline="") as f:
        return list(csv.DictReader(f))


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_what_a_run_leaves_in_its_folder(tmp_path):
    requested = replace(LONG, sample_every=12)
    current = run.begin(tmp_path / "a" / "run", requested)
    assert current.folder.is_absolute() and current.settings == settings.read(current.folder) == requested.resolved((8, 8, 1))
    assert loop.train(current)
    assert sorted(str(p.relative_to(current.folder)) for p in current.folder.rglob("*") if p.is_file()) == [
        "log.csv", "model_index.json", "samples/step_0000012.png", "samples/step_0000024.png", "scheduler/scheduler_config.json",
        "settings.json", "training_state.safetensors", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    model = minddpm.load(current.folder)
    assert model.config == current.config and model.sigma2 == current.settings.sigma2 == "beta"
    np.testing.assert_array_equal(model.schedule.beta, requested.schedule().beta)
    tree.map(np.testing.assert_array_equal, model.params, current.state.ema)
    assert not np.array_equal(model.params["conv_in"]["weight"], current.state.params["conv_in"]["weight"])
    for picture in (current.folder / "samples").iterdir():
        with Image.open(picture) as image:
            assert image.size[0] == image.size[1] and image.mode == "L"
    with Workers(2) as workers:
        x0 = generate(current.model, loop.PICTURE, requested.seed, workers)
    with Image.open(current.folder / "samples" / "step_0000024.png") as image:
        np.testing.assert_array_equal(np.array(image), grid(to_uint8(x0))[..., 0])


def test_the_training_state_reads_back_as_it_was(tmp_path):
    current = run.begin(tmp_path / "run", LONG)
    assert loop.train(current)
    with safe_open(current.folder / run.STATE, framework="numpy") as file:
        assert file.metadata()["step"] == "24" and len(file.metadata()["losses"].split()) == 4
    again = run.resume(current.folder)
    assert again.state.step == 24 and again.losses == current.losses and len(again.losses) == 4
    for name in "params", "m", "v", "ema":
        tree.map(np.testing.assert_array_equal, getattr(again.state, name), getattr(current.state, name))


def test_log_holds_every_tenth_step_with_the_mean_loss_since_the_last_row(tmp_path, monkeypatch):
    seen, real = [], loop.training_steps
    monkeypatch.setattr(loop, "training_steps", lambda *args: (seen.append(metrics) or metrics for metrics in real(*args)))
    assert loop.train(run.begin(tmp_path / "run", LONG))
    log = rows(tmp_path / "run")
    assert list(log[0]) == list(run.LOG_COLUMNS) and [row["step"] for row in log] == ["10", "20"]
    for row, steps in zip(log, (seen[:10], seen[10:20]), strict=True):
        assert float(row["loss"]) == pytest.approx(np.mean([metrics.loss for metrics in steps]), abs=1e-6)
        assert float(row["grad_norm"]) == pytest.approx(steps[-1].grad_norm, abs=1e-6)
        assert float(row["lr"]) == pytest.approx(steps[-1].lr, rel=1e-5)
        assert float(row["images_per_s"]) > 0


@pytest.mark.parametrize("save_every, saves", [(0, [4]), (1, [1, 2, 3, 4]), (3, [3, 4]), (4, [4]), (100, [4])])
def test_save_every(tmp_path, monkeypatch, save_every, saves):
    seen, real = [], run.save_run
    monkeypatch.setattr(loop, "save_run", lambda current: (seen.append(current.state.step), real(current)))
    assert loop.train(run.begin(tmp_path / "run", replace(REQUESTED, save_every=save_every)))
    assert seen == saves


def test_training_leaves_signal_handlers_as_they_were(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    loop.train(run.begin(tmp_path / "run", replace(REQUESTED, steps=1)))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_training_in_another_thread_than_the_main_one(tmp_path, whole):
    thread = threading.Thread(target=lambda: loop.train(run.begin(tmp_path / "run", REQUESTED)))
    thread.start()
    thread.join()
    assert everything(tmp_path / "run") == whole(REQUESTED)


# ---- killed ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: after it the program makes no system call any more."""


@pytest.mark.parametrize("moment", range(1, 12))
def test_killed_before_each_file_is_renamed_and_resumed(tmp_path, monkeypatch, whole, moment):
    """settings.json, then twice the state and the model's four files."""
    calls = 0

    def replace_(*args):
        nonlocal calls
        calls += 1
        if calls == moment:
            patch.setattr(Path, "unlink", dead)
            raise Killed
        return real(*args)

    def dead(*args, **kwargs):
        raise Killed

    real = os.replace
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", replace_)
        loop.train(run.begin(tmp_path / "run", REQUESTED))
    assert list(tmp_path.rglob(".*.part"))
    if moment > 6:
        assert minddpm.load(tmp_path / "run").config == small(dropout=0.2)              # once it is whole it stays loadable
        assert run.resume(tmp_path / "run").state.step == (4 if moment > 7 else 2)
    assert go_on(tmp_path / "run") == whole(REQUESTED)


HALF = """
class Half:
    def __init__(self, path, mode): self.file = open.__call__(path, mode)
    def __enter__(self): return self
    def __exit__(self, *error): self.file.close()
    def __getattr__(self, name): return getattr(self.file, name)
    def write(self, data):
        if run.STATE in self.file.name and Path(sys.argv[3], run.STATE).exists():
            self.file.write(data[:len(data) // 2]); self.file.flush(); die()
        self.file.write(data)
files.open = Half
"""
NTH = """
calls, real = 0, os.{0}
def counting(*args):
    global calls
    calls += 1
    if calls == {1}: die()
    return real(*args)
os.{0} = counting
"""


@pytest.mark.parametrize("code, kept", [
    (NTH.format("fsync", 1), None),                                     # settings.json is being written
    (NTH.format("replace", 2), 0),                                      # the first state is written but has no name yet
    (HALF, 2),                                                          # in the middle of the second state
    (NTH.format("replace", 8), 4),                                      # the second state is there, its model is not
])
def test_sigkill_while_writing_and_resumed(tmp_path, whole, code, kept):
    ends(child(*flags(REQUESTED, tmp_path / "run"), code=code), -signal.SIGKILL)
    if kept is None:
        assert not (tmp_path / "run" / "settings.json").exists()
    else:
        assert run.resume(tmp_path / "run").state.step == kept
    assert go_on(tmp_path / "run") == whole(REQUESTED)


WAITS = """
real = loop.update_by
def handlers(): return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
def waits(workers):
    def update(settings, state, gradient):
        before = handlers()
        while state.step == 12 and handlers() == before: time.sleep(0.01)       # a first signal gives its handler back
        return real(workers)(settings, state, gradient)
    return update
loop.update_by = waits
"""


def running(folder, requested=LONG):
    """A process in the middle of its training, which takes 13 steps and waits for a signal in the last of them."""
    process = child(*flags(requested, folder), code=WAITS)
    deadline = time.monotonic() + 60
    while not (folder / "log.csv").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_sigkill_while_training_and_resumed(tmp_path, whole):
    process = running(tmp_path / "run")
    process.kill()
    ends(process, -signal.SIGKILL)
    assert run.resume(tmp_path / "run").state.step == 7
    assert go_on(tmp_path / "run") == whole(LONG)


def test_a_run_stopped_before_its_first_save_begins_again(tmp_path, whole):
    run.begin(tmp_path / "run", REQUESTED)
    assert run.resume(tmp_path / "run").state.step == 0
    assert go_on(tmp_path / "run") == whole(REQUESTED)


# ---- stopped ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_printed_line_resumes(tmp_path, whole, capsys, number):
    folder = tmp_path / "my run's"                                      # a shell needs quotes for it
    process = running(folder)
    process.send_signal(number)
    out, err = ends(process, 130)
    stopped = run.resume(folder)
    assert err == "" and 10 <= stopped.state.step <= 13
    assert f"stopped and saved: step {stopped.state.step} of 24" in out
    line = next(line for line in out.splitlines() if line.startswith("resume it:"))
    program, *words = shlex.split(line.removeprefix("resume it:"))
    assert program == "minddpm" and cli.main(words) == 0
    assert f"resumed at step {stopped.state.step} of 24" in capsys.readouterr().out
    assert everything(folder) == whole(LONG)                            # log.csv too: the stop was between two of its rows
    assert [row["step"] for row in rows(folder)] == ["10", "20"]


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    hang = "def hang(*args): Path(sys.argv[3], 'hangs').touch(); time.sleep(600)\nloop.update_by = lambda workers: hang"
    process = child(*flags(REQUESTED, tmp_path / "run"), code=hang)
    while not (tmp_path / "run" / "hangs").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None                                       # the first one waits for the step
    process.send_signal(signal.SIGINT)
    assert one_sentence(ends(process, 130)[1]) == "minddpm: stopped\n"
    assert run.resume(tmp_path / "run").state.step == 0


def test_ctrl_c_before_the_first_step_leaves_a_run_that_resumes(tmp_path, monkeypatch, whole):
    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    real = loop.training_steps
    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_steps", interrupted)
        current = run.begin(tmp_path / "run", REQUESTED)
        assert not loop.train(current)
    assert current.state.step <= 1
    assert go_on(tmp_path / "run") == whole(REQUESTED)


# ---- going on --------------------------------------------------------------------------------------------------------


def test_more_steps_train_longer_and_the_same_steps_change_nothing(tmp_path):
    assert loop.train(run.begin(tmp_path / "run", REQUESTED))
    before = everything(tmp_path / "run")
    assert loop.train(run.resume(tmp_path / "run", steps=4))
    assert everything(tmp_path / "run") == before
    longer = run.resume(tmp_path / "run", steps=12)
    assert loop.train(longer) and longer.state.step == 12
    assert settings.read(tmp_path / "run").steps == run.resume(tmp_path / "run").state.step == 12


def test_a_folder_in_the_older_form_resumes(tmp_path, monkeypatch, whole):
    """Older versions wrote the step and the losses as one string, and numbers of the settings as given."""
    requested, folder = replace(LONG, save_every=13), tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 19)
        loop.train(run.begin(folder, requested))
    with safe_open(folder / run.STATE, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["step"] == "13" and len(metadata["losses"].split()) == 3
    save_file(load_file(folder / run.STATE), folder / run.STATE, {"step": f"13 {metadata['losses']}"})
    (folder / "settings.json").write_text("""{
  "data": "digits", "preset": "tiny", "steps": 24, "batch": 4, "lr": 0.001, "lr_final": null, "warmup": 3, "grad_clip": 1.0,
  "ema": 0.9, "dropout": 0.2, "flips": true, "objective": "simple", "T": 8, "beta_schedule": "linear", "beta_1": 0.0001,
  "beta_T": 0.02, "sigma2": "beta", "seed": 0, "memory": "keep", "threads": 2, "device": "auto", "save_every": 13,
  "sample_every": 0
}""")
    current = run.resume(folder)
    assert current.settings == requested.resolved((8, 8, 1)) and current.state.step == 13
    assert current.losses == [float(loss) for loss in metadata["losses"].split()]
    assert loop.train(current)
    expected = whole(requested)
    assert {name: content for name, content in everything(folder).items() if name != "settings.json"} == {
        name: content for name, content in expected.items() if name != "settings.json"}


def test_fewer_steps_than_done_are_refused(tmp_path):
    assert loop.train(run.begin(tmp_path / "run", REQUESTED))
    with pytest.raises(UserError, match="^steps is 3, but the run in .* has done 4; expected at least as many$"):
        run.resume(tmp_path / "run", steps=3)
    assert settings.read(tmp_path / "run").steps == 4


def test_a_relative_data_path_resumes_from_another_folder(tmp_path, monkeypatch):
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    run.begin("run", replace(REQUESTED, data="mine.npy"))
    monkeypatch.chdir("/")
    current = run.resume(tmp_path / "run")
    assert loop.train(current) and current.dataset.name == "mine.npy"


def test_rows_after_the_last_save_and_rows_cut_short_are_dropped(tmp_path, monkeypatch, whole):
    current, log = run.begin(tmp_path / "run", LONG), tmp_path / "run" / "log.csv"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 19)
        loop.train(current)
    kept = log.read_bytes()
    for tail in (b"", b"20,0.9", b"20,0.9,0.1,0.001,8", b"1", b"14,0.5,0.5\r\n", b"nonsense\r\n", b"\xff\r\n,,,,\r\n",
                 b"20,0.9,0.1,0.001,8\r\n", b"step,loss,grad_norm,lr,images_per_s\r\n"):
        log.write_bytes(kept + tail)
        run.resume(tmp_path / "run")
        assert log.read_bytes() == kept, tail
    for damaged in b"", b"step,lo":
        log.write_bytes(damaged)
        run.resume(tmp_path / "run")
        assert log.read_bytes() == kept.splitlines(keepends=True)[0]
    log.write_bytes(kept)
    assert go_on(tmp_path / "run") == whole(LONG)


def stop_at(monkeypatch, step):
    def killed(dataset, size, k, *more):
        if k == step:
            raise Killed
        return real(dataset, size, k, *more)

    real = data.Dataset.batch
    monkeypatch.setattr(data.Dataset, "batch", killed)


# ---- a full or unwritable disk, and losses that are not finite -------------------------------------------------------


LIMIT = """
import resource
real = run.save_run
def limited(current):
    if current.state.step == 4: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    real(current)
loop.save_run = limited
"""


def test_a_disk_that_takes_no_more_bytes(tmp_path, whole):
    """For real: the second state is 150 kB, and the kernel stops at 100 kB."""
    assert len(whole(REQUESTED)[run.STATE]) > 110_000
    _, err = ends(child(*flags(REQUESTED, tmp_path / "run"), code=LIMIT), 2)
    assert one_sentence(err) == (f"minddpm: {tmp_path / 'run' / run.STATE} cannot be written: File too large; "
                                 f"the state of step 2 is kept in {tmp_path / 'run'}\n")
    minddpm.load(tmp_path / "run")
    assert not list(tmp_path.rglob(".*.part"))
    assert run.resume(tmp_path / "run").state.step == 2
    assert go_on(tmp_path / "run") == whole(REQUESTED)


@pytest.mark.parametrize("fails", range(1, 12))
def test_a_full_disk_at_each_file(tmp_path, monkeypatch, capsys, whole, fails):
    calls, real = 0, os.fsync

    def fsync(number):
        nonlocal calls
        calls += 1
        if calls >= fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert cli.main(flags(REQUESTED, tmp_path / "run")) == 2
    state = f"; the state of step {2 if fails < 8 else 4} is kept in {tmp_path / 'run'}"
    kept = {1: "", 2: "; nothing had been saved yet"}.get(fails, state)
    err = one_sentence(capsys.readouterr().err)
    assert err.endswith(f" cannot be written: No space left on device{kept}\n")
    assert not list(tmp_path.rglob(".*.part"))
    if kept == state:
        assert f"step {run.resume(tmp_path / 'run').state.step} is kept" in err
    if fails > 6:
        minddpm.load(tmp_path / "run")
    assert go_on(tmp_path / "run") == whole(REQUESTED)


def test_a_log_that_the_disk_takes_half_of(tmp_path, monkeypatch, capsys, whole):
    class Half:
        def __init__(self, path, mode, newline):
            self.file = open(path, mode, newline=newline)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def tell(self):
            return self.file.tell()

        def write(self, text):
            self.file.write(text[:len(text) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(run, "open", Half, raising=False)
        assert cli.main(flags(LONG, tmp_path / "run")) == 2
    err = one_sentence(capsys.readouterr().err)
    assert err == (f"minddpm: {tmp_path / 'run' / 'log.csv'} cannot be written: No space left on device; "
                   f"the state of step 7 is kept in {tmp_path / 'run'}\n")
    assert run.resume(tmp_path / "run").state.step == 7
    assert go_on(tmp_path / "run") == whole(LONG)


def test_an_unwritable_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("a file")
    for folder in tmp_path / "file" / "run", tmp_path / "file", Path("/proc/run"), tmp_path / ("x" * 300):
        assert cli.main(flags(REQUESTED, folder)) == 2
        assert str(folder) in one_sentence(capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == "a file" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_becomes_unwritable_keeps_its_state(tmp_path, monkeypatch, whole):
    current = run.begin(tmp_path / "run", REQUESTED)
    (tmp_path / "run" / "unet").write_text("in the way")
    with pytest.raises(UserError, match="unet.* cannot be written: (File exists|Not a directory); the state of step 2 is kept"):
        loop.train(current)
    assert run.resume(tmp_path / "run").state.step == 2
    (tmp_path / "run" / "unet").unlink()
    assert go_on(tmp_path / "run") == whole(REQUESTED)


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), UserError("out of memory"),
                                   MemoryError("no room"), None])
def test_a_picture_that_cannot_be_made_is_one_line_and_the_training_goes_on(tmp_path, monkeypatch, capsys, whole, fault):
    """fault: what making it raises; None: a file is where its folder would be."""
    def fails(*args):
        raise fault

    folder, expected = tmp_path / "run", whole(REQUESTED)
    begun = run.begin(folder, replace(REQUESTED, sample_every=2))
    monkeypatch.setattr(commands, "begin", lambda *args: begun)
    if fault:
        monkeypatch.setattr(loop, "generate", fails)
    else:
        (folder / "samples").write_text("a file")
    assert cli.main(flags(REQUESTED, folder)) == 0
    out, err = capsys.readouterr()
    reasons = {OSError: r"\[Errno 28\] No space left on device", UserError: "out of memory", MemoryError: "no room"}
    reason = reasons[type(fault)] if fault else rf"{folder / 'samples'}\S* cannot be written: (File exists|Not a directory)"
    warnings = [line for line in out.splitlines() if "warning: no picture" in line]
    assert len(warnings) == 2 and err == "" and "trained: step 4 of 4" in out
    for step, line in zip((2, 4), warnings, strict=True):
        assert re.fullmatch(f"warning: no picture of step {step}: {reason}; the training goes on", line), line
    for name in run.STATE, "unet/diffusion_pytorch_model.safetensors":
        assert everything(folder)[name] == expected[name]


def nan_at(monkeypatch, step):
    def with_nan(dataset, size, k, *more):
        x0 = real(dataset, size, k, *more)
        return x0 * np.nan if k == step else x0

    real = data.Dataset.batch
    monkeypatch.setattr(data.Dataset, "batch", with_nan)


@pytest.mark.parametrize("step, kept", [(4, "the state of step 2 is kept in {}"), (2, "nothing had been saved yet")])
def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, capsys, whole, step, kept):
    with monkeypatch.context() as patch:
        nan_at(patch, step)
        assert cli.main(flags(REQUESTED, tmp_path / "run")) == 2
    err = one_sentence(capsys.readouterr().err)
    assert f"step {step}: the loss is nan and the gradient's norm nan, at learning rate 0.00" in err
    assert err.endswith(f"; {kept.format(tmp_path / 'run')}\n")
    assert run.resume(tmp_path / "run").state.step == (2 if step == 4 else 0)
    assert go_on(tmp_path / "run") == whole(REQUESTED)


def test_a_resumed_run_that_fails_says_that_it_keeps_what_was_there(tmp_path, monkeypatch):
    assert loop.train(run.begin(tmp_path / "run", replace(REQUESTED, steps=3)))
    nan_at(monkeypatch, 4)
    with pytest.raises(UserError, match="step 4: the loss is nan .*; the state of step 3 is kept in"):
        loop.train(run.resume(tmp_path / "run", 5))


# ---- bad input -------------------------------------------------------------------------------------------------------


def array(path, *shape):
    np.save(path, np.zeros(shape, np.uint8))
    return str(path)


@pytest.mark.parametrize("requested, sentence", [
    (dict(data="digitz"), r"'digitz' is no built-in set \(digits, mnist, mnist16, faces16\) and no path that exists"),
    (dict(batch=1619), "batch 1619 is larger than the training set of 1618 images"),
    (dict(preset="small"), "data set digits has 8x8x1 images; preset small expects 16x16"),
    (dict(data=(20, 9, 9)), r"no preset is made for 9x9x1 images; expected one of tiny 8x8, .*"),
    (dict(data=(20, 8, 16, 3)), r"no preset is made for 8x16x3 images; expected one of .*"),
    (dict(data=(20, 8, 16), preset="tiny"), r"data set .*mine.npy has 8x16x1 images; preset tiny expects 8x8"),
    (dict(data=(20, 8, 8), batch=19), "batch 19 is larger than the training set of 18 images"),
    (dict(beta_1=0.0), "beta runs from 0 to 0.02; expected 0 < beta < 1 for t = 1..T"),
    (dict(device="cuda"), "device is 'cuda', but CuPy is not installed .*"),
])
def test_bad_settings_are_one_sentence_and_leave_nothing_on_the_disk(tmp_path, monkeypatch, requested, sentence):
    monkeypatch.setitem(sys.modules, "cupy", None)
    probe.cache_clear()
    if isinstance(requested.get("data"), tuple):
        requested |= dict(data=array(tmp_path / "mine.npy", *requested["data"]))
    with pytest.raises(UserError, match=f"^{sentence}$"):
        run.begin(tmp_path / "run", replace(REQUESTED, **requested))
    assert not (tmp_path / "run").exists()
    probe.cache_clear()


def test_a_folder_that_is_not_empty_is_refused_and_an_empty_one_is_not(tmp_path):
    (tmp_path / "with space").mkdir()
    run.begin(tmp_path / "with space", REQUESTED)
    before = (tmp_path / "with space" / "settings.json").read_bytes()
    with pytest.raises(UserError, match=r"with space is not empty; choose another --out, .* train --resume '.*/with space'$"):
        run.begin(tmp_path / "with space", replace(REQUESTED, steps=9))
    assert (tmp_path / "with space" / "settings.json").read_bytes() == before


def test_a_file_of_the_users_own_is_not_swept(tmp_path):
    (tmp_path / ".hidden").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        run.begin(tmp_path, REQUESTED)
    assert (tmp_path / ".hidden").read_text() == "mine"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(settings.PRESETS, "tiny", lambda channels=1: small(channels, 0.0))
        assert loop.train(run.begin(folder, REQUESTED))
    return folder


def without(tensors, name):
    return {key: a for key, a in tensors.items() if key != name}


BIAS = "ema.conv_in.bias"


@pytest.mark.parametrize("damage, sentence", [
    (lambda raw, tensors: raw[:len(raw) // 2], ""),
    (lambda raw, tensors: raw[:-1], ""),
    (lambda raw, tensors: raw[:7], ""),
    (lambda raw, tensors: b"", ""),
    (lambda raw, tensors: b"\xff" * 1000, ""),
    (lambda raw, tensors: b"PK\x03\x04" + raw, ""),
    (lambda raw, tensors: without(tensors, BIAS), f"lacks {BIAS}"),
    (lambda raw, tensors: tensors | {"extra": np.zeros(1, np.float32)}, "has unexpected extra"),
    (lambda raw, tensors: tensors | {BIAS: np.zeros(9, np.float32)}, rf"{BIAS} has shape \(9,\); expected \(8,\)"),
    (lambda raw, tensors: tensors | {BIAS: np.full(8, np.nan, np.float32)}, f"{BIAS} holds values that are not finite"),
    (lambda raw, tensors: tensors | {BIAS: np.zeros(8, np.int32)}, f"{BIAS} has dtype I32"),
    (lambda raw, tensors: {"weight": np.zeros(8, np.float32)}, "lacks "),
])
def test_a_damaged_or_foreign_training_state_is_one_sentence(tmp_path, trained, damage, sentence):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    path = folder / run.STATE
    content = damage(path.read_bytes(), load_file(path))
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file(content, path, {"step": "4"})
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=f"{run.STATE}.*{sentence}") as error:
        run.resume(folder, steps=9)
    assert "\n" not in str(error.value)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}          # nothing is harmed by looking


@pytest.mark.parametrize("metadata", [{}, *({"step": text} for text in ("", "four", "-1", "4 nonsense", "1e3", "9" * 5000)),
                                      {"step": "4", "losses": "0.5 nonsense"}, {"losses": "0.5"}])
def test_a_training_state_of_no_known_step(tmp_path, trained, metadata):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    save_file(load_file(folder / run.STATE), folder / run.STATE, metadata)
    with pytest.raises(UserError, match="has no valid step; expected a file that minddpm train wrote$"):
        run.resume(folder)


def test_the_state_of_another_network_is_refused(tmp_path, trained, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    monkeypatch.setitem(settings.PRESETS, "tiny", lambda channels=1: replace(small(channels, 0.0), widths=(8, 12)))
    with pytest.raises(UserError, match=f"{run.STATE}: .* has shape "):
        run.resume(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"steps": -1}', b'{"preset": []}', b'{"data": null}', b'{"x": 1}'])
def test_a_damaged_or_foreign_settings_json_is_one_sentence(tmp_path, trained, capsys, content):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "settings.json").write_bytes(content)
    assert cli.main(["train", "--resume", str(folder)]) == 2
    assert "settings.json" in one_sentence(capsys.readouterr().err)
    minddpm.load(folder)                                                                    # the model is still good


def test_no_run_to_resume(tmp_path):
    with pytest.raises(UserError, match="holds no run to resume"):
        run.resume(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_checkpoint_is_a_function_of_the_state(tmp_path, trained):
    current = run.resume(trained)
    for k in range(4):
        run.save_run(replace(current, folder=tmp_path / str(k)))
    assert len({(tmp_path / str(k) / run.STATE).read_bytes() for k in range(4)}) == 1
    assert to_file_layout(np.zeros((3, 3, 1, 8))).shape == (8, 1, 3, 3)
    assert files.read_json(trained / "settings.json")["steps"] == 4
