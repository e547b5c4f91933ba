"""The package as a whole: what imports what, how long a file is, what is written about it, and what is shipped.

design.md section 1 is a picture of two towers that meet once: the mathematics, which never sees a network, and the network,
which never sees a β.  LEVELS is that picture, and a new file finds its place in it.
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

# Bottom to top: a module imports modules of lower lines only, never one of its own line.
LEVELS = [line.split() for line in """
    errors
    tree device fast.prefetch fast.helper storage.files unet.recompute
    storage.json_options app.progress app.metrics coding.range_coder
    data.readers storage.safetensors_file optim coding.random_coding app.fitting fast.workers
    data.sets
    app.pictures

    diffusion gaussian
    reverse bound score
    objective sample likelihood coding.progressive

    unet.layers.linear unet.layers.attention unet.layers.dropout unet.layers.embedding unet.layers.swish unet.layers.upsample
    fast.cuda
    fast.matmul
    unet.layers.conv unet.layers.norm fast.norm_swish
    fast.narrow_conv fast.winograd
    fast.ops
    unet.layers
    unet.blocks fast.adam_cuda
    unet.network

    storage.names storage.unet_config
    storage.scheduler_config storage.weights storage.folder
    app.settings model train
    minddpm
    app.generate
    app.run
    app.dry_run app.evaluate
    app.checks
    app.selftest

    readalong.paper readalong.differences readalong
    readalong.tags readalong.maths
    readalong.index readalong.markup
    readalong.blocks readalong.readme
    readalong.pages
    readalong.show

    app.commands
    app.cli
    """.splitlines() if line.strip()]
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules}
MATHS = {"diffusion", "gaussian", "reverse", "bound", "score", "objective", "sample", "likelihood", "coding.progressive"}
NETWORK = {module for module in LEVEL if module.startswith("unet.layers")} | {
    "unet.recompute", "unet.blocks", "fast.adam_cuda", "unet.network", "unet"}
MEETING = LEVEL["train"]                                        # from this line on a module may import both towers

THIRD_PARTY = {"numpy", "scipy", "imageio", "PIL", "tqdm", "threadpoolctl"}      # pyproject's dependencies
DOCS = {"pygments", "latex2mathml"}                             # its extra, for what is in readalong

SHORTEST, LONGEST = 30, 260
OTHER_LENGTHS = {
    "minddpm": "three names and the version",
    "data.builtin": "a folder of data needs an __init__.py to be found by importlib.resources",
    "fast.prefetch": "one generator",
    "errors": "one exception",
    "fast.helper": "one variable",
    "readalong": "the name of a folder",
    "unet.layers": "the rules that all layers follow, and their names",
    "unet.layers.linear": "one file a layer, and this one is y = x W + b",
    "unet.layers.embedding": "one file a layer, and this one has no gradient",
    "unet.layers.swish": "one file a layer, and this one is x s(x)",
    "unet.layers.upsample": "one file a layer, and this one copies pixels",
    "unet.recompute": "three policies of four lines: to be compared at a glance",
}


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "minddpm"


SOURCES = {name_of(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
KNOWN = {module: source for module, source in SOURCES.items() if module in LEVEL}


def imports(module, source):
    """The modules of minddpm that a source imports, wherever in it, and the top-level packages from elsewhere."""
    ours, others = set(), set()
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
                others.add(name.split(".")[0])
                continue
            parts = name.split(".")[1:]
            while parts and ".".join(parts) not in LEVEL:       # a function's name, or a class's
                parts.pop()
            ours.add(".".join(parts) or "minddpm")
    return ours, others


def direction_problems(sources):
    """One sentence for each import that does not go down, and for each path from one tower to the other."""
    graph = {module: imports(module, source)[0] for module, source in sources.items() if module != "datasets"}
    unknown = [f"{module} has no line in LEVELS" for module in graph if module not in LEVEL]
    if unknown:
        return unknown
    problems = [f"{module} imports {other}, which is not below it" for module, others in graph.items() for other in others
                if LEVEL[other] >= LEVEL[module]]
    if problems:                                                # there may be a circle
        return problems
    for tower, foreign in (MATHS, NETWORK), (NETWORK, MATHS):
        for module in tower & graph.keys():
            if seen := reachable(graph, module) & foreign:
                problems.append(f"{module} sees {min(seen)}, which belongs to the other tower")
    return problems + [f"{module} imports from both towers, below the line where they meet" for module, others in graph.items()
                       if others & MATHS and others & NETWORK and LEVEL[module] < MEETING]


def reachable(graph, module):
    return {module}.union(*(reachable(graph, other) for other in graph[module]))


# ---- the towers -----------------------------------------------------------------------------------------------------------


def test_imports_go_strictly_downward_and_the_towers_meet_once():
    assert direction_problems(SOURCES) == []


def test_levels_name_only_what_there_is():
    assert set(LEVEL) <= set(SOURCES)
    assert len(LEVEL) == sum(map(len, LEVELS))                  # and nothing twice


@pytest.mark.parametrize("module, line, problem", [
    ("diffusion", "from minddpm.sample import sample", "diffusion imports sample, which is not below it"),
    ("sample", "from minddpm import unet", "sample imports unet, which is not below it"),
    ("unet", "def f():\n    from minddpm.diffusion import Schedule", "unet sees diffusion, which belongs to the other tower"),
    ("sample", "from minddpm.memory import keep", "sample sees memory, which belongs to the other tower"),
    ("layers.conv", "import minddpm.layers.norm", "layers.conv imports layers.norm, which is not below it"),
    ("layers.linear", "from minddpm import layers", "layers.linear imports layers, which is not below it"),
    ("tree", "import minddpm", "tree imports minddpm, which is not below it"),
    ("backend", "from minddpm.backend import probe", "backend imports backend, which is not below it"),
    ("data", "if 0:\n  try:\n    from minddpm import cli\n  finally: pass", "data imports cli, which is not below it"),
    ("names", "from minddpm.diffusion import Schedule", "names imports from both towers, below the line where they meet"),
    ("brand_new", "", "brand_new has no line in LEVELS"),
])
def test_a_planted_import_is_found(module, line, problem):
    assert direction_problems(KNOWN) == []
    planted = KNOWN | {module: f"{KNOWN.get(module, '')}\n{line}\n"}
    assert problem in direction_problems(planted)


def test_a_relative_import_is_found():
    with pytest.raises(AssertionError, match="diffusion has a relative import"):
        direction_problems(KNOWN | {"diffusion": "from . import unet"})


def test_a_detour_between_the_towers_is_found():
    """The maths sees optim, and optim a layer's file: each import alone would pass."""
    detour = KNOWN | {"memory": "from minddpm.errors import UserError", "optim": "from minddpm import memory",
                      "diffusion": "from minddpm import optim"}
    assert "diffusion sees memory, which belongs to the other tower" in direction_problems(detour)


