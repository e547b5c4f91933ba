"""The README's generated sections: the paper's index, and "Paper vs. released code"."""

import re

from minddpm import files
from minddpm.differences import DIFFERENCES
from minddpm.errors import UserError
from minddpm.paper import ITEMS


def update(index):
    """Write the generated sections into the README beside the sources -> whether it changed."""
    path = index.root / "README.md"
    if not path.is_file():
        raise UserError(f"{path} is not there: expected a checkout of the repository")
    old = path.read_text(encoding="utf-8")
    if (new := current(old, index)) != old:
        files.write(path, new.encode())
    return new != old


def current(text, index):
    """A README with its generated sections as they should be.  UserError: a section's marks are missing."""
    for name, section in ("index", index_section(index)), ("differences", differences_section(index)):
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise UserError(f"README.md: expected one {begin} and one {end} after it")
        text = text[:text.index(begin) + len(begin)] + f"\n{section}\n" + text[text.index(end):]
    return text


def index_section(index):
    """A table of what is computed and tested, and a list of what is not, with the reasons."""
    lines = ["| paper | what it is | code | test |", "|---|---|---|---|"]
    reasons = {}
    for item in ITEMS:
        if index.code[item.key]:
            cells = item.key, item.meaning, _first(index.code[item.key]), _first(index.tests[item.key])
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
        else:
            reasons.setdefault(item.why_not or "not there yet", []).append(item.key)
    lines += ["", "No code of their own:", ""]
    return "\n".join(lines + [f"- {joined(keys)}: {reason}." for reason, keys in reasons.items()])


def differences_section(index):
    """The table of differences.py."""
    lines = ["| | the paper | the released code | minddpm | the other | shown by |", "|---|---|---|---|---|---|"]
    for d in DIFFERENCES:
        cells = d.what, d.paper, d.code, d.default, d.other, _link(index.named[d.test]) if d.test in index.named else d.test
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines)


def joined(keys):
    """["Fig. 1", "Fig. 3", "Sec. 4"] -> "Fig. 1, 3, Sec. 4"."""
    text, kind = "", None
    for key in keys:
        word, number = re.split(r" (?=\S+$)", key)
        text += f"{', ' if text else ''}{number if word == kind else key}"
        kind = word
    return text


def _first(places):
    return _link(places[0]) + (f" +{len(places) - 1}" if len(places) > 1 else "") if places else "–"


def _link(place):
    module = re.sub(r"^(minddpm|tests)/", "", place.path)
    name = place.name.replace("_", "\\_")
    return f"[`{module}:{place.line}`{f' {name}' if name else ''}]({place.path}#L{place.line})"
