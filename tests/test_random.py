"""random.py: a stream of its own for each purpose, seed and index, and no random numbers from anywhere else."""

import ast
import itertools
from pathlib import Path

import numpy as np
import pytest

import minddpm
from minddpm.random import PURPOSES, rng

PACKAGE = Path(minddpm.__file__).parent
SEEDS = (0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1)
INDEXES = ((), (0,), (0, 0), (0, 0, 0), (1,), (0, 1), (1, 0), (2**32 - 1,))


def first(purpose, seed, *index):
    return rng(purpose, seed, *index).bytes(32)


def test_no_two_purposes_seeds_or_indexes_share_a_stream():
    """NumPy pads a list of numbers with zeros: default_rng of s, [s], [s, 0] and [s, 0, 0] is one and the same stream."""
    keys = list(itertools.product(PURPOSES, SEEDS, INDEXES))
    assert len({first(purpose, seed, *index) for purpose, seed, index in keys}) == len(keys)


def test_no_stream_is_numpys_own_of_the_seed():
    plain = {np.random.default_rng(key).bytes(32) for seed in SEEDS for key in (seed, [seed, 0], [seed, 1], [seed, 1, 0])}
    assert not plain & {first(*key) for key in itertools.product(PURPOSES, SEEDS, (0, 1))}


@pytest.mark.parametrize("index", INDEXES, ids=str)
def test_the_same_arguments_have_the_same_stream(index):
    assert first("sampling", 2**63 - 1, *index) == first("sampling", 2**63 - 1, *map(np.int64, index))
    one, other = rng("bound", 7, *index), rng("bound", 7, *index)
    one.standard_normal(5)                                                  # no state is shared
    assert other.bytes(8) == rng("bound", 7, *index).bytes(8) != one.bytes(8)


@pytest.mark.parametrize("purpose", ["", "Sampling", "something else", 0])
def test_an_unknown_purpose_is_refused(purpose):
    with pytest.raises(ValueError):
        rng(purpose, 0)


@pytest.mark.parametrize("module", sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")))
def test_every_stream_of_a_users_seed_is_made_by_rng(module):
    """The others use default_rng of a literal number, for made-up data, alone; dropout the counter-based Philox."""
    source = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    found = [f"line {node.lineno}: {ast.unparse(node)}" for node in ast.walk(source) if draws(node) and not allowed(module, node)]
    assert module == "random.py" or not found


def draws(node):
    """Whether the line is a call of NumPy's random numbers, or imports other ones."""
    if isinstance(node, ast.Import):
        return any(alias.name in ("random", "numpy.random") for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return node.module in ("random", "numpy.random") or node.module == "numpy" and "random" in [a.name for a in node.names]
    return isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[0] in ("np.random", "numpy.random")


def allowed(module, node):
    if not isinstance(node, ast.Call):
        return False
    name, arguments = ast.unparse(node.func).rpartition(".")[2], node.args + node.keywords
    if name == "default_rng":
        return len(arguments) == 1 and isinstance(arguments[0], ast.Constant) and type(arguments[0].value) is int
    return module == "unet/layers/dropout.py" and name in ("Generator", "Philox")
