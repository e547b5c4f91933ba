"""The names and keywords of CuPy that minddpm and the stand-in use, looked up in versions 13.6 and 14.2.

The snapshots of CuPy's interface, and the audit that reads sources against them, come with the tool that
the variable MINDDPM_CUPY_ON_CPU names.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import standin

ROOT = Path(__file__).resolve().parents[2]
TOOL = Path(os.environ.get("MINDDPM_CUPY_ON_CPU", "/nowhere")) / "standin"
MISSING = "MINDDPM_CUPY_ON_CPU does not name the folder of cupy_on_cpu, which has the snapshots of CuPy's interface"
pytestmark = pytest.mark.skipif(not TOOL.is_dir(), reason=MISSING)
SNAPSHOTS = sorted(TOOL.glob("cupy_api_*.json"))

# The sources whose NumPy calls meet device arrays
PACKAGE = ROOT / "minddpm"
SOURCES = [*PACKAGE.glob("*.py"), *PACKAGE.glob("unet/**/*.py"), PACKAGE / "data/sets.py",
           *(PACKAGE / f"fast/{name}.py" for name in ("cuda", "adam_cuda", "training"))]

# Names that the audit complains of, and why they are right
ON_THE_HOST = {
    "__name__":             "a type's or a function's",
    "errstate":             "NumPy's own state; nothing is dispatched",
    "setflags":             "of a schedule's tables, made on the host",
    "random.Generator":     "the plain layer of dropout draws on the host",
    "random.Philox":        "the same",
    "random.SeedSequence":  "all random numbers are drawn on the host",
}


def test_there_are_snapshots_of_both_versions():
    assert [json.loads(path.read_text())["version"] for path in SNAPSHOTS] == ["13.6.0", "14.2.0"]


@pytest.mark.parametrize("path", SNAPSHOTS, ids=lambda path: path.stem)
def test_the_stand_in_has_no_name_and_no_keyword_that_cupy_lacks(path):
    api = json.loads(path.read_text())
    module, array = api["modules"]["cupy"], api["classes"]["cupy.ndarray"]
    for name, keywords in standin.FUNCTIONS.items():
        assert module[name]["kind"] == "func" and keywords <= set(module[name]["params"]), name
    for name in standin.UFUNCS:
        assert module[name]["kind"] in ("ufunc", "gufunc"), name
    for name in standin.SPECIAL:
        assert name not in module and api["modules"]["cupyx.scipy.special"][name]["kind"] == "ufunc", name
    for name, keywords in standin.METHODS.items():
        assert keywords <= set(array[name]["params"]), name
    assert set(standin.ATTRIBUTES) <= set(array)


def complaints(folder):
    """The lines of the audit about names that either version lacks, in the sources in a folder."""
    audit = [sys.executable, TOOL / "audit.py", "--names", "np", folder, *SNAPSHOTS]
    done = subprocess.run(audit, capture_output=True, text=True)
    assert f"{len(list(folder.iterdir()))} files, CuPy 13.6.0, 14.2.0" in done.stdout, done.stdout + done.stderr
    found = [line for line in done.stdout.splitlines() if ": ERROR: " in line]
    return [line for line in found if not any(re.search(rf"\b{re.escape(name)}\b", line) for name in ON_THE_HOST)]


def test_the_sources_ask_for_nothing_that_cupy_lacks(tmp_path):
    for path in SOURCES:
        shutil.copy(path, tmp_path / ".".join(path.relative_to(PACKAGE).parts))
    assert complaints(tmp_path) == []


def test_a_call_that_cupy_lacks_is_found(tmp_path):
    (tmp_path / "bad.py").write_text("import numpy as np\ndef f(x):\n    return np.sum(x, where=x > 0) + np.maximum.reduce(x)\n")
    assert len(complaints(tmp_path)) >= 3
