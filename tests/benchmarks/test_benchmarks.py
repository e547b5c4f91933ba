"""tests/benchmarks: they refuse to time a busy machine and sides that disagree, and the exponents of growth.py."""

import json
from types import SimpleNamespace

import growth
import numpy as np
import pytest
import vs_torch as bench


class Pipe:
    """Stands for a side's process: 40 MB, and steps of so many milliseconds, after some faster ones, with these numbers."""

    def __init__(self, ms, *steps):
        self.ms, self.steps, self.number = ms, steps, None

    def send(self, number):
        self.number = number

    def recv(self):
        if self.number is None:
            return 40.0
        compared = self.number < len(self.steps)
        seconds = self.ms / 1e3 / (9 if compared else 1)
        return seconds, seconds, self.steps[self.number] if compared else None


def standing(monkeypatch, changed=None):
    """Three sides that compute the same, but for what PyTorch's second layout computes at its third step."""
    right = [{"the loss": 2.0, "ε_θ": np.array([1.0, -3.0])}] * 3
    processes = SimpleNamespace(join=lambda: None)

    def started(serve, *args):
        steps = dict.fromkeys(bench.SIDES, right)
        if changed:
            steps[bench.SIDES[2]] = [*right[:2], right[2] | changed]
        return {name: SimpleNamespace(pipe=Pipe(ms, *steps[name]), process=processes, wall=[], cpu=[], values=[])
                for name, ms in zip(bench.SIDES, (20, 50, 30), strict=True)}

    monkeypatch.setattr(bench, "started", started)


def test_the_row_has_pytorchs_better_layout(monkeypatch):
    standing(monkeypatch)
    monkeypatch.setattr(bench, "idle", lambda: 0.02)
    numbers = bench.measure("demo-train", 4, 2, False)
    assert bench.row("demo-train", numbers) == "| demo-train | 20.0 | 30.0 | **1.50** | 1.50 | 1.50 | 40 | 40 | 2 % |"


@pytest.mark.parametrize("changed, what", [({"the loss": 2.0 * (1 + 1e-4)}, "the loss"), ({"the loss": np.nan}, "the loss"),
                                           ({"ε_θ": np.array([1.0, -3.0005])}, "ε_θ")])
def test_sides_that_disagree_are_refused(monkeypatch, changed, what):
    standing(monkeypatch, changed)
    monkeypatch.setattr(bench, "idle", lambda: 0.0)
    with pytest.raises(SystemExit, match=f"^demo-train, step 3: {what} of minddpm and of torch channels_last differ by "):
        bench.measure("demo-train", 4, 2, False)


def test_a_busy_machine_is_refused_and_what_was_measured_before_is_kept(monkeypatch, tmp_path, capsys):
    pytest.importorskip("torch", reason="vs_torch.py needs torch")
    standing(monkeypatch)
    real, turns = bench.idle, []

    def idle():
        turns.append(1)
        return 0.01 if len(turns) <= 3 * 4 else real(seconds=0.01, busy=-1, patience=0.05)          # no machine is that idle

    monkeypatch.setattr(bench, "idle", idle)
    monkeypatch.setattr("sys.argv", ["vs_torch.py", "demo-train", "small-train", "--rounds", "4", "--json", f"{tmp_path}/x.json"])
    for name in "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE":
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit, match="^the machine was never idle within 0.05 s "):
        bench.main()
    assert "| demo-train |" in (out := capsys.readouterr().out) and "| small-train |" not in out
    assert json.loads((tmp_path / "x.json").read_text())["results"].keys() == {"demo-train"}


def test_idle_returns_how_busy_the_machine_was():
    assert 0 <= bench.idle(seconds=0.05, busy=1) <= 1


@pytest.mark.parametrize("k", [0.5, 2.94])
def test_growths_exponent_is_that_of_the_larger_half(k):
    for values in growth.SIZES.values():
        costs = [v**k for v in values]
        costs[0] *= 7                                                       # what does not grow weighs on the small ones
        assert growth.exponent(values, costs) == pytest.approx(k)


def test_growth_varies_one_thing_at_a_time():
    medium, batch = growth.case("batch", 64)
    assert (medium.image_size, medium.widths, batch) == (32, (32, 64, 64), 64)
    wide, batch = growth.case("width", 128)
    assert (wide.image_size, wide.widths, batch) == (32, (128, 256, 256), 16)
    large, batch = growth.case("image size", 128)
    assert (large.image_size, large.widths, batch) == (128, (32, 64, 64), 4)
