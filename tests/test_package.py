"""The package as a whole: what imports what, how long a file is, what is written about it, and what is shipped.

Two towers meet once: the mathematics, which never sees a network, and the network, which never sees a β.  The rooms above them
are unknown to both.  Everything here is derived from the folders.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minddpm"

THIRD_PARTY = {"numpy", "scipy", "imageio", "PIL", "tqdm", "threadpoolctl"}      # pyproject's dependencies
LONGEST = 260                                                   # lines of a file: a sitting
MEET = {"train", "model"}                                       # the files of the paper that know both towers


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "minddpm"


SOURCES = {name_of(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def room(module):
    """A folder is a room, and so is each file at the top."""
    return module.split(".")[0]


def is_core(module):
    """The paper's files and the ground that they stand on: the top level and unet/."""
    return ("." not in module or room(module) == "unet") and module not in ("minddpm", "__main__") and module not in folders()


def folders():
    return {room(module) for module in SOURCES if "." in module} - {"unet"}


def imports(module, source, known=None):
    """The modules of minddpm that a source imports, wherever in it, and what it imports from elsewhere."""
    ours, others, known = set(), set(), known or SOURCES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import; write it in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] != "minddpm":
                others.add(name)
                continue
            parts = name.split(".")[1:]
            while parts and ".".join(parts) not in known:       # a function's name, or a class's
                parts.pop()
            ours.add(".".join(parts) or "minddpm")
    return ours, others


def graph_of(sources):
    return {module: imports(module, source, sources)[0] for module, source in sources.items()}


def circle(graph):
    """The nodes of a graph that lie on a circle or lead to one only, [] if there is none: take away what imports nothing left."""
    left = {node: set(others) & graph.keys() for node, others in graph.items()}
    while free := [node for node, others in left.items() if not others & left.keys()]:
        for node in free:
            del left[node]
    return sorted(left)


def reachable(graph, module, seen=()):
    seen = {*seen, module}
    for other in graph.get(module, set()) - seen:
        seen |= reachable(graph, other, seen)
    return seen


def direction_problems(sources):
    """One sentence for each import that does not go down, and for each path from one tower to the other."""
    graph = graph_of(sources)
    if around := circle(graph):
        return [f"modules import each other in a circle: {', '.join(around)}"]
    rooms = {}
    for module, others in graph.items():
        rooms.setdefault(room(module), set()).update({room(other) for other in others} - {room(module)})
    if around := circle(rooms):
        return [f"rooms import each other in a circle: {', '.join(around)}"]
    problems = [f"{module} imports {other}, which is not the paper's" for module, others in graph.items() if is_core(module)
                for other in others if not is_core(other)]
    seen = {module: reachable(graph, module) for module in graph if is_core(module)}
    both = {module for module, others in seen.items() if "diffusion" in others and any(room(other) == "unet" for other in others)}
    return problems + [f"{module} knows both towers" for module in sorted(both - MEET)]


# ---- the towers and the rooms ------------------------------------------------------------------------------------------------


def test_imports_go_strictly_downward_and_the_towers_meet_once():
    assert direction_problems(SOURCES) == []


@pytest.mark.parametrize("module, line, problem", [
    ("diffusion", "from minddpm.sample import sample", "modules import each other in a circle: .*diffusion.*sample"),
    ("sample", "from minddpm import unet", "sample knows both towers"),
    ("unet.blocks", "def f():\n    from minddpm.diffusion import Schedule", "unet.blocks knows both towers"),
    ("sample", "from minddpm.unet.recompute import store\nimport minddpm.unet.network", "sample knows both towers"),
    ("unet.layers.conv", "import minddpm.unet.layers.norm\nfrom minddpm.unet import layers", "circle: .*unet.layers.conv"),
    ("tree", "import minddpm", "circle: .*tree"),
    ("errors", "from minddpm.errors import UserError", "modules import each other in a circle: .*errors"),
    ("data.sets", "if 0:\n  try:\n    from minddpm.app import cli\n  finally: pass", "circle: .*data"),
    ("storage.files", "from minddpm.app.progress import Progress", "rooms import each other in a circle: .*app.*storage"),
    ("sample", "from minddpm.fast import parallel", "circle|sample imports fast, which is not the paper's"),
    ("unet.network", "from minddpm.fast.matmul import linear", "circle|imports fast.matmul, which is not the paper's"),
    ("score", "from minddpm.data import load", "score imports data, which is not the paper's"),
])
def test_a_planted_import_is_found(module, line, problem):
    planted = SOURCES | {module: f"{SOURCES[module]}\n{line}\n"}
    assert re.search(problem, "\n".join(direction_problems(planted)))


