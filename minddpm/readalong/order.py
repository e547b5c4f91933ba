"""The order in which to read the sources, from their folders, imports and tags.

The core comes first: the top level of minddpm/ and unet/.  Of its files each comes after those that it imports and, where that
leaves a choice, the one with the earliest item of the paper; files without a tag, which are the ground under the others, come
last.  The rooms, minddpm's other folders, follow by the same rule; then demos/ and tests/.
"""

from minddpm.readalong.paper import ITEMS

RANK = {item.key: k for k, item in enumerate(ITEMS)}
CORE, ROOM, DEMO, TEST = range(4)


def reading_order(contents):
    """{path: Contents} -> the paths in the order in which to read them."""
    needs = {path: _needs(path, contents) for path in contents}
    rooms = {}
    for path in contents:
        rooms.setdefault(room_of(path), []).append(path)
    needed_rooms = {room: {room_of(need) for path in files for need in needs[path]} for room, files in rooms.items()}
    order = []
    for room in sorted(_after(needed_rooms, key=str), key=lambda room: zone(rooms[room][0])):
        tagged = [path for path in rooms[room] if first_item(contents[path]) < len(ITEMS)]
        ground = [path for path in rooms[room] if path not in tagged]
        files = [path for group in (tagged, ground) for path in
                 _after({path: needs[path] for path in group}, key=lambda path: (first_item(contents[path]), path))]
        order += sorted(files, key=lambda path: path != f"minddpm/{room}/__init__.py")      # it tells the room's purpose
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


def first_item(contents):
    """RANK of the earliest item that a file is tagged with; the number of items if there is none."""
    return min((RANK[key] for tagged in contents.tagged for key in tagged.keys if key in RANK), default=len(ITEMS))


def _needs(path, contents):
    """The files that a file imports from; an __init__ needs none, to come before its folder, and to import it is to import those
    that it imports.
    """
    if path.endswith("__init__.py"):
        return set()
    found = {_file_of(name, contents) for name in contents[path].imports}
    for package in [file for file in found if file and file.endswith("__init__.py")]:
        found |= {_file_of(name, contents) for name in contents[package].imports}
    return found - {None, path}


def _file_of(name, contents):
    """ "minddpm.diffusion.Schedule" -> "minddpm/diffusion.py"; None for other packages."""
    while name.startswith("minddpm"):
        for path in f"{name.replace('.', '/')}.py", f"{name.replace('.', '/')}/__init__.py":
            if path in contents:
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
