"""From the PDF to the line to the test and back: the index is complete, right and current, and it can fail."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minddpm.app import cli
from minddpm.errors import UserError
from minddpm.readalong import index as reading
from minddpm.readalong import paper, readme, show, tags
from minddpm.readalong.differences import DIFFERENCES
from minddpm.readalong.paper import ITEMS, find

ROOT = Path(__file__).resolve().parents[2]
HOW = "run `minddpm paper --readme`"


@pytest.fixture(scope="module")
def index():
    return reading.build(ROOT)


@pytest.fixture
def copy(tmp_path):
    """The sources and the README, to be spoilt."""
    for folder in "minddpm", "tests", "demos":
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.npz", "__pycache__", "*.png"))
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def spoil(folder, path, old, new, count=1):
    text = (folder / path).read_text()
    assert text.count(old) >= 1, f"{path} has no {old!r}"
    (folder / path).write_text(text.replace(old, new, count))


# ---- the index ------------------------------------------------------------------------------------------------------------


def test_every_item_has_code_and_a_test_or_a_reason_and_every_tag_is_known(index):
    assert reading.missing(index) == []


def test_no_reason_is_out_of_date(index):
    for item in ITEMS:
        assert not (item.why_not and index.code[item.key] and index.own_tests(item)), f"{item.key} has code and a test by now"
        assert all(key in index.code for key in tags.mentioned(item.why_not))


def test_every_equation_and_algorithm_is_transcribed(index):
    for item in ITEMS[:16] + ITEMS[26:30]:
        assert index.literal[item.key] and index.literal[item.key][0].name.startswith(item.token), item.key


def test_the_papers_contents():
    keys = [item.key for item in ITEMS]
    assert keys[:26] == [f"Eq. ({k})" for k in range(1, 27)] and keys[26:30] == [f"Alg. {k}" for k in range(1, 5)]
    assert keys[30:34] == [f"Table {k}" for k in range(1, 5)] and keys[34:53] == [f"Fig. {k}" for k in range(1, 20)]
    assert all(key.startswith(("Sec.", "App.")) for key in keys[53:])
    assert len({item.token for item in ITEMS}) == len(ITEMS) and all(item.meaning for item in ITEMS)
    assert all(bool(item.tex) == item.key.startswith(("Eq.", "Alg.")) for item in ITEMS)
    for item in ITEMS:
        for line in item.tex:
            assert line.count(r"\left") - line.count(r"\leftarrow") == line.count(r"\right"), item.key
            assert line.count("{") == line.count("}") and line.strip() and "%" not in line


def test_places_are_where_they_say(index):
    places = {place for kind in (index.code, index.tests, index.literal) for found in kind.values() for place in found}
    assert len(places) > 200
    for place in places:
        lines = (ROOT / place.path).read_text().splitlines()
        line, name = lines[place.line - 1], place.name.rpartition(".")[2]
        if place.end > place.line and place.name:
            assert re.match(rf"\s*(def|class) {name}\b", line), place
        assert place.start <= place.line <= place.end <= len(lines)


def test_eq07_first_leads_to_its_own_function_test_and_transcription(index):
    assert (index.code["Eq. (7)"][0].path, index.code["Eq. (7)"][0].name) == ("minddpm/diffusion.py", "q_posterior")
    assert index.tests["Eq. (7)"][0].name.startswith("test_eq07_") and index.literal["Eq. (7)"][0].name == "eq07"
    assert index.code["Alg. 1"][0].name == "train_step" and index.code["Eq. (5)"][0].name == "vlb"
    assert index.code["Alg. 2"][0].path == "minddpm/sample.py"


# ---- it can fail ----------------------------------------------------------------------------------------------------------


def test_a_lost_tag_a_lost_test_and_a_foreign_tag_are_found(copy):
    spoil(copy, "minddpm/diffusion.py", '"""Eq. (2).  ', '"""')
    spoil(copy, "tests/test_diffusion.py", "def test_eq06_", "def test_number_six_")
    spoil(copy, "minddpm/score.py", "App. C.  Annealed", "App. F.  Annealed")
    spoil(copy, "minddpm/optim.py", "import math\n", "import math  # Eq. (27), Fig. 19-21\n")
    spoil(copy, "tests/test_sample.py", "def test_seeds_differ", "def test_eq31_seeds_differ")
    found = "\n".join(reading.missing(reading.build(copy)))
    for sentence in ("Eq. (2) (forward process q, one step) has no code", "has no test: a test's name must begin with test_eq06_",
                     "minddpm/score.py:34 App. F is not", "Eq. (27) is not", "Fig. 20 is not", "Fig. 21 is not", "eq31 is not",
                     "App. C (Discussion on related work) has no code"):
        assert sentence in found
    assert "Fig. 19 is not" not in found and found.count("\n") == len(reading.missing(reading.build(ROOT))) + 7


def test_a_transcription_alone_does_not_count_as_a_test(copy):
    for name in re.findall(r"def (test_eq12_\w+)", (copy / "tests/test_objective_table2.py").read_text()):
        spoil(copy, "tests/test_objective_table2.py", name, name.replace("test_", "test_literal_"))
    assert any(sentence.startswith("Eq. (12)") for sentence in reading.missing(reading.build(copy)))


# ---- the README -----------------------------------------------------------------------------------------------------------


def test_the_readme_is_current(index):
    text = (ROOT / "README.md").read_text()
    assert readme.current(text, index) == text, HOW


def test_a_stale_line_is_found_and_put_right(copy):
    readme.update(reading.build(copy))
    assert not readme.update(reading.build(copy))
    spoil(copy, "minddpm/diffusion.py", "import numpy as np", "import numpy as np\n")               # every line moves by one
    text = (copy / "README.md").read_text()
    index = reading.build(copy)
    assert readme.current(text, index) != text
    assert readme.update(index) and not readme.update(index)
    line = index.code["Eq. (7)"][0].line
    assert f"(minddpm/diffusion.py#L{line})" in (copy / "README.md").read_text()
    spoil(copy, "README.md", "<!-- /index -->", "")
    with pytest.raises(UserError, match="expected one <!-- index --> and one <!-- /index -->"):
        readme.update(index)


def test_every_link_of_the_readmes_tables_leads_to_its_line(index):
    text = readme.index_section(index) + readme.differences_section(index)
    links = re.findall(r"\[`[^`]*:(\d+)`([^\]]*)\]\(([^#)]+)#L(\d+)\)", text)
    assert len(links) > 80
    for shown, name, path, line in links:
        assert shown == line
        if name:
            last = name.replace("\\_", "_").rpartition(".")[2]
            assert last in (ROOT / path).read_text().splitlines()[int(line) - 1]
    assert all(row.count(" | ") in (3, 5) for row in text.splitlines() if row.startswith("| "))     # no stray column


# ---- paper vs. released code ----------------------------------------------------------------------------------------------


def test_every_difference_is_shown_by_a_test(index):
    subjects = " ".join(d.what + d.code for d in DIFFERENCES)
    for word in ("x̂_0", "tanh", "σ_1²", "EMA", "Warm-up", "shards", "1e-10", "flips", "Church", "interpolation", "9,984", "ε"):
        assert word in subjects
    for d in DIFFERENCES:
        assert d.test in index.named, f"{d.what}: there is no {d.test}"
        assert all(d) and not any(cell.endswith(".") for cell in d)


# ---- the command ----------------------------------------------------------------------------------------------------------


def said(capsys, *words, code=0):
    assert cli.main(["paper", *words]) == code
    return capsys.readouterr()


def test_the_whole_paper_a_line_each(capsys, index):
    lines = said(capsys).out.splitlines()
    assert len(lines) == len(ITEMS) + 2
    line = next(line for line in lines if line.startswith("Eq. (7)"))
    assert re.fullmatch(r"Eq\. \(7\) +posterior mean and variance +minddpm/diffusion\.py:\d+ q_posterior( \+\d+)? +"
                        r"tests/test_diffusion\.py:\d+ test_eq07_\w+( \+\d+)?", line)
    assert "(a drawing of Eq. (1) and Eq. (2))" in "\n".join(lines)


def test_one_item_has_formula_code_transcription_and_test(capsys):
    out = said(capsys, "7").out
    for part in (r"\tilde{\beta}_t \coloneqq \frac", "def q_posterior(s, x0, x_t, t):", "def eq07(beta, x0, x_t, t):",
                 "def test_eq07_", "minddpm paper eq07 --run", "(Sec. 2)"):
        assert part in out
    assert said(capsys, "Eq. (7)").out == said(capsys, "eq07").out == out
    assert "No code of its own: a drawing of Eq. (1) and Eq. (2)." in said(capsys, "fig2").out
    assert said(capsys, "B").out.startswith("App. B  Experimental details\n")


def test_what_the_paper_does_not_have_is_one_sentence(capsys):
    assert said(capsys, "27", code=2).err.startswith("minddpm: the paper's index has no '27'; expected one of its lines")
    assert said(capsys, "fig1", "--run", code=2).err.startswith("minddpm: Fig. 1 has no test: ")


@pytest.mark.parametrize("text, key", [
    ("7", "Eq. (7)"), ("eq07", "Eq. (7)"), ("EQ 7", "Eq. (7)"), ("Eq. (7)", "Eq. (7)"), ("equation 16", "Eq. (16)"),
    ("alg2", "Alg. 2"), ("Algorithm 2", "Alg. 2"), ("table4", "Table 4"), ("fig06", "Fig. 6"), ("Figure 12", "Fig. 12"),
    ("sec33", "Sec. 3.3"), ("Sec. 3.3", "Sec. 3.3"), ("section 4", "Sec. 4"), ("b", "App. B"), ("App. C", "App. C"),
])
def test_an_item_by_any_of_its_names(text, key):
    assert find(text).key == key


@pytest.mark.parametrize("text", ["", "0", "27", "alg5", "table", "foo", "seven", "E", "fig20", "7 8 9", "∞", "-"])
def test_no_item(text):
    with pytest.raises(UserError, match="the paper's index has no"):
        find(text)


def test_run_runs_the_tests_of_the_item():
    """In a process of its own, as a user has it: one that passes, and its exit code is pytest's."""
    code = "import sys; from minddpm.app.cli import main; sys.exit(main(['paper', 'eq06', '--run']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout + done.stderr


