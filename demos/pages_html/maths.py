"""Formulas for a browser: LaTeX to MathML; the formulas of docstrings, which are plain Unicode, to LaTeX first.

    μ̃_t = √ᾱ_{t−1} β_t / (1 − ᾱ_t) x_0   ->   \\tilde{\\mu}_t = \\sqrt{\\bar{\\alpha}_{t-1}} \\beta_t / (1 - \\bar{\\alpha}_t) x_0
"""

import re
import unicodedata

from latex2mathml.converter import convert

GREEK = dict(zip("αβγδεθκλμπρσφΔΘΣΦ∂", r"\alpha \beta \gamma \delta \epsilon \theta \kappa \lambda \mu \pi \rho \sigma \phi "
                 r"\Delta \Theta \Sigma \Phi \partial".split(), strict=True))
MARKS = {"\u0304": r"\bar", "\u0303": r"\tilde", "\u0302": r"\hat"}
UP = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ᵀⁱʲ", "0123456789-+Tij", strict=True))
DOWN = dict(zip("₀₁₂₃₄₊₋", "01234+-", strict=True))
SYMBOLS = {"−": "-", "·": r"\cdot ", "×": r"\times ", "√": "", "∏": r"\prod ", "∫": r"\int ", "∞": r"\infty ", "∇": r"\nabla ",
           "≤": r"\le ", "≥": r"\ge ", "≈": r"\approx ", "≠": r"\ne ", "∈": r"\in ", "→": r"\to ", "←": r"\leftarrow ",
           "‖": r"\| ", "⟨": r"\langle ", "⟩": r"\rangle ", "∘": r"\circ ", "⊗": r"\otimes ", "~": r"\sim ", "∝": r"\propto ",
           "|": r"\,|\,", "…": r"\ldots ", "{": r"\{", "}": r"\}", "⌊": r"\lfloor ", "⌋": r"\rfloor ",
           "ℓ": r"\ell ", "'": "'", "±": r"\pm ", "½": r"\tfrac{1}{2}"}
ENGLISH = set("all and as at but by clipped each else for from has if in is of on or otherwise outside so the then to using "
              "where with within".split())
OPERATORS = {"log", "exp", "max", "min", "sin", "cos", "tanh"}
PLAIN = set("=+-*/()[],.:;!<> ")
# The output of latex2mathml -> MathML Core, as browsers have it: letters instead of mathvariant, and spaces.
FINISH = [(rf'<m([in]) mathvariant="bold(?:-italic)?">{old}</m[in]>', rf"<m\1>{new}</m\1>")
          for old, new in {"&#x003BC;": "𝝁", "&#x003F5;": "𝝐", "&#x003A3;": "𝜮", "0": "𝟎"}.items()]
FINISH += [(r'<mtext mathvariant="bold">', '<mtext style="font-weight: bold">'),
           (r"<mi>&#x0007E;</mi>", '<mo lspace="0.28em" rspace="0.28em">∼</mo>'),
           (r"<mi>;</mi>", r'<mo separator="true">;</mo>'),
           (rf"(<mi>(?:{'|'.join(sorted(OPERATORS))})</mi>)(?!<mo stretchy=\"false\">&#x00028;)", r'\1<mspace width="0.17em"/>')]


def mathml(tex, display=True):
    """LaTeX -> a <math> element."""
    text = convert(tex, display="block" if display else "inline")
    for old, new in FINISH:
        text = re.sub(old, new, text)
    return text


def is_formula(line):
    """Whether a line of a docstring is mathematics alone: symbols that `tex` knows, and few words."""
    words = re.findall(r"[A-Za-z]{3,}(?![\w(])", line)
    return (bool(re.search(r"[=~∝≈≤≥∈←‖½²√Σ]", line)) and not re.search(r"->|==|\.\.|\w\.[a-zA-Z]|[\"`@#$\\&]|>>>|^ *\d:", line)
            and sum(map(len, words)) <= 0.5 * len(line.replace(" ", "")) and tex(line) is not None)


def tex(line):
    """A line of Unicode mathematics -> LaTeX; None where it has a symbol that is not known here."""
    try:
        return _Reader(unicodedata.normalize("NFD", line.strip().replace("≠", "\ue000"))).all()
    except KeyError:
        return None


