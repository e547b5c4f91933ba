"""Pieces of HTML that the read-along pages are made of."""

import html
import re
from functools import cache
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from pages_html import maths

# x_t, dx_t, μ_θ, L_{t−1}, ∏_{i=1}^D, e^{−d}, (…)^(−½): a letter or sign with its sub- and superscripts, in a sentence
SUBSCRIPT = re.compile(r"(?<!\w)(?<!\w\.)(d?[^\W\d_][\u0302-\u0304]?|[∏∫])_(\{[^}]*\}|[A-Za-z]{3,}(?![\w(])|"
                       r"[A-Za-z0-9\u0370-\u03ff]{1,2}(?![A-Za-z_]))(?:\^(\{[^}]*\}|[A-Za-z0-9]))?")
SUPERSCRIPT = re.compile(r"\^(?:\{([^{}]*)\}|\(([^()]*)\))")
MARKED = re.compile("([^\\W\\d_])([\u0302-\u0304])")           # β̃: many a font draws the mark into the letter
MARKS = {"\u0302": "^", "\u0303": "~", "\u0304": "¯"}


@cache
def style():
    """The pages' style sheet."""
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8")


def page(title, body, ways=()):
    """A whole page.  body: pieces of HTML.  ways: links to the pages before and after it."""
    head = ('<a href="index.html">The paper</a><a href="differences.html">Paper vs. released code</a>'
            '<a href="index.html#files">Files</a>')
    more = f'<span class="end">{" &ensp; ".join(ways)}</span>' if ways else ""
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<style>\n{style()}</style>\n</head>\n<body>\n<nav>{head}{more}</nav>\n" + "\n".join(body) + "\n</body>\n</html>\n")


def highlighted(text):
    """A source file -> the HTML of each of its lines."""
    lexer = PythonLexer(stripnl=False, ensurenl=False)
    return highlight(text, lexer, HtmlFormatter(nowrap=True)).split("\n")


def code(lines, numbers, narrow=False):
    """The lines with these numbers, moved to the left; a long line goes on below, further in than it began."""
    shown = []
    for line in (lines[number - 1] for number in numbers):
        blank_after = not shown or not _bare(shown[-1]).strip() or _bare(shown[-1]).rstrip().endswith(":")
        if _bare(line).strip() or not blank_after:                  # the text between blank lines is elsewhere
            beside = narrow and not _bare(line).lstrip().startswith("#")
            shown.append(re.sub(r" {3,}((?:</span>)?<span class=\"c1\">)", r"  \1", line) if beside else line)
    while shown and not _bare(shown[-1]).strip():
        shown.pop()
    margin = min((_inset(line) for line in shown if _bare(line).strip()), default=0)
    rows = (f'<span class="l" style="--i:{max(0, _inset(line) - margin)}">{_moved(line, margin)}</span>' for line in shown)
    return f'<div class="code">{"".join(rows)}</div>'


def _bare(line):
    return re.sub(r"<[^>]*>", "", line)


def _inset(line):
    return len(_bare(line)) - len(_bare(line).lstrip(" "))


def _moved(line, margin):
    """A line without its first `margin` spaces, and with the rest of its indentation in an element of its own."""
    spaces = " " * (_inset(line) - margin)
    bare = re.sub(r"^((?:<span[^>]*>)*) +", r"\1", line)
    return f'<span class="in">{spaces}</span>{bare}' if spaces else bare


def formulas(lines):
    """Lines of LaTeX, each a list of parts that may stand below each other where there is no room."""
    if not lines:
        return ""
    rows = ("".join(f"<span>{_math(part)}</span>" for part in line) for line in lines)
    return f'<div class="maths">{"<br>".join(rows)}</div>'


@cache
def _math(tex):
    return maths.mathml(tex)


def where(place, label=""):
    """file:line and name, above a piece of code."""
    name = f" <b>{html.escape(place.name)}</b>" if place.name else ""
    return f'<p class="where">{place.path}:{place.line}{name}{f" &ensp; {label}" if label else ""}</p>'


def sentence(text):
    """Plain words, with x_t, β̃_t, ε_θ and e^{−d} set as one reads them."""
    return MARKED.sub(_marked, _scripts(html.escape(text, quote=False)))


def _marked(match):
    letter, mark = f'<mi mathvariant="normal">{match[1]}</mi>', f'<mo stretchy="false">{MARKS[match[2]]}</mo>'
    return f'<math><mover accent="true">{letter}{mark}</mover></math>'


def _scripts(text):
    def set_in(match):
        above = f"<sup>{_scripts(match[3].strip('{}'))}</sup>" if match[3] else ""
        return f"{match[1]}<sub>{_scripts(match[2].strip('{}'))}</sub>{above}"

    return SUPERSCRIPT.sub(r"<sup>\1\2</sup>", SUBSCRIPT.sub(set_in, text))