def test_run_asks_pytest_for_the_tests_of_the_item(monkeypatch, index):
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda words, cwd: asked.append((words, cwd)) or subprocess.CompletedProcess(words, 3))
    assert show.command("eq13", run=True) == 3
    (words, cwd), = asked
    assert cwd == ROOT and words[1:3] == ["-m", "pytest"]
    assert set(words[5:]) == {f"{place.path}::{place.name}" for place in index.tests["Eq. (13)"]}
    show.command(run=True)
    names = asked[1][0][5:]
    assert len(names) == len(set(names)) > 100


def test_installed_without_tests(tmp_path, capsys):
    shutil.copytree(ROOT / "minddpm", tmp_path / "minddpm", ignore=shutil.ignore_patterns("*.npz", "__pycache__"))
    assert show.command(root=tmp_path) == show.command("7", root=tmp_path) == 0
    out = capsys.readouterr().out
    assert out.count(show.NO_TESTS) == 2 and "minddpm/diffusion.py" in out and "test_eq07" not in out
    with pytest.raises(UserError, match="there are no tests beside this package"):
        show.command("7", run=True, root=tmp_path)
    with pytest.raises(UserError, match="expected a checkout"):
        show.command(update_readme=True, root=tmp_path)


def test_what_is_not_python_is_named(tmp_path):
    (tmp_path / "minddpm").mkdir()
    (tmp_path / "minddpm" / "a.py").write_text("x = (\n")
    with pytest.raises(UserError, match=r"minddpm/a\.py:1 is not Python"):
        reading.build(tmp_path)


