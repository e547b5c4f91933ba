"""`minddpm paper`: one line for each thing that the paper numbers; `minddpm paper 7`: one of them with its code and tests."""

import ast
import importlib.util
import re
import subprocess
import sys
import textwrap

from minddpm.errors import UserError
from minddpm.readalong import paper
from minddpm.readalong.index import ROOT, build
from minddpm.readalong.plain import plain

NO_TESTS = ("The tests and the literal transcription are not here: they come with a checkout of the\n"
            "repository, not with the installed package.")
WIDTH = 100                     # columns
EXCERPT = 70                    # lines of code shown of one place


def command(words=(), run=False, root=ROOT):
    """`minddpm paper` with an item, or words to look for, or nothing for the whole paper -> exit code.

    UserError: the words name no item, or the tests are needed and are not here.
    """
    index, text = build(root), " ".join(words)
    item = paper.find(text)
    items = [item] if item else search(index, text)
    if run:
        return _run(index, items)
    print(one(index, item) if item else overview(index, items))
    return 0


def search(index, text):
    """The items that have each word of the text, at the beginning of a word, in their key, meaning or functions' names.

    All items for "".  UserError: there is none.
    """
    found = []
    for item in paper.ITEMS:
        names = " ".join([item.key, item.meaning, *(place.name for place in index.code[item.key])])
        if all(len(word) > 1 and re.search(rf"(?<![^\W_]){re.escape(word)}", names, re.IGNORECASE) for word in text.split()):
            found.append(item)
    if not found:
        raise paper.no_such(text)
    return found


def overview(index, items=paper.ITEMS):
    """A line for each item: "Eq. (7)  posterior mean and variance  diffusion.py:132 q_posterior  6 tests"."""
    code = [str(places[0]).removeprefix("minddpm/") if (places := index.code[item.key]) else "" for item in items]
    tests = [f"{count} test{'s' if count > 1 else ''}" if (count := len(index.tests[item.key])) else "" for item in items]
    key, place, count = (max(map(len, column)) for column in ([item.key for item in items], [*code, " " * 40], tests))
    meaning = min(max(len(item.meaning) for item in items), WIDTH - key - place - count - 6)
    lines = []
    for item, first, number in zip(items, code, tests, strict=True):
        right = f"{first:{place}}  {number:>{count}}"
        if not first:
            right = _short(f"({item.no_code_because or 'not there yet'})", place + count + 2)
        lines.append(f"{item.key:{key}}  {_short(item.meaning, meaning):{meaning}}  {right}".rstrip())
    more = ("`minddpm paper 7` shows Eq. (7) with its code and its tests, `minddpm paper 7 --run` runs them, and\n"
            "`minddpm paper posterior` looks for a word.  Files without demos/ before them are in minddpm/.")
    return "\n".join([*lines, "", more if index.named else NO_TESTS])


def _short(text, width):
    return textwrap.shorten(text, width, placeholder=" …")


def one(index, item):
    """One item: its formula, the code that computes it, its literal transcription and its tests."""
    parts = [f"{item.key}  {item.meaning}{f'  ({item.where})' if item.where else ''}"]
    parts += ["\n".join(_formula(line) for line in item.tex)] if item.tex else []
    parts += [textwrap.fill(f"No code of its own: {item.no_code_because}.", WIDTH)] if item.no_code_because else []
    for title, places in (("Code", index.code), ("The paper, literally", index.literal), ("Tests", index.tests)):
        if found := places[item.key]:
            parts.append(f"---- {title} {'-' * (90 - len(title))}")
            parts.append(f"{found[0]}\n\n{excerpt(index, found[0])}")
            parts += ["\n".join(f"{place}" for place in found[1:])] if found[1:] else []
    if not index.named:
        parts.append(NO_TESTS)
    elif index.tests[item.key]:
        parts.append(f"Run the tests: minddpm paper {item.token} --run")
    return "\n\n".join(parts)


def _formula(tex):
    return textwrap.fill(plain(tex), WIDTH, initial_indent="    ", subsequent_indent=" " * 8, break_long_words=False)


def excerpt(index, place):
    """The lines of a place, indented; of a long one the beginning, of a whole module its docstring."""
    lines = (index.root / place.path).read_text(encoding="utf-8").splitlines()
    shown = lines[place.start - 1:place.end]
    if not place.name and place.end > place.line:
        shown = shown[:ast.parse("\n".join(lines)).body[0].end_lineno]
    if len(shown) > EXCERPT:
        shown = [*shown[:EXCERPT], f"… {len(shown) - EXCERPT} more lines"]
    return "\n".join(f"    {line}".rstrip() for line in shown)


def _run(index, items):
    tests = [place for item in items for place in index.tests[item.key]]
    if not index.named:
        raise UserError("there are no tests beside this package: expected a checkout of the repository")
    if not tests:
        raise UserError(f"{items[0].key} has no test: {items[0].no_code_because or 'not there yet'}")
    if importlib.util.find_spec("pytest") is None:
        raise UserError("pytest is not installed; expected `pip install -e '.[test]'`")
    names = dict.fromkeys(f"{place.path}::{place.name.replace('.', '::')}" for place in tests)
    return subprocess.run([sys.executable, "-m", "pytest", "-m", "slow or not slow", *names], cwd=index.root).returncode
