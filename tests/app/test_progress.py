"""progress.py: plain lines now and then in a pipe, a bar on a terminal, and honest rates and times."""

import io
import re
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minddpm.app import progress
from minddpm.app.progress import Progress, clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def now(monkeypatch):
    """The time, which only the test moves."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_line_of_its_own(now, monkeypatch, kind):
    monkeypatch.setattr("sys.stdout", kind())
    with Progress("train", 9, "step") as p:
        p.update("loss 1")
        p.say("warning: look here")
        p.update("loss 2")
    lines = re.split(r"[\r\n]+", progress.sys.stdout.getvalue())
    assert "warning: look here" in lines and lines.count("warning: look here") == 1


def work(now, seconds, total, done=0, per_unit=64, units=None):
    """Lines printed by `units` units of work that take so many seconds each."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        with Progress("train", total, "step", done, per_unit) as p:
            for k in range(done, done + (total - done if units is None else units)):
                now.seconds += seconds
                p.update(f"loss {k}")
    assert "\r" not in out.getvalue()
    return out.getvalue().splitlines()


def test_a_line_every_ten_seconds_and_one_at_the_end(now):
    lines = work(now, 1, 25)
    assert lines == ["train  step 10/25  loss 9  64 images/s  ETA 0:15",
                     "train  step 20/25  loss 19  64 images/s  ETA 0:05",
                     "train  step 25/25  loss 24  64 images/s  ETA 0:00"]


def test_slow_work_has_a_line_each_and_fast_work_one_line(now):
    assert len(work(now, 60, 5)) == 5
    assert len(work(now, 0.001, 1000)) == 1
    assert len(work(now, 0, 5)) == 1                        # a clock that stands still divides nothing by zero


def test_stopped_before_the_end_prints_no_end(now):
    assert work(now, 1, 100, units=5) == [] and work(now, 1, 100, units=0) == []


def test_work_of_no_images_shows_no_rate(now):
    assert work(now, 1, 1, per_unit=0) == ["train  step 1/1  loss 0  ETA 0:00"]


@settings(deadline=None, max_examples=50)
@given(total=st.integers(1, 200), done=st.integers(0, 199), seconds=st.floats(0.01, 100), per_unit=st.integers(1, 128))
def test_a_resumed_session_counts_its_own_work_only(total, done, seconds, per_unit):
    if done >= total:
        return
    now = SimpleNamespace(seconds=5.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
        lines = work(now, seconds, total, done, per_unit)
    printed = 0
    for line in lines:
        at, rate, eta = re.fullmatch(rf"train  step (\d+)/{total}  loss \d+  (\d+) images/s  ETA ([\d:]+)", line).groups()
        assert int(at) > printed
        printed = int(at)
        assert abs(int(rate) - per_unit / seconds) <= 0.5 + 1e-6 * per_unit / seconds
        assert eta in {clock((total - printed) * seconds * (1 + e)) for e in (-1e-9, 0, 1e-9)}
    assert printed == total
    assert len(lines) <= 2 + (total - done) * seconds / progress.SECONDS


def test_a_bar_on_a_terminal(monkeypatch):
    out = Terminal()
    monkeypatch.setattr("sys.stdout", out)
    with Progress("train", 3, "step", images=8) as p:
        for _ in range(3):
            p.update("loss 0.5")
    text = out.getvalue()
    assert "\r" in text and "train" in text and "3/3" in text and "loss 0.5" in text and "images/s" in text
    assert text.count("\n") == 1


def test_a_bar_goes_on_where_an_earlier_session_stopped(monkeypatch):
    out = Terminal()
    monkeypatch.setattr("sys.stdout", out)
    with Progress("train", 10, "step", done=7):
        pass
    assert "7/10" in out.getvalue()


def test_a_bar_is_closed_whatever_happens(monkeypatch):
    out = Terminal()
    monkeypatch.setattr("sys.stdout", out)
    with pytest.raises(KeyboardInterrupt), Progress("train", 10, "step"):
        raise KeyboardInterrupt
    assert out.getvalue().endswith("\n")


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"),
                                           (3599.7, "1:00:00"), (3661, "1:01:01"), (100 * 3600, "100:00:00")])
def test_clock(seconds, text):
    assert clock(seconds) == text


@given(st.integers(0, 10**7))
def test_clock_reads_back(seconds):
    total = 0
    for part in clock(seconds).split(":"):
        total = 60 * total + int(part)
    assert total == seconds
