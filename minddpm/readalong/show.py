"""`minddpm paper`: one line for each thing that the paper numbers; `minddpm paper 7`: one of them with its code and tests."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

from minddpm.errors import UserError
from minddpm.readalong import index as reading
from minddpm.readalong import paper, readme

NO_TESTS = ("The tests and the literal transcription are not here: they come with a checkout of the repository, not with the "
            "installed package.")
EXCERPT = 70                    # lines of code shown of one place


def command(item=None, html=None, run=False, update_readme=False, root=reading.ROOT):
    """`minddpm paper`, with what follows it -> exit code.  UserError: no such item, or what is asked for is not here."""
    index, wanted = reading.build(root), paper.find(item) if item else None
    if update_readme:
        print(f"{'wrote' if readme.update(index) else 'nothing to change in'} {index.root / 'README.md'}")
    if html:
        pages = _pages()
        print(f"wrote {pages.write(index, Path(html))} pages; begin with {Path(html).absolute() / 'index.html'}")
    if run:
        return _run(index, wanted)
    if not (update_readme or html):
        print(one(index, wanted) if wanted else overview(index))
    return 0


def overview(index):
    """The whole paper, a line each: `Eq. (7)  posterior mean and variance  minddpm/diffusion.py:132 q_posterior  tests/…`."""
    rows = []
    for item in paper.ITEMS:
        code, tests = index.code[item.key], index.tests[item.key]
        what = first_of(code) if code else f"({item.why_not or 'not there yet'})"
        rows.append((item.key, item.meaning, what, first_of(tests) if tests else ""))
    widths = [max(len(row[column]) for row in rows if column < 2 or row[2][0] != "(") for column in range(3)]
    lines = ["  ".join(f"{text:{width}}" for text, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows]
    more = "`minddpm paper 7` shows Eq. (7) with its code and its tests, and `minddpm paper 7 --run` runs them."
    return "\n".join([*lines, "", more if index.has_tests else NO_TESTS])


def first_of(places):
    """The first place, and how many more there are."""
    return f"{places[0]}{f' +{len(places) - 1}' if len(places) > 1 else ''}"


def one(index, item):
    """One item: its formula, the code that computes it, its literal transcription and its tests."""
    where = f"  ({item.section if item.section.startswith('App') else f'Sec. {item.section}'})" if item.section else ""
    parts = [f"{item.key}  {item.meaning}{where}"]
    parts += ["\n".join(f"    {line}" for line in item.tex)] if item.tex else []
    parts += [f"No code of its own: {item.why_not}."] if item.why_not else []
    for title, places in (("Code", index.code), ("The paper, literally", index.literal), ("Tests", index.tests)):
        if found := places[item.key]:
            parts.append(f"---- {title} {'-' * (90 - len(title))}")
            parts.append(f"{found[0]}\n\n{excerpt(index, found[0])}")
            parts += ["\n".join(f"{place}" for place in found[1:])] if found[1:] else []
    if not index.has_tests:
        parts.append(NO_TESTS)
    elif index.tests[item.key]:
        parts.append(f"Run the tests: minddpm paper {item.token} --run")
    return "\n\n".join(parts)


def excerpt(index, place):
    """The lines of a place, indented; of a long one the beginning, of a whole module its docstring."""
    lines = (index.root / place.path).read_text(encoding="utf-8").splitlines()
    shown = lines[place.start - 1:place.end]
    if not place.name and place.end > place.line:
        shown = shown[:ast.parse("\n".join(lines)).body[0].end_lineno]
    if len(shown) > EXCERPT:
        shown = [*shown[:EXCERPT], f"… {len(shown) - EXCERPT} more lines"]
    return "\n".join(f"    {line}".rstrip() for line in shown)


def _run(index, item):
    tests = index.tests[item.key] if item else [place for found in index.tests.values() for place in found]
    if not index.has_tests:
        raise UserError("there are no tests beside this package: expected a checkout of the repository")
    if not tests:
        raise UserError(f"{item.key} has no test: {item.why_not or 'not there yet'}")
    if importlib.util.find_spec("pytest") is None:
        raise UserError("pytest is not installed; expected `pip install -e '.[test]'`")
    names = dict.fromkeys(f"{place.path}::{place.name.replace('.', '::')}" for place in tests)
    return subprocess.run([sys.executable, "-m", "pytest", "-m", "slow or not slow", *names], cwd=index.root).returncode


def _pages():
    for name in "pygments", "latex2mathml":
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed; expected `pip install 'minddpm[docs]'`")
    from minddpm.readalong import pages
    return pages
