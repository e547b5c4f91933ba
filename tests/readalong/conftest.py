"""The index of the sources, and a copy of them to be spoilt."""

import shutil
from pathlib import Path

import pytest

from minddpm.readalong.index import build

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def index():
    return build(ROOT)


@pytest.fixture
def copy(tmp_path):
    for folder in "minddpm", "tests", "demos":
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.npz", "__pycache__", "*.png"))
    return tmp_path


@pytest.fixture
def spoil(copy):
    """Replaces a text in one of the copy's files."""
    def spoil(path, old, new):
        text = (copy / path).read_text()
        assert old in text, f"{path} has no {old!r}"
        (copy / path).write_text(text.replace(old, new, 1))
    return spoil
