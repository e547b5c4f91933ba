"""The paper's formulas in a terminal."""

import re

import pytest

from minddpm.readalong.paper import ITEMS
from minddpm.readalong.plain import plain

FORMULAS = {item.key: [plain(line) for line in item.tex] for item in ITEMS}


@pytest.mark.parametrize("key, lines", [
    ("Eq. (4)", ["q(x_t | x_0) = N(x_t; √ᾱ_t x_0, (1 − ᾱ_t) I)", "α_t := 1 − β_t,     ᾱ_t := ∏_{s=1}^t α_s"]),
    ("Eq. (7)", ["μ̃_t(x_t, x_0) := √ᾱ_{t−1} β_t / (1 − ᾱ_t) x_0 + √α_t (1 − ᾱ_{t−1}) / (1 − ᾱ_t) x_t",
                 "β̃_t := (1 − ᾱ_{t−1}) / (1 − ᾱ_t) β_t"]),
    ("Eq. (12)", ["E_{x_0, ε}[β_t² / (2 σ_t² α_t (1 − ᾱ_t)) ‖ε − ε_θ(√ᾱ_t x_0 + √(1 − ᾱ_t) ε, t)‖²]"]),
    ("Eq. (13)", ["p_θ(x_0 | x_1) = ∏_{i=1}^D ∫_{δ_−(x_0^i)}^{δ_+(x_0^i)} N(x; μ_θ^i(x_1, 1), σ_1²) dx",
                  "δ_+(x) = {∞ if x = 1; x + 1/255 if x < 1}", "δ_−(x) = {−∞ if x = −1; x − 1/255 if x > −1}"]),
    ("Eq. (17)", ["L = E_q[−log (p_θ(x_{0:T}) / q(x_{1:T} | x_0))]"]),
    ("Eq. (24)", ["= E_q[−log p(x_T) − Σ_{t≥1} log (p_θ(x_{t−1} | x_t)/q(x_{t−1} | x_t) · q(x_{t−1})/q(x_t))]"]),
    ("Alg. 2", ["x_T ~ N(0, I)", "for t = T, …, 1 do", "    z ~ N(0, I) if t > 1, else z = 0",
                "    x_{t−1} = 1/√α_t (x_t − (1 − α_t)/√(1 − ᾱ_t) ε_θ(x_t, t)) + σ_t z", "return x_0"]),
])
def test_formulas_as_docstrings_write_them(key, lines):
    assert FORMULAS[key] == lines


@pytest.mark.parametrize("key", [key for key, lines in FORMULAS.items() if lines])
def test_no_formula_has_latex_left(key):
    for line in FORMULAS[key]:
        assert not re.search(r"[\\&%$⦃⦄]", line) and "  " not in line.strip().replace(",     ", ", "), line
        assert all(line.count(a) == line.count(b) for a, b in ("{}", "()", "[]")), line


def test_a_command_that_is_not_known_is_an_error():
    with pytest.raises(KeyError, match="snowman"):
        plain(r"\snowman x")
