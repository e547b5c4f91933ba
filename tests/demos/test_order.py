"""The order in which to read the sources."""

import re
import sys

import pytest

from minddpm.readalong.index import ROOT, build

sys.path.insert(0, str(ROOT / "demos"))
from pages_html.order import CORE, reading_order, zone  # noqa: E402


@pytest.fixture
def order(tmp_path):
    """Makes of {"minddpm/a": text} the reading order."""
    def order(sources):
        for path in tmp_path.rglob("*.py"):
            path.unlink()
        for name, text in sources.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / f"{name}.py").write_text(text)
        return [path.removesuffix(".py") for path in reading_order(build(tmp_path))]
    return order


def test_files_come_after_those_that_they_import_and_in_the_papers_order(order):
    found = order({
        "tests/test_a": "", "demos/a": "from minddpm.room.a import a", "minddpm/app/cli": "from minddpm.room import a",
        "minddpm/room/a": "from minddpm.eq7 import x", "minddpm/eq1": "# Eq. (1)\nfrom minddpm.eq7 import x",
        "minddpm/eq7": "# Eq. (7)\nfrom minddpm import ground", "minddpm/eq3": "# Eq. (3)\n# App. B",
        "minddpm/ground": "import numpy", "minddpm/unet/net": "# App. B"})
    assert found == ["minddpm/eq3", "minddpm/eq7", "minddpm/eq1", "minddpm/unet/net", "minddpm/ground",
                     "minddpm/room/a", "minddpm/app/cli", "demos/a", "tests/test_a"]


def test_a_folder_is_read_before_its_files_and_imported_with_them(order):
    found = order({"minddpm/unet/__init__": "'App. B.  The network.'\nfrom minddpm.unet.net import unet",
                   "minddpm/unet/net": "# App. B", "minddpm/train": "# Alg. 1\nfrom minddpm.unet import unet"})
    assert found == ["minddpm/unet/__init__", "minddpm/unet/net", "minddpm/train"]
    found = order({"minddpm/data/a": "# Sec. 3.3", "minddpm/data/__init__": "from minddpm.data.a import x"})
    assert found == ["minddpm/data/__init__", "minddpm/data/a"]


def test_files_that_import_each_other_are_read_all_the_same(order):
    found = order({"minddpm/a": "# Eq. (2)\nimport minddpm.b", "minddpm/b": "# Eq. (1)\nimport minddpm.a"})
    assert found == ["minddpm/b", "minddpm/a"]


def test_the_order_has_every_file_once_and_the_core_first():
    folders = "minddpm", "demos", "tests"
    files = [path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = reading_order(build())
    assert sorted(found) == sorted(files)
    zones = [zone(path) for path in found]
    assert zones == sorted(zones)
    for path in files:
        assert (zone(path) == CORE) == bool(re.fullmatch("minddpm/(unet/.*|[^/]*)", path))
    position = {path: k for k, path in enumerate(found)}
    assert position["minddpm/diffusion.py"] < position["minddpm/sample.py"] < position["minddpm/train.py"]