# ---- how tags are written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, keys", [
    ("as in Eq. (9) and (10).", "Eq. (9)|Eq. (10)"),
    ("Eq. (3), (5) and (16), as numbers", "Eq. (3)|Eq. (5)|Eq. (16)"),
    ("Eq. (1)-(3) and Alg. 1-2", "Eq. (1)|Eq. (2)|Eq. (3)|Alg. 1|Alg. 2"),
    ("Sec. 4.3, Fig. 5, Table 4.", "Sec. 4.3|Fig. 5|Table 4"),
    ("(Sec. 2, 3.1, 3.2)", "Sec. 2|Sec. 3.1|Sec. 3.2"),
    ("Sec. 4.  10 of them, App. B's", "Sec. 4|App. B"),
    ("Fig. 12, 15.", "Fig. 12|Fig. 15"), ("Tables 1 and 4", "Table 1|Table 4"),
    ("Kingma and Ba, Algorithm 1; a Table, Sec. and App. Best", ""),
])
def test_tags_in_a_text(text, keys):
    assert tags.mentioned(text) == (keys.split("|") if keys else [])


@pytest.mark.parametrize("text, keys, rest", [
    ("Eq. (6), (7).  Mean and variance, Eq. (4).", "Eq. (6)|Eq. (7)", "Mean and variance, Eq. (4)."),
    ("Eq. (8), (13).  Table 2, \"L\".", "Eq. (8)|Eq. (13)|Table 2", None),
    ("Sec. 4.3, Fig. 5, Table 4.  Rates", "Sec. 4.3|Fig. 5|Table 4", "Rates"),
    ("Alg. 1, line 5.  The mean", "Alg. 1", None),
    ("The mean of Eq. (7).", "", "The mean of Eq. (7)."), ("", "", ""),
])
def test_tags_at_the_start_of_a_docstring(text, keys, rest):
    assert tags.leading(text) == (keys.split("|") if keys else [])
    if rest is not None:
        assert tags.without_leading(text) == rest


@pytest.mark.parametrize("name, tokens, own", [
    ("test_eq07_is_it", "eq07", "eq07"), ("test_eq11_is_eq07_at_eq15", "eq11 eq07 eq15", "eq11"),
    ("test_eq03_eq05_and_eq16_agree", "eq03 eq05 eq16", "eq03 eq05 eq16"),
    ("test_literal_eq08_to_eq10_are_one", "eq08 eq09 eq10", ""), ("test_alg2_adds", "alg2", "alg2"),
    ("test_sec33_display", "sec33", "sec33"), ("test_appB_adam", "appb", "appb"), ("test_app_b_adam", "appb", "appb"),
    ("test_fig06_and_fig14", "fig6 fig14", "fig6 fig14"), ("test_table4_rate", "table4", "table4"),
    ("test_requires_seq12_apparently", "", ""), ("test_a_table_of_figures", "", ""),
])
def test_tags_in_a_tests_name(name, tokens, own):
    assert tags.in_name(name) == tokens.split()
    assert [token for token in tags.in_name(name) if tags.starts_with(name, token)] == own.split()


def test_symbols_of_formulas_are_all_used():
    text = "".join(item.formula for item in ITEMS)
    assert all(re.search(rf"\\{name}(?![A-Za-z])", text) for name in paper.MACROS)
