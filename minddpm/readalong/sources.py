"""The paper's items in the sources, which are read as text: nothing is imported, nothing is run.

A docstring or a comment that begins with a tag marks the code that computes the item; a test's name begins with its item.
"""

import ast
import io
import tokenize
from functools import lru_cache
from typing import NamedTuple

from minddpm.errors import UserError
from minddpm.readalong.tags import is_whole, leading, mentioned


class Place(NamedTuple):
    """A stretch of a file: code that a tag stands at, or a test."""

    path: str                   # relative to the root, with /
    name: str                   # "q_posterior", "Schedule.linear", "" for a whole module
    line: int                   # of its `def`
    start: int                  # of its first decorator
    end: int

    def __str__(self):
        return f"{self.path}:{self.line} {self.name}".rstrip()


class Tagged(NamedTuple):
    """A place whose docstring or comment begins with tags."""

    place: Place
    keys: list[str]
    whole: bool                 # "Eq. (7).  The mean": it computes that; not "Alg. 1, line 5." or a comment in a function
    gradient: bool              # whether its gradient is computed there too
    length: int                 # lines without the docstring


class Contents(NamedTuple):
    """The summary, tags, tests and imports of one source file."""

    summary: str                # its docstring
    lines: int
    tagged: list[Tagged]
    mentions: list              # (line, keys) for each docstring or comment, wherever in it they stand
    tests: list[Place]
    imports: set[str]           # "minddpm.diffusion.Schedule", "numpy"


@lru_cache(maxsize=1000)
def read(path, text):
    """One source file -> Contents.  UserError: it is not Python."""
    try:
        module = ast.parse(text)
    except SyntaxError as e:
        raise UserError(f"{path}:{e.lineno} is not Python: {e.msg}") from e
    places = functions(path, module)
    tagged, mentions = [], []
    for place, node in {Place(path, "", 1, 1, text.count("\n")): module, **places}.items():
        doc = ast.get_docstring(node) or ""
        mentions.append((place.line, mentioned(doc)))
        if keys := leading(doc):
            tagged.append(Tagged(place, keys, is_whole(doc), "Back:" in doc, place.end - node.body[0].end_lineno))
    for line, comment in comments(text):
        mentions.append((line, mentioned(comment)))
        if keys := leading(comment):
            inner = [place.name for place in places if place.start <= line <= place.end]
            tagged.append(Tagged(Place(path, inner[-1] if inner else "", line, line, line), keys, False, False, 1))
    is_test = path.startswith("tests/") and path.rpartition("/")[2].startswith("test_")
    tests = [place for place in places if is_test and place.name.rpartition(".")[2].startswith("test_")]
    return Contents(ast.get_docstring(module) or "", text.count("\n"), tagged, mentions, tests, _imports(module))


def paths(root):
    """The Python files of minddpm, demos and tests, relative to root."""
    return [path.relative_to(root).as_posix() for folder in ("minddpm", "demos", "tests") for path in
            sorted((root / folder).rglob("*.py"))]


def functions(path, module):
    """The functions, methods and classes of a parsed module, outer ones before inner ones: {place: node}."""
    def walk(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                start = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                yield Place(path, prefix + child.name, child.lineno, start, child.end_lineno), child
                yield from walk(child, f"{prefix}{child.name}.")
    return dict(walk(module, ""))


def comments(text):
    """Yields (line, text) for each comment."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def _imports(module):
    """The names that a module imports, wherever in it, each with its module's name before it."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found
