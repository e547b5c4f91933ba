"""How tags are written: in a text, at the start of a docstring, in a test's name."""

import pytest

from minddpm.readalong import tags


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
    assert [key for _, found in tags.groups(text) for key in found] == (keys.split("|") if keys else [])


@pytest.mark.parametrize("text, keys", [
    ("Eq. (6), (7).  Mean and variance, Eq. (4).", "Eq. (6)|Eq. (7)"),
    ("Eq. (8), (13).  Table 2, \"L\".", "Eq. (8)|Eq. (13)|Table 2"),
    ("Sec. 4.3, Fig. 5, Table 4.  Rates", "Sec. 4.3|Fig. 5|Table 4"), ("Alg. 1, line 5.  The mean", "Alg. 1"),
    ("The mean of Eq. (7).", ""), ("", ""),
])
def test_tags_at_the_start_of_a_docstring(text, keys):
    assert tags.leading(text) == (keys.split("|") if keys else [])


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


@pytest.mark.parametrize("text, whole", [
    ("Eq. (7).  The mean", True), ("Eq. (6), (7).", True), ("Sec. 4.3, Fig. 5, Table 4.  Rates", True),
    ("Alg. 1, line 5.  It", False), ("Alg. 3 and 4 with real bits", False), ("Sec. 3.3's scaling", False),
    ("The mean of Eq. (7).", False), ("", False),
])
def test_whether_a_docstring_is_of_a_whole_item(text, whole):
    assert tags.is_whole(text) is whole
