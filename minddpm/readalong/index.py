"""Where the paper is in the sources: for each of its items the code, the tests and the literal transcription.

The sources are read as text: nothing is imported, nothing is run.  A docstring or a comment that begins with a tag marks the code
that computes the item; a test's name begins with its item.
"""

import ast
import io
import tokenize
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from minddpm.errors import UserError
from minddpm.readalong.paper import ITEMS
from minddpm.readalong.tags import in_name, is_whole, leading, starts_with

ROOT = Path(__file__).resolve().parents[2]          # of a checkout, or of an installation


class Place(NamedTuple):
    """A stretch of a file: code that a tag stands at, or a test."""

    path: str                   # relative to the root, with /
    name: str                   # "q_posterior", "Schedule.linear", "" for a whole module
    line: int                   # of its `def`
    start: int                  # of its first decorator
    end: int

    def __str__(self):
        return f"{self.path}:{self.line} {self.name}".rstrip()


class Index(NamedTuple):
    """For each key of the paper the places of its code, its tests and its literal transcription, the best one first."""

    root: Path
    code: dict[str, list[Place]]
    tests: dict[str, list[Place]]
    literal: dict[str, list[Place]]
    named: dict[str, Place]     # every test by its name; none in an installation, which has no tests


def build(root=ROOT):
    """Read the sources under root -> Index.  tests/ and demos/ are in a checkout only.  UserError: one is not Python."""
    code, literal, all_tests = {item.key: [] for item in ITEMS}, {item.key: [] for item in ITEMS}, []
    for path in paths(root):
        texts, tests = read(path, (root / path).read_text(encoding="utf-8"))
        into = literal if path == "tests/literal.py" else {} if path.startswith("tests/") else code
        for place, text in texts:
            keys = leading(text)
            for key in set(keys) & into.keys():
                into[key].append((_best_first(key, place, len(keys), text), place))
        all_tests += tests
    code, literal = ({key: [place for _, place in sorted(found)] for key, found in kind.items()} for kind in (code, literal))
    tests = {item.key: _tests_of(item.token, all_tests, code[item.key]) for item in ITEMS}
    return Index(root, code, tests, literal, {place.name: place for place in all_tests})


def _best_first(key, place, tags, text):
    """The order of an item's places: the core, that is the top level and unet/, then the other folders, app/ and demos/ last; a
    tag that is a sentence; few other tags and no gradient; functions before classes and modules, for a section after them.
    """
    path, name = place.path, place.name
    core = path.count("/") == 1 or path.startswith("minddpm/unet/")
    no_function = not name or name[0].isupper()                     # a class, a method or a module
    return (path.startswith("demos/"), path.startswith("minddpm/app/"), not core, not is_whole(text),
            tags + ("Back:" in text), no_function != key.startswith("Sec."), path, place.line)


def _tests_of(token, tests, code):
    """An item's tests: first those whose names begin with it, of these those in the file that mirrors its code's."""
    mirror = f"test_{Path(code[0].path).name}" if code else ""
    return sorted((place for place in tests if token in in_name(place.name)), key=lambda place: (
        not starts_with(place.name, token), Path(place.path).name != mirror, place.path.count("/"), place.path, place.line))


def paths(root):
    """The Python files of minddpm, demos and tests, relative to root."""
    return [path.relative_to(root).as_posix() for folder in ("minddpm", "demos", "tests") for path in
            sorted((root / folder).rglob("*.py"))]


@lru_cache(maxsize=1000)
def read(path, text):
    """A source file -> ([(place, its docstring or comment)], [the places of its tests]).  UserError: it is not Python."""
    try:
        module = ast.parse(text)
    except SyntaxError as e:
        raise UserError(f"{path}:{e.lineno} is not Python: {e.msg}") from e
    places = functions(path, module)
    texts = [(place, ast.get_docstring(node) or "") for place, node in
             {Place(path, "", 1, 1, text.count("\n")): module, **places}.items()]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            inner = [place.name for place in places if place.start <= line <= place.end]
            texts.append((Place(path, inner[-1] if inner else "", line, line, line), token.string.lstrip("# ")))
    tests = [place for place in places if path.startswith("tests/") and place.name.rpartition(".")[2].startswith("test_")]
    return texts, tests


def functions(path, module):
    """The functions, methods and classes of a parsed module, outer ones before inner ones: {place: node}."""
    def walk(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                start = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                yield Place(path, prefix + child.name, child.lineno, start, child.end_lineno), child
                yield from walk(child, f"{prefix}{child.name}.")
    return dict(walk(module, ""))