def test_a_relative_import_is_found():
    with pytest.raises(AssertionError, match="diffusion has a relative import"):
        direction_problems(SOURCES | {"diffusion": "from . import unet"})


def test_a_detour_between_the_towers_is_found():
    """The maths sees optim, and optim the network: each import alone would pass."""
    detour = SOURCES | {"optim": f"{SOURCES['optim']}\nfrom minddpm.unet import unet",
                        "score": "from minddpm import diffusion, optim"}
    assert "score knows both towers" in direction_problems(detour)


# ---- the paper's files are plain -----------------------------------------------------------------------------------------

NOT_THE_PAPERS = re.compile(r"(?i)\b(fast|winograd|threads?|workers?|cuda|gpus?|devices?|environ\w*|cupyx?)\b")
CORE = [module for module in SOURCES if is_core(module)]


def foreign_words(source):
    """What a file of the paper does not mention; CuPy is named where an array may be one of its."""
    return [match[0] for match in NOT_THE_PAPERS.finditer(re.sub(r"CuPy's|CuPy", "", source))]


@pytest.mark.parametrize("module", CORE)
def test_the_papers_files_name_no_fast_form_no_thread_no_device(module):
    assert foreign_words(SOURCES[module]) == []


def test_a_foreign_word_is_found():
    assert foreign_words("import os\nos.environ['X']  # on a GPU, CuPy's") == ["environ", "GPU"]


@pytest.mark.parametrize("module", CORE)
def test_the_papers_files_import_numpy_alone(module):
    others = imports(module, SOURCES[module])[1]
    assert {name for name in others if name != "numpy" and not name.startswith("scipy.special.")
            and name.split(".")[0] not in sys.stdlib_module_names} == set()


# ---- what is imported from elsewhere ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", SOURCES)
def test_only_the_dependencies_are_imported_and_no_framework(module):
    others = {name.split(".")[0] for name in imports(module, SOURCES[module])[1]} - set(sys.stdlib_module_names)
    assert others <= THIRD_PARTY, f"{module} imports {others - THIRD_PARTY}"
    for node in ast.walk(ast.parse(SOURCES[module])):
        if isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            assert module.endswith("device") and node.args[0].value == "cupy"


def called(node):
    return getattr(node.func, "attr", getattr(node.func, "id", None))


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_unpickles(module):
    elsewhere = {name.split(".")[0] for name in imports(module, SOURCES[module])[1]}
    assert not elsewhere & {"pickle", "cPickle", "_pickle", "shelve", "marshal", "dill", "joblib"}
    for node in ast.walk(ast.parse(SOURCES[module])):
        if isinstance(node, ast.Call):
            assert called(node) not in ("eval", "exec", "unpickle")
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            assert "allow_pickle" not in given or given["allow_pickle"].value is False
            if ast.unparse(node.func) in ("np.load", "numpy.load"):
                assert "allow_pickle" in given, f"{module}: np.load without allow_pickle=False"


