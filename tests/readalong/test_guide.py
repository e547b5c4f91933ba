"""The reading guide's generated sections are right and current."""

import re
import sys

import pytest

from minddpm.errors import UserError
from minddpm.readalong.index import ROOT, build

sys.path.insert(0, str(ROOT / "demos"))
from pages_html import guide  # noqa: E402
from pages_html.differences import DIFFERENCES  # noqa: E402
from pages_html.order import CORE, reading_order, zone  # noqa: E402

HOW = "run `python demos/pages.py --guide`"


def test_the_reading_guide_is_current(index):
    text = guide.path(index).read_text(encoding="utf-8")
    assert guide.current(text, index) == text, HOW


def test_a_stale_line_is_found_and_put_right(copy, spoil):
    guide.update(build(copy))
    assert not guide.update(build(copy))
    spoil("minddpm/diffusion.py", "import numpy as np", "import numpy as np\n")               # every line moves by one
    index = build(copy)
    text = guide.path(index).read_text()
    assert guide.current(text, index) != text
    assert guide.update(index) and not guide.update(index)
    line = index.code["Eq. (7)"][0].line
    assert f"(diffusion.py#L{line})" in guide.path(index).read_text()
    spoil("minddpm/README.md", "<!-- /index -->", "")
    with pytest.raises(UserError, match="expected one <!-- index --> and one <!-- /index -->"):
        guide.update(index)


def test_every_link_of_the_guides_tables_leads_to_its_line(index):
    text = guide.index_section(index) + guide.differences_section(index)
    links = re.findall(r"\[`[^`]*:(\d+)`([^\]]*)\]\(([^#)]+)#L(\d+)\)", text)
    assert len(links) > 80
    for shown, name, path, line in links:
        assert shown == line
        if name:
            last = name.replace("\\_", "_").rpartition(".")[2]
            assert last in (ROOT / "minddpm" / path).read_text().splitlines()[int(line) - 1]
    assert all(row.count(" | ") in (3, 5) for row in text.splitlines() if row.startswith("| "))     # no stray column


def test_the_order_has_a_row_for_each_file_of_the_core_and_for_each_room(index):
    rows = re.findall(r"^\| \[`([^`]+)`\]\(([^)]+)\) \| ([\d,]+) \| [^|]* \| (.+) \|$", guide.order_section(index), re.MULTILINE)
    core = [path.removeprefix("minddpm/") for path in reading_order(index) if zone(path) == CORE]
    rooms = {f"{path.parent.name}/" for path in (ROOT / "minddpm").glob("*/__init__.py")} - {"unet/"}
    assert [row[0] for row in rows[:len(core)]] == core and {row[0] for row in rows[len(core):]} == rooms
    for name, link, lines, summary in rows:
        place = ROOT / "minddpm" / link
        count = sum(file.read_text().count("\n") for file in ([place] if place.is_file() else place.rglob("*.py")))
        assert name == link and int(lines.replace(",", "")) == count and summary.endswith("."), name


@pytest.mark.parametrize("docstring, first", [
    ("App. B.  One layer.  It\nis y = x.", "One layer."), ("Weights of 1.5 MB. More.", "Weights of 1.5 MB."),
    ("The bound of\nEq. (5), App. A.\n\nMore.", "The bound of Eq. (5), App. A."), ("No full stop", "No full stop"),
    ("Sec. 3.3's scaling. More", "Sec. 3.3's scaling."),
])
def test_the_first_sentence(docstring, first):
    assert guide.first_sentence(docstring) == first


def test_every_difference_is_shown_by_a_test(index):
    subjects = " ".join(d.subject + d.code for d in DIFFERENCES)
    for word in ("x̂_0", "tanh", "σ_1²", "EMA", "Warm-up", "shards", "1e-10", "flips", "Church", "interpolation", "9,984", "ε"):
        assert word in subjects
    for d in DIFFERENCES:
        assert d.test in index.named, f"{d.subject}: there is no {d.test}"
        assert all(d) and not any(cell.endswith(".") for cell in d)
