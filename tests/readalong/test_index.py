"""From the PDF to the line to the test: the index is complete and right, and it can fail."""

import re

import pytest

from minddpm.errors import UserError
from minddpm.readalong import tags
from minddpm.readalong.index import ROOT, build, missing
from minddpm.readalong.paper import ITEMS


def test_every_item_has_code_and_a_test_or_a_reason_and_every_tag_is_known(index):
    assert missing(index) == []


def test_no_reason_is_out_of_date(index):
    for item in ITEMS:
        both = index.code[item.key] and index.own_tests(item)
        assert not (item.no_code_because and both), f"{item.key} has code and a test by now"
        assert all(key in index.code for key in tags.mentioned(item.no_code_because))


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


@pytest.mark.parametrize("key, path", [("Alg. 1", "minddpm/train.py"), ("Alg. 2", "minddpm/sample.py")])
def test_an_algorithm_first_leads_to_the_function_that_is_all_of_it(index, key, path):
    whole = [tagged for tagged in index.files[path].tagged if tagged.whole and tagged.keys == [key]]
    assert index.code[key][0] == max(whole, key=lambda tagged: tagged.length).place


CANDIDATES = {
    "minddpm/core.py": """
def part():
    'Alg. 2, line 3.  A step.'
def with_its_gradient():
    'Alg. 2.  The loop.  Back: its gradient.'
def with_another():
    'Alg. 2, Fig. 6, 14.  The loop.'
def short():
    'Alg. 2.  The loop, in other words.'
    return loop()
def loop():
    'Alg. 2.  The loop.'
    x = 1
    return x
""",
    "minddpm/later.py": """
import minddpm.core
def imports_the_other_file():
    'Alg. 2.  A long one.'
    x = 1
    y = 2
    return x + y
""",
    "minddpm/room/file.py": """
def short_in_a_room():
    'Alg. 2.'
    return 1
def long_in_a_room():
    'Alg. 2.'
    x = 1
    return x
""",
    "demos/demo.py": "'Alg. 2.  A picture.'",
}


def test_the_best_place_comes_first(tmp_path):
    """The core, rooms, demos; the whole before a part; alone; in the core the file that is read first; the longest."""
    for path, text in CANDIDATES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert [place.name or place.path for place in build(tmp_path).code["Alg. 2"]] == [
        "loop", "short", "imports_the_other_file", "with_its_gradient", "with_another", "part",
        "long_in_a_room", "short_in_a_room", "demos/demo.py"]


# ---- it can fail ----------------------------------------------------------------------------------------------------------


def test_a_lost_tag_a_lost_test_and_a_foreign_tag_are_found(copy, spoil, index):
    spoil("minddpm/diffusion.py", '"""Eq. (2).  ', '"""')
    spoil("tests/test_diffusion.py", "def test_eq06_", "def test_number_six_")
    spoil("minddpm/score.py", "App. C.  Annealed", "App. F.  Annealed")
    spoil("minddpm/optim.py", "import math\n", "import math  # Eq. (27), Fig. 19-21\n")
    spoil("tests/test_sample.py", "def test_seeds_differ", "def test_eq31_seeds_differ")
    found = "\n".join(missing(build(copy)))
    for sentence in ("Eq. (2) (forward process q, one step) has no code", "has no test: a test's name must begin with test_eq06_",
                     "minddpm/score.py:34 App. F is not", "Eq. (27) is not", "Fig. 20 is not", "Fig. 21 is not", "eq31 is not",
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


# ---- paper vs. released code ----------------------------------------------------------------------------------------------