def fresh(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_is_quick_and_light():
    """In CPU seconds of a fresh interpreter, the best of three: other work on the machine is not ours."""
    code = ("import json, sys, time; start = time.process_time(); import minddpm; "
            "print(json.dumps([time.process_time() - start, sorted({m.split('.')[0] for m in sys.modules})]))")
    runs = [fresh(code) for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < 0.5
    assert not {"cupy", "matplotlib", "scipy", "imageio", "PIL", "tqdm", "torch", "diffusers", "IPython"} & set(runs[0][1])


def test_import_of_the_command_line_needs_no_gpu_and_no_plots():
    loaded = fresh("import json, sys, minddpm.app.cli; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))")
    assert not {"cupy", "matplotlib", "torch", "diffusers"} & set(loaded)


def test_public_names():
    import minddpm
    assert set(minddpm.__all__) >= {"Model", "load", "save"}
    assert all(getattr(minddpm, name).__doc__ for name in minddpm.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", minddpm.__version__)
    assert f'version = "{minddpm.__version__}"' in (ROOT / "pyproject.toml").read_text()


# ---- how it is written --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", SOURCES)
def test_a_file_fits_a_sitting(module):
    assert SOURCES[module].count("\n") <= LONGEST


def undocumented(source):
    """The public functions, classes, methods and properties without a docstring, and "module" if the file has none."""
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) else ["module"]
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else []
        for d in node, *members:
            if isinstance(d, ast.FunctionDef | ast.ClassDef) and not d.name.startswith("_") and not ast.get_docstring(d):
                missing.append(d.name)
    return missing


@pytest.mark.parametrize("module", SOURCES)
def test_every_public_function_and_class_has_a_docstring(module):
    assert undocumented(SOURCES[module]) == []


def test_a_missing_docstring_is_found():
    assert undocumented("def f(): pass\nclass A:\n    '''A.'''\n    def g(self): pass\n    def _h(self): pass") == [
        "module", "f", "g"]


# ---- what is shipped ----------------------------------------------------------------------------------------------------------


def test_pyproject_names_every_kind_of_data_and_every_dependency():
    tomllib = pytest.importorskip("tomllib")                        # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["packages"]["find"]["include"] == ["minddpm*"]
    assert {path.parent for path in PACKAGE.rglob("*.py")} == {path.parent for path in PACKAGE.rglob("__init__.py")}
    patterns = project["tool"]["setuptools"]["package-data"]["*"]
    for path in PACKAGE.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md"):
            assert any(path.match(pattern) for pattern in patterns), f"{path} would not be in the wheel"
    names = {re.match(r"[\w-]+", text)[0].replace("pillow", "PIL") for text in project["project"]["dependencies"]}
    assert names == THIRD_PARTY


def test_the_kernels_are_ascii():
    """CuPy writes the source to a file in the machine's own encoding."""
    assert (PACKAGE / "fast" / "kernels.cu").read_bytes().isascii()


def test_every_data_file_has_its_licence():
    text = (PACKAGE / "data" / "builtin" / "LICENSES.md").read_text()
    for path in (PACKAGE / "data" / "builtin").glob("*.npz"):
        assert path.stem in text
    assert {"CC BY 4.0", "CC BY-SA 3.0", "CC0 1.0"} <= set(re.findall(r"CC ?(?:BY(?:-SA)?|0) \d\.\d", text))


@pytest.mark.slow
def test_the_wheel_holds_the_data_and_works(tmp_path):
    """Built as an installer does, from a copy of the sources, unpacked far from them, and used."""
    for name in "minddpm", "pyproject.toml", "README.md", "LICENSE":
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", tmp_path / "dist", tmp_path]
    built = subprocess.run(pip, capture_output=True, text=True)
    if "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("pip cannot get setuptools: no network")
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    there = {str(p.relative_to(ROOT)) for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {name for name in inside if name.startswith("minddpm/")} == there
    assert {"minddpm/data/builtin/LICENSES.md", "minddpm/data/builtin/digits.npz"} <= inside
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in inside)
    code = (f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import json; from minddpm import data; "
            "print(json.dumps([data.__file__, *(data.load(name).train.shape for name in data.BUILT_IN)]))")
    file, *shapes = fresh(code)
    assert file.startswith(str(tmp_path / "site")) and shapes == [[1618, 8, 8, 1], [4500, 28, 28, 1], [4500, 16, 16, 1],
                                                                  [5400, 16, 16, 3]]
