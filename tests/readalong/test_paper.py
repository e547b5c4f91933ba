"""The paper's contents, and the names by which a reader calls its items."""

import re

import pytest

from minddpm.errors import UserError
from minddpm.readalong import paper
from minddpm.readalong.paper import ITEMS, find


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


def test_symbols_of_formulas_are_all_used():
    text = "".join(item.formula for item in ITEMS)
    assert all(re.search(rf"\\{name}(?![A-Za-z])", text) for name in paper.MACROS)


@pytest.mark.parametrize("text, key", [
    ("7", "Eq. (7)"), ("eq07", "Eq. (7)"), ("EQ 7", "Eq. (7)"), ("Eq. (7)", "Eq. (7)"), ("equation 16", "Eq. (16)"),
    ("alg2", "Alg. 2"), ("Algorithm 2", "Alg. 2"), ("table4", "Table 4"), ("fig06", "Fig. 6"), ("Figure 12", "Fig. 12"),
    ("sec33", "Sec. 3.3"), ("Sec. 3.3", "Sec. 3.3"), ("section 4", "Sec. 4"), ("b", "App. B"), ("App. C", "App. C"),
])
def test_an_item_by_any_of_its_names(text, key):
    assert find(text).key == key


@pytest.mark.parametrize("text", ["0", "27", "alg5", "fig20", "7 8 9", "Eq. (99)"])
def test_a_number_that_the_paper_does_not_have(text):
    with pytest.raises(UserError, match="the paper's index has no"):
        find(text)


@pytest.mark.parametrize("text", ["", "table", "foo", "seven", "E", "∞", "-", "posterior"])
def test_words_are_no_item(text):
    assert find(text) is None
