"""From the PDF to the line to the test: the index is complete and right, and it can fail."""

import re

import pytest

from minddpm.errors import UserError
from minddpm.readalong import tags
from minddpm.readalong.index import ROOT, build, paths, read
from minddpm.readalong.paper import ITEMS


def own_tests(index, item):
    """The tests whose names begin with the item."""
    return [place for place in index.tests[item.key] if tags.starts_with(place.name, item.token)]


def mentioned(text):
    return [key for _, keys in tags.groups(text) for key in keys]


def missing(index):
    """One sentence for each item that has neither code and a test of its own nor a written reason, and each unknown tag."""
    problems, tokens = [], {item.token for item in ITEMS}
    for path in paths(index.root):
        texts, tests = read(path, (index.root / path).read_text(encoding="utf-8"))
        found = [(place, key) for place, text in texts for key in mentioned(text) if key not in index.code]
        found += [(place, token) for place in tests for token in tags.in_name(place.name) if token not in tokens]
        problems += [f"{path}:{place.line} {tag} is not in the paper's table (readalong/paper.py)" for place, tag in found]
    for item in ITEMS:
        if not item.no_code_because and not index.code[item.key]:
            problems.append(f"{item.key} ({item.meaning}) has no code: a docstring must begin with it")
        if not item.no_code_because and not own_tests(index, item):
            problems.append(f"{item.key} ({item.meaning}) has no test: a test's name must begin with test_{item.token}_")
    return problems


def test_every_item_has_code_and_a_test_or_a_reason_and_every_tag_is_known(index):
    assert missing(index) == []


def test_no_reason_is_out_of_date(index):
    for item in ITEMS:
        both = index.code[item.key] and own_tests(index, item)
        assert not (item.no_code_because and both), f"{item.key} has code and a test by now"
        assert all(key in index.code for key in mentioned(item.no_code_because))


def test_every_equation_and_algorithm_is_transcribed(index):
    for item in ITEMS[:16] + ITEMS[26:30]:
        assert index.literal[item.key] and index.literal[item.key][0].name.startswith(item.token), item.key


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
    assert index.code["Eq. (5)"][0].path == "minddpm/likelihood.py" and index.code["Eq. (14)"][0].name == "l_simple"


@pytest.mark.parametrize("key, place", [
    ("Eq. (1)", "reverse.py p_theta"), ("Eq. (4)", "diffusion.py q_marginal"), ("Eq. (5)", "likelihood.py vlb"),
    ("Eq. (6)", "diffusion.py q_posterior"), ("Eq. (7)", "diffusion.py q_posterior"), ("Eq. (11)", "diffusion.py mu_theta"),
    ("Eq. (13)", "gaussian.py discretized_log_likelihood"), ("Eq. (14)", "objective.py l_simple"),
    ("Eq. (15)", "diffusion.py x0_hat"), ("Alg. 1", "train.py train"), ("Alg. 2", "sample.py reverse_process"),
    ("Alg. 3", "coding/progressive.py send"), ("Table 4", "likelihood.py rate_distortion"), ("Sec. 2", "diffusion.py Schedule"),
    ("Sec. 3.2", "diffusion.py Schedule.sigma2"), ("Sec. 3.3", "data/sets.py scale"),
])
def test_an_item_first_leads_to_the_function_that_is_all_of_it(index, key, place):
    first = index.code[key][0]
    assert f"{first.path.removeprefix('minddpm/')} {first.name}" == place


CANDIDATES = {
    "minddpm/core.py": """
def part():
    'Alg. 2, line 3.  A step.'
def with_its_gradient():
    'Alg. 2.  The loop.  Back: its gradient.'
def with_another():
    'Alg. 2, Fig. 6, 14.  The loop.'
class Loop:
    'Alg. 2.  The loop.'
    def method(self):
        'Alg. 2.  The loop.'
def loop():
    'Alg. 2.  The loop.'
def loop_below():
    'Alg. 2.  The loop.'
""",
    "minddpm/unet/later.py": """
'Alg. 2.  A module.'
def in_a_later_file():
    'Alg. 2.  The loop.'
""",
    "minddpm/room/file.py": """
def in_a_room():
    'Alg. 2.'
""",
    "minddpm/app/cli.py": """
def in_the_command_line():
    'Alg. 2.'
""",
    "demos/demo.py": "'Alg. 2.  A picture.'",
}


def test_the_best_place_comes_first(tmp_path):
    """The core, rooms, demos; the whole before a part; alone; functions before classes and modules; by path and line."""
    for path, text in CANDIDATES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert [place.name or place.path for place in build(tmp_path).code["Alg. 2"]] == [
        "loop", "loop_below", "in_a_later_file", "Loop", "Loop.method", "minddpm/unet/later.py", "with_its_gradient",
        "with_another", "part", "in_a_room", "in_the_command_line", "demos/demo.py"]


# ---- it can fail ----------------------------------------------------------------------------------------------------------


def test_a_lost_tag_a_lost_test_and_a_foreign_tag_are_found(copy, spoil, index):
    spoil("minddpm/diffusion.py", '"""Eq. (2).  ', '"""')
    spoil("tests/test_diffusion.py", "def test_eq06_", "def test_number_six_")
    spoil("minddpm/score.py", "App. C.  Annealed", "App. F.  Annealed")
    spoil("minddpm/optim.py", "import math\n", "import math  # Eq. (27), Fig. 19-21\n")
    spoil("tests/test_sample.py", "def test_seeds_differ", "def test_eq31_seeds_differ")
    found = "\n".join(missing(build(copy)))
    for sentence in ("Eq. (2) (forward process q, one step) has no code", "has no test: a test's name must begin with test_eq06_",
                     "minddpm/score.py:35 App. F is not", "Eq. (27) is not", "Fig. 20 is not", "Fig. 21 is not", "eq31 is not",
                     "App. C (Discussion on related work) has no code"):
        assert sentence in found
    assert "Fig. 19 is not" not in found and found.count("\n") == len(missing(index)) + 7


def test_a_transcription_alone_does_not_count_as_a_test(copy, spoil):
    for name in re.findall(r"def (test_eq12_\w+)", (copy / "tests/test_objective_table2.py").read_text()):
        spoil("tests/test_objective_table2.py", name, name.replace("test_", "test_literal_"))
    assert any(sentence.startswith("Eq. (12)") for sentence in missing(build(copy)))


def test_what_is_not_python_is_named(tmp_path):
    (tmp_path / "minddpm").mkdir()
    (tmp_path / "minddpm" / "a.py").write_text("x = (\n")
    with pytest.raises(UserError, match=r"minddpm/a\.py:1 is not Python"):
        build(tmp_path)
