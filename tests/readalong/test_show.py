"""`minddpm paper` in a terminal."""

import re
import shutil
import subprocess
import sys

import pytest

from minddpm.app import cli
from minddpm.errors import UserError
from minddpm.readalong import show
from minddpm.readalong.index import ROOT
from minddpm.readalong.paper import ITEMS


def printed(capsys, *words, code=0):
    assert cli.main(["paper", *words]) == code
    return capsys.readouterr()


def test_the_whole_paper_a_line_each(capsys):
    lines = printed(capsys).out.splitlines()
    assert len(lines) == len(ITEMS) + 3 and max(map(len, lines)) <= show.WIDTH == 100
    line = next(line for line in lines if line.startswith("Eq. (7)"))
    assert re.fullmatch(r"Eq\. \(7\) +posterior mean and variance +diffusion\.py:\d+ q_posterior +\d+ tests", line)
    assert "(a drawing of Eq. (1) and Eq. (2))" in "\n".join(lines)


def test_one_item_has_formula_code_transcription_and_test(capsys):
    out = printed(capsys, "7").out
    for part in ("    β̃_t := (1 − ᾱ_{t−1}) / (1 − ᾱ_t) β_t\n", "def q_posterior(s, x0, x_t, t):", "def eq07(beta, x0, x_t, t):",
                 "def test_eq07_", "minddpm paper eq07 --run", "(Sec. 2)"):
        assert part in out
    assert printed(capsys, "Eq. (7)").out == printed(capsys, "eq07").out == printed(capsys, "eq", "7").out == out
    assert "No code of its own: a drawing of Eq. (1) and Eq. (2)." in printed(capsys, "fig2").out
    assert printed(capsys, "B").out.startswith("App. B  Experimental details\n")
    assert printed(capsys, "table", "4").out.startswith("Table 4  lossy compression: rate and RMSE  (Extra information)\n")


def test_no_line_above_the_code_is_wider_than_a_list(index):
    for item in ITEMS:
        text = show.one(index, item).partition("----")[0]
        assert max(map(len, text.splitlines())) <= show.WIDTH, item.key


@pytest.mark.parametrize("words, keys", [
    (["posterior"], ["Eq. (6)", "Eq. (7)"]), (["q_step"], ["Eq. (2)"]), (["bayes", "without"], ["Eq. (24)"]),
    (["table"], ["Eq. (13)", "Table 1", "Table 2", "Table 3", "Table 4"]),              # Codec.tables computes Eq. (13)
])
def test_a_word_lists_the_items_and_functions_that_have_it(capsys, words, keys):
    lines = printed(capsys, *words).out.split("\n\n")[0].splitlines()
    assert [re.match(r"\S+ \S+", line)[0] for line in lines] == keys


@pytest.mark.parametrize("text", ["27", "alg5", "foo", "seven", "E", "fig20", "7 8 9", "∞", "-", "posterior foo", "tabletop"])
def test_what_the_paper_does_not_have_is_one_sentence(capsys, text):
    with pytest.raises(UserError, match=f"the paper's index has no {text!r}; expected 7, eq 7, alg 2, "):
        show.command([text])
    assert printed(capsys, "fig1", "--run", code=2).err.startswith("minddpm: Fig. 1 has no test: ")


def test_run_runs_the_tests_of_the_item():
    """In a process of its own, as a user has it: one that passes, and its exit code is pytest's."""
    code = "import sys; from minddpm.app.cli import main; sys.exit(main(['paper', 'eq06', '--run']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout + done.stderr


def test_run_asks_pytest_for_the_tests_of_the_item(monkeypatch, index):
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda words, cwd: asked.append((words, cwd)) or subprocess.CompletedProcess(words, 3))
    assert show.command(["eq", "13"], run=True) == 3
    (words, cwd), = asked
    assert cwd == ROOT and words[1:3] == ["-m", "pytest"]
    assert set(words[5:]) == {f"{place.path}::{place.name}" for place in index.tests["Eq. (13)"]}
    show.command(run=True)
    names = asked[1][0][5:]
    assert len(names) == len(set(names)) > 100


def test_run_of_a_word_runs_the_tests_of_all_that_it_finds(monkeypatch, index):
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda words, cwd: asked.append(words) or subprocess.CompletedProcess(words, 0))
    show.command(["posterior"], run=True)
    assert set(asked[0][5:]) == {f"{place.path}::{place.name}" for key in ("Eq. (6)", "Eq. (7)") for place in index.tests[key]}


def test_installed_without_tests(tmp_path, capsys):
    shutil.copytree(ROOT / "minddpm", tmp_path / "minddpm", ignore=shutil.ignore_patterns("*.npz", "__pycache__"))
    assert show.command(root=tmp_path) == show.command(["7"], root=tmp_path) == 0
    out = capsys.readouterr().out
    assert out.count(show.NO_TESTS) == 2 and "minddpm/diffusion.py" in out and "test_eq07" not in out
    with pytest.raises(UserError, match="there are no tests beside this package"):
        show.command(["7"], run=True, root=tmp_path)
