"""The order in which to read the sources, from their folders, imports and tags.

The core comes first: the top level of minddpm/ and unet/.  Of its files each comes after those that it imports and, where that
leaves a choice, the one with the earliest item of the paper; files without an item, which the others build on, come last.  The
rooms, minddpm's other folders, follow by the same rule; then demos/ and tests/.
"""

import ast

from minddpm.readalong.index import paths
from minddpm.readalong.paper import ITEMS

CORE, ROOM, DEMO, TEST = range(4)


def reading_order(index):
    """The paths of the sources in the order in which to read them."""
    files = paths(index.root)
    imported = {path: _imports((index.root / path).read_text(encoding="utf-8")) for path in files}
    needs = {path: _needs(path, imported) for path in files}
    first = _first_items(index)
    rooms = {}
    for path in files:
        rooms.setdefault(room_of(path), []).append(path)
    needed_rooms = {room: {room_of(need) for path in inside for need in needs[path]} for room, inside in rooms.items()}
    order = []
    for room in sorted(_after(needed_rooms, key=str), key=lambda room: zone(rooms[room][0])):
        with_items = [path for path in rooms[room] if path in first]
        without = [path for path in rooms[room] if path not in first]
        inside = [path for group in (with_items, without) for path in
                  _after({path: needs[path] for path in group}, key=lambda path: (first.get(path, 0), path))]
        order += sorted(inside, key=lambda path: path != f"minddpm/{room}/__init__.py")     # its docstring describes the folder
    return order


def zone(path):
    """CORE, ROOM, DEMO or TEST."""
    return {"demos": DEMO, "tests": TEST}.get(room_of(path), ROOM if room_of(path) else CORE)


def room_of(path):
    """The folder that a file belongs to: "fast" for minddpm/fast/cuda.py, "demos", "tests", "" for the core."""
    parts = path.split("/")
    if parts[0] != "minddpm":
        return parts[0]
    return "" if len(parts) == 2 or parts[1] == "unet" else parts[1]


def _first_items(index):
    """For each file with an item of the paper the position in ITEMS of the earliest one."""
    first = {}
    for k, item in enumerate(ITEMS):
        for place in (*index.code[item.key], *index.literal[item.key], *index.tests[item.key]):
            first.setdefault(place.path, k)
    return first


def _imports(text):
    """The names that a module imports, wherever in it, each with its module's name before it."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def _needs(path, imported):
    """The files that a file imports from; an __init__ needs none, to come before its folder, and to import it is to import those
    that it imports.
    """
    if path.endswith("__init__.py"):
        return set()
    found = {_file_of(name, imported) for name in imported[path]}
    for package in [file for file in found if file and file.endswith("__init__.py")]:
        found |= {_file_of(name, imported) for name in imported[package]}
    return found - {None, path}


def _file_of(name, files):
    """ "minddpm.diffusion.Schedule" -> "minddpm/diffusion.py"; None for other packages."""
    while name.startswith("minddpm"):
        for path in f"{name.replace('.', '/')}.py", f"{name.replace('.', '/')}/__init__.py":
            if path in files:
                return path
        name = name.rpartition(".")[0]
    return None


def _after(needs, key):
    """{node: the nodes that it needs} -> the nodes, each after those; with a choice, or in a circle, the least key first."""
    left, order = dict(needs), []
    while left:
        free = [node for node in left if not (left[node] - {node}) & left.keys()]
        order.append(min(free or left, key=key))
        del left[order[-1]]
    return order