# ---- what is imported from elsewhere ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", SOURCES)
def test_only_the_dependencies_are_imported_and_no_framework(module):
    others = imports(module, SOURCES[module])[1] - set(sys.stdlib_module_names)
    allowed = THIRD_PARTY | DOCS if module.startswith("readalong.") else THIRD_PARTY
    assert others <= allowed, f"{module} imports {others - allowed}"
    for node in ast.walk(ast.parse(SOURCES[module])):
        if isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            assert module == "backend" and node.args[0].value == "cupy"


def called(node):
    return getattr(node.func, "attr", getattr(node.func, "id", None))


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_unpickles(module):
    assert not imports(module, SOURCES[module])[1] & {"pickle", "cPickle", "_pickle", "shelve", "marshal", "dill", "joblib"}
    for node in ast.walk(ast.parse(SOURCES[module])):
        if isinstance(node, ast.Call):
            assert called(node) not in ("eval", "exec", "unpickle")
            told = {keyword.arg: keyword.value for keyword in node.keywords}
            assert "allow_pickle" not in told or told["allow_pickle"].value is False
            if ast.unparse(node.func) in ("np.load", "numpy.load"):
                assert "allow_pickle" in told, f"{module}: np.load without allow_pickle=False"


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
def test_file_lengths(module):
    lines = SOURCES[module].count("\n")
    fits = SHORTEST <= lines <= LONGEST
    if module in OTHER_LENGTHS:
        assert not fits, f"{module} has {lines} lines and needs no exception any more"
    else:
        assert fits, f"{module} has {lines} lines; expected {SHORTEST} to {LONGEST}, or a reason in OTHER_LENGTHS"


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


def test_pyproject_names_every_package_and_every_kind_of_data():
    tomllib = pytest.importorskip("tomllib")                        # Python 3.11
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in PACKAGE.rglob("__init__.py")}
    assert set(told["tool"]["setuptools"]["packages"]) == folders
    for path in PACKAGE.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            package = ".".join(path.parent.relative_to(ROOT).parts)
            patterns = told["tool"]["setuptools"]["package-data"].get(package, [])
            assert any(path.match(pattern) for pattern in patterns), f"{path} would not be in the wheel"
    names = {re.match(r"[\w-]+", text)[0].replace("pillow", "PIL") for text in told["project"]["dependencies"]}
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
