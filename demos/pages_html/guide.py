"""The generated sections of minddpm/README.md: the order to read in, the paper's index, and the paper vs. the released code."""

import ast
import re

from minddpm.errors import UserError
from minddpm.readalong.paper import ITEMS
from minddpm.readalong.tags import starts_with
from pages_html.blocks import without_tags
from pages_html.differences import DIFFERENCES
from pages_html.order import CORE, ROOM, reading_order, room_of, zone

SENTENCE = re.compile(r".*?(?<!Eq)(?<!Alg)(?<!Sec)(?<!App)(?<!Fig)\.(?=\s|$)", re.DOTALL)


def path(index):
    """The reading guide's file."""
    return index.root / "minddpm" / "README.md"


def update(index):
    """Write the generated sections into the reading guide -> whether it changed.  UserError: this is no checkout."""
    if not index.named:
        raise UserError(f"{index.root} has no tests/: expected a checkout of the repository")
    old = path(index).read_text(encoding="utf-8")
    if (new := current(old, index)) != old:
        path(index).write_text(new, encoding="utf-8")
    return new != old


def current(text, index):
    """The reading guide with its generated sections up to date.  UserError: a section's marks are missing."""
    sections = ("order", order_section(index)), ("index", index_section(index)), ("differences", differences_section(index))
    for name, section in sections:
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise UserError(f"minddpm/README.md: expected one {begin} and one {end} after it")
        text = text[:text.index(begin) + len(begin)] + f"\n{section}\n" + text[text.index(end):]
    return text


def order_section(index):
    """A table of the core's files and then of the rooms, in the order to read them in."""
    rows, totals = {}, {CORE: 0, ROOM: 0}
    for file in reading_order(index):
        if (where := zone(file)) in totals:
            row = file.removeprefix("minddpm/") if where == CORE else f"{room_of(file)}/"
            rows.setdefault(row, {})[file] = text = (index.root / file).read_text(encoding="utf-8")
            totals[where] += text.count("\n")
    lines = ["| file | lines | paper | contents |", "|---|---|---|---|"]
    for row, files in rows.items():
        keys = [item.key for item in ITEMS if any(place.path in files for place in index.code[item.key])]
        count, first = sum(text.count("\n") for text in files.values()), next(iter(files.values()))      # a room's __init__
        summary = first_sentence(ast.get_docstring(ast.parse(first)))
        lines.append(f"| [`{row}`]({row}) | {count:,} | {joined(keys)} | {_cell(summary)} |")
    return "\n".join([*lines, "", f"The files of the core are {totals[CORE]:,} lines and the folders after them "
                                  f"{totals[ROOM]:,}, docstrings and comments included."])


def first_sentence(docstring):
    """The first sentence after the tags: "App. B.  One U-Net.  It is" -> "One U-Net."."""
    text = without_tags(docstring)
    return re.sub(r"\s+", " ", (SENTENCE.match(text) or re.match(".*", text))[0])


def index_section(index):
    """A table of the items with code or tests, and a list of those without code of their own, with the reasons."""
    lines = ["| paper | meaning | code | test |", "|---|---|---|---|"]
    reasons = {}
    for item in ITEMS:
        own_test = any(starts_with(test.name, item.token) for test in index.tests[item.key])
        if index.code[item.key] or own_test:
            cells = item.key, item.meaning, _first(index.code[item.key]), _first(index.tests[item.key])
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
        if not index.code[item.key]:
            reasons.setdefault(item.no_code_because or "not there yet", []).append(item.key)
    lines += ["", "No code of their own:", ""]
    return "\n".join(lines + [f"- {joined(keys)}: {reason}." for reason, keys in reasons.items()])


def differences_section(index):
    """The table of differences.py."""
    lines = ["| | the paper | the released code | minddpm | how to get the other | shown by |", "|---|---|---|---|---|---|"]
    for d in DIFFERENCES:
        cells = d.subject, d.paper, d.code, d.default, d.other, _link(index.named[d.test]) if d.test in index.named else d.test
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def joined(keys):
    """["Fig. 1", "Fig. 3", "Sec. 4"] -> "Fig. 1, 3, Sec. 4"."""
    text, kind = "", None
    for key in keys:
        word, number = re.split(r" (?=\S+$)", key)
        text += f"{', ' if text else ''}{number if word == kind else key}"
        kind = word
    return text


def _cell(text):
    return text.replace("|", "&#124;")


def _first(places):
    return _link(places[0]) + (f" +{len(places) - 1}" if len(places) > 1 else "") if places else "–"


def _link(place):
    file = place.path.removeprefix("minddpm/") if place.path.startswith("minddpm/") else f"../{place.path}"
    name = place.name.replace("_", "\\_")
    return f"[`{file.removeprefix('../tests/')}:{place.line}`{f' {name}' if name else ''}]({file}#L{place.line})"