class _Reader:
    """One pass over a line, from left to right."""

    def __init__(self, text):
        self.text, self.k = text, 0

    def all(self):
        """The LaTeX of the rest of the line."""
        parts = []
        while self.k < len(self.text):
            parts.append(self.atom())
        return "".join(parts)

    def match(self, pattern):
        """Step over a regular expression, if it is next."""
        found = re.compile(pattern).match(self.text, self.k)
        if found:
            self.k = found.end()
        return found

    def atom(self):
        """The next symbol, word or bracket with its marks, sub- and superscripts."""
        if spaces := self.match(" +"):
            return r" \quad " if len(spaces[0]) > 2 else " "
        if self.match("√"):
            return rf"\sqrt{{{self.argument()}}}"
        if self.match("Σ(?!_θ)"):
            return r"\sum " + self.scripts()
        if word := self.match(r"[A-Za-z]+(?=[̂̃̄]?)"):
            return self.word(word[0])
        character = self.text[self.k]
        self.k += 1
        if character in GREEK:
            base = GREEK[character] + " "
        elif character.isdigit():
            base = character + (digits[0] if (digits := self.match(r"[\d.,]*\d")) else "")
        elif character in UP or character in DOWN:
            self.k -= 1
            base = "{}"
        elif character == "\ue000":
            base = r"\ne "
        else:
            base = character if character in PLAIN else SYMBOLS[character]
        thin = r"\," if character == "∇" else ""                    # ∇_θ 1/B, not ∇_θ1/B
        return self.marked(base) + self.scripts() + thin

    def word(self, word):
        """A run of letters: one letter, a differential, an operator, words of a sentence, or a name."""
        if self.text[self.k:self.k + 1] in MARKS and len(word) > 1:                 # the mark is on the last letter only
            self.k -= 1
            return f"{word[:-1]} {self.atom()}"
        if len(word) > 1 and (more := self.match(r"(?:_[A-Za-z]{3,})+")):
            return rf"\text{{{word}{more[0]}}}" + self.scripts()
        if word in OPERATORS:
            return rf"\{word} " + self.scripts()
        if word in ENGLISH and not self.text.startswith(("(", "["), self.k):
            rest = self.match(r"(?: [a-z]{2,}(?![\w(\[]))*")[0]
            return rf"\text{{ {word}{rest} }}"
        if len(word) == 1:
            return self.marked(word) + self.scripts()
        if len(word) == 2 and word[0] == "d":
            return rf"d {word[1]}" + self.scripts()
        digits = self.match(r"\d*")[0]
        return rf"\text{{{word}{digits}}}" + self.scripts()

    def marked(self, base):
        while self.text[self.k:self.k + 1] in MARKS:
            base = f"{MARKS[self.text[self.k]]}{{{base}}}"
            self.k += 1
        return base

    def scripts(self):
        out = ""
        while self.k < len(self.text):
            if self.match("_"):
                out += f"_{{{self.argument()}}}"
            elif self.match(r"\^"):
                out += f"^{{{self.argument()}}}"
            elif found := self.match(f"[{''.join(UP)}]+"):
                out += f"^{{{''.join(UP[c] for c in found[0])}}}"
            elif found := self.match(f"[{''.join(DOWN)}]+"):
                out += f"_{{{''.join(DOWN[c] for c in found[0])}}}"
            else:
                break
        return out

    def argument(self):
        """The argument of a root, _ or ^: {…} or (…) without its brackets, a run of letters and digits, or one symbol."""
        for opening, closing in ("{", "}"), ("(", ")"):
            if self.text.startswith(opening, self.k):
                self.k += 1
                return self.nested(closing)
        if self.match("[−-]"):
            return f"-{self.argument()}"
        if found := self.match(r"[A-Za-z0-9]+(?![̂̃̄])"):
            return found[0]
        return self.atom()

    def nested(self, closing):
        opening, parts = {"}": "{", ")": "("}[closing], []
        while self.k < len(self.text):
            if self.text[self.k] == closing:
                self.k += 1
                return "".join(parts)
            if self.text[self.k] == opening:
                self.k += 1
                inside = self.nested(closing)
                parts.append(f"{SYMBOLS.get(opening, opening)}{inside}{SYMBOLS.get(closing, closing)}{self.scripts()}")
            else:
                parts.append(self.atom())
        raise KeyError(closing)
