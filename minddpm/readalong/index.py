"""Where the paper is in the sources: for each of its items the code, the tests and the literal transcription."""

from pathlib import Path
from typing import NamedTuple

from minddpm.readalong.order import CORE, reading_order, zone
from minddpm.readalong.paper import ITEMS
from minddpm.readalong.sources import Contents, Place, paths, read
from minddpm.readalong.tags import in_name, starts_with

ROOT = Path(__file__).resolve().parents[2]          # of a checkout, or of an installation


class Index(NamedTuple):
    """For each key of the paper the places of its code, its tests and its literal transcription, the best one first."""

    root: Path
    files: dict[str, Contents]  # by path, in the order in which to read them
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
    files = {path: read(path, (root / path).read_text(encoding="utf-8")) for path in paths(root)}
    files = {path: files[path] for path in reading_order(files)}
    code, literal = ({item.key: [] for item in ITEMS} for _ in range(2))
    for rank, (path, contents) in enumerate(files.items()):
        into = literal if path == "tests/literal.py" else {} if path.startswith("tests/") else code
        for tagged in contents.tagged:
            for key in set(tagged.keys) & set(into):
                into[key].append((_best_first(tagged, rank), tagged.place))
    code, literal = ({key: [place for _, place in sorted(found)] for key, found in kind.items()} for kind in (code, literal))
    named = {place: in_name(place.name) for contents in files.values() for place in contents.tests}
    tests = {item.key: _tests_of(item.token, named, code[item.key]) for item in ITEMS}
    known = {item.token for item in ITEMS}
    unknown = [f"{path}:{line} {key}" for path, contents in files.items() for line, keys in contents.mentions for key in keys
               if key not in code]
    unknown += [f"{place}: {token}" for place, tokens in named.items() for token in dict.fromkeys(tokens) if token not in known]
    return Index(root, files, code, tests, literal, {place.name: place for place in named}, unknown)


def _tests_of(token, named, code):
    """An item's tests: first those whose names begin with it, of these those in the file that mirrors its code's."""
    mirror = f"test_{Path(code[0].path).name}" if code else ""
    found = [place for place, tokens in named.items() if token in tokens]
    return sorted(found, key=lambda place: (not starts_with(place.name, token), Path(place.path).name != mirror,
                                            place.path.count("/"), place.path, place.line))


def _best_first(tagged, rank):
    """The order of an item's places: the core, the rooms, the demos; the whole before its parts; those that compute least
    besides the item, that is other tags or a gradient; in the core the file that is read first; functions before modules,
    classes, methods and private names; the longest.
    """
    where, name = zone(tagged.place.path), tagged.place.name
    kind = "." in name, not name, name[:1].isupper(), name.startswith("_")
    besides = len(tagged.keys) + tagged.gradient
    return where, not tagged.whole, besides, rank if where == CORE else 0, kind, -tagged.length, rank, tagged.place.line


def missing(index):
    """One sentence for each item that has neither code and a test of its own nor a written reason, and each unknown tag."""
    problems = [f"{where} is not in the paper's table (readalong/paper.py)" for where in index.unknown]
    for item in ITEMS:
        if item.no_code_because:
            continue
        if not index.code[item.key]:
            problems.append(f"{item.key} ({item.meaning}) has no code: a docstring must begin with it")
        if not index.own_tests(item):
            problems.append(f"{item.key} ({item.meaning}) has no test: a test's name must begin with test_{item.token}_")
    return problems
