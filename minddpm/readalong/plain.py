"""The paper's formulas for a terminal: LaTeX to one line of Unicode, written as docstrings write it.

>>> plain(r"\\frac{1 - \\bar{\\alpha}_{t-1}}{1 - \\bar{\\alpha}_t} \\beta_t")
'(1 − ᾱ_{t−1}) / (1 − ᾱ_t) β_t'
"""

import re
import unicodedata

COMMANDS = dict(alpha="α", beta="β", delta="δ", epsilon="ε", theta="θ", mu="μ", sigma="σ", Sigma="Σ", sum="Σ", prod="∏", int="∫",
                nabla="∇", infty="∞", log="log", le="≤", ge="≥", approx="≈", sim="~", coloneqq=":=", eqqcolon="=:", cdot="·",
                ldots="…", left="", right="", qquad="\N{EM SPACE}")
MARKS = {"bar": "\u0304", "tilde": "\u0303", "hat": "\u0302"}
FONTS = "mathbf|mathcal|mathbb|mathrm|boldsymbol|textbf|text"
FIRST = {r"\begin{cases}": "⦃", r"\end{cases}": "⦄", r" \\ ": ";  ", " & ": " ", r"\{": "⦃", r"\}": "⦄",
         r"\left\| ": "‖", r" \right\|": "‖", r"\|": "‖", r"\,": " "}
LAST = {"⦃": "{", "⦄": "}", "-": "−", "^2": "²"}            # ⦃ and ⦄ stand for braces that are printed


def plain(tex):
    """A formula in LaTeX, of the kind that paper.py has -> Unicode.  KeyError: a command that is not known here."""
    for old, new in FIRST.items():
        tex = tex.replace(old, new)
    tex = re.sub(r"\\([A-Za-z]+)(?![A-Za-z{])", lambda match: COMMANDS[match[1]], tex)
    rules = ((rf"\\(?:{FONTS}){{([^{{}}]*)}}", r"\1"),
             (rf"\\({'|'.join(MARKS)}){{([^{{}}]*)}}", lambda match: match[2] + MARKS[match[1]]),
             (r"([_^]){([^{}]*)}", lambda match: match[1] + _script(match[2])),
             (r"\\sqrt{([^{}]*)}", lambda match: f"√{_bracketed(match[1])}"),
             (r"(log )?\\frac{([^{}]*)}{([^{}]*)}", _fraction))
    before = None
    while before != tex:                                            # from the innermost braces outwards
        before = tex
        for pattern, new in rules:
            tex = re.sub(pattern, new, tex)
    tex = re.sub(r"(?<=[\[⦃]) +| +(?=⦄)", "", re.sub(" +", " ", unicodedata.normalize("NFC", tex))).strip(" ")
    tex = tex.replace("\N{EM SPACE} ", "    ")
    for old, new in LAST.items():
        tex = tex.replace(old, new)
    return tex


def _script(text):
    text = text.replace(" ", "").replace(",", ", ")
    return text if re.fullmatch(r"\w+", text) else f"⦃{text}⦄"


def _fraction(match):
    before, top, bottom = match.groups()
    top = f"({top})" if re.search(r" [-+] ", _outside_brackets(top)) else top
    bottom = _bracketed(bottom)
    if before:
        return f"{before}({top} / {bottom})"
    return f"{top} / {bottom}" if " " in _outside_brackets(top) or bottom[0] == "(" else f"{top}/{bottom}"


def _bracketed(text):
    """The text, in brackets unless it is one factor."""
    return f"({text})" if re.search(r" |\d[^\W\d_]", _outside_brackets(text)) else text


def _outside_brackets(text):
    """The text without its brackets and their contents."""
    while (shorter := re.sub(r"\([^()]*\)|⦃[^⦃⦄]*⦄", "", text)) != text:
        text = shorter
    return text
