"""Where the paper is in the sources: read as text, with nothing imported and nothing run.

A docstring or a comment that begins with a tag says that its code computes it; a test's name says what it tests.
"""

import ast
import io
import re
import tokenize
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from minddpm.errors import UserError
from minddpm.readalong.paper import ITEMS
from minddpm.readalong.tags import in_name, leading, mentioned, starts_with

ROOT = Path(__file__).resolve().parents[2]          # a checkout, or what pip installed
# What a reader of an equation wants to see first.
FIRST = ("diffusion", "gaussian", "reverse", "likelihood", "sample", "coding", "score", "train", "objective", "bound",
         "unet/layers/", "unet/blocks", "unet/", "app/evaluate")

PART = re.compile(r"\w+\. \S+, lines? ")


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
    named: dict[str, Place]     # every test by its name
    unknown: list[str]          # tags in the sources that the paper does not have

    @property
    def has_tests(self):
        """Whether this is a checkout: tests are not installed."""
        return bool(self.named)

    def own_tests(self, item):
        """The tests whose names begin with the item."""
        return [place for place in self.tests[item.key] if starts_with(place.name, item.token)]


def build(root=ROOT):
    """Read the sources under root -> Index.  tests/ and demos/ are in a checkout only.  UserError: one is not Python."""
    root = Path(root)
    key_of = {item.token: item.key for item in ITEMS}
    code, tests, literal = ({key: [] for key in key_of.values()} for _ in range(3))
    named, unknown = {}, []
    for path in sources(root):
        contents = read(path, (root / path).read_text(encoding="utf-8"))
        unknown += [f"{path}:{line} {key}" for line, keys in contents.mentions for key in keys if key not in code]
        into = literal if path == "tests/literal.py" else {} if path.startswith("tests/") else code
        for place, keys, part in contents.tagged:
            for key in set(keys) & set(into):
                into[key].append((_reading_order(place, part, len(keys)), place))
        for place in contents.tests:
            named[place.name] = place
            for token in dict.fromkeys(in_name(place.name)):
                if token in key_of:
                    tests[key_of[token]].append((not starts_with(place.name, token), place))
                else:
                    unknown.append(f"{place}: {token}")
    code, literal = ({key: [place for _, place in sorted(found)] for key, found in kind.items()} for kind in (code, literal))
    for key, found in tests.items():
        beside = f"tests/test_{Path(code[key][0].path).stem}.py" if code[key] else ""
        found.sort(key=lambda pair, beside=beside: (pair[0], pair[1].path != beside, pair[1].path, pair[1].line))
        tests[key] = [place for _, place in found]
    return Index(root, code, tests, literal, named, unknown)


class Contents(NamedTuple):
    """What one source file says of the paper."""

    tagged: list                # (place, keys, whether it is a part only), where a docstring or a comment begins with tags
    mentions: list              # (line, keys), wherever a docstring or a comment speaks of them
    tests: list                 # places


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
            tagged.append((place, keys, bool(PART.match(doc))))
    for line, comment in comments(text):
        mentions.append((line, mentioned(comment)))
        if keys := leading(comment):
            inner = [place.name for place in places if place.start <= line <= place.end]
            tagged.append((Place(path, inner[-1] if inner else "", line, line, line), keys, True))
    tests = [place for place in places if place.name.rpartition(".")[2].startswith("test_")]
    is_test = path.startswith("tests/") and path.rpartition("/")[2].startswith("test_")
    return Contents(tagged, mentions, tests if is_test else [])


def sources(root):
    """The Python files of minddpm, demos and tests, as paths relative to root."""
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
    """Yields (line, what it says) for each comment."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def _reading_order(place, part, shared):
    """As one reads: the method before the programs around it, all of it before its parts, alone before beside other tags."""
    module = place.path.removeprefix("minddpm/")
    rank = next((k for k, name in enumerate(FIRST) if module.startswith(name)), len(FIRST))
    kind = "." in place.name, not place.name, place.name[:1].isupper(), place.name.startswith("_")
    return place.path.startswith("demos/"), rank, part, shared, kind, place.path, place.line


def missing(index):
    """One sentence for each item that has neither code and a test of its own nor a written reason, and each unknown tag."""
    problems = [f"{where} is not in the paper's table (readalong/paper.py)" for where in index.unknown]
    for item in ITEMS:
        if not item.why_not:
            what = [name for name, places in (("code", index.code[item.key]), ("test", index.own_tests(item))) if not places]
            problems += [f"{item.key} ({item.meaning}) has no {name}: " + {
                "code": "a docstring must begin with it", "test": f"a test's name must begin with test_{item.token}_"}[name]
                for name in what]
    return problems
