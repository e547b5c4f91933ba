"""weights.py, safetensors_file.py: trees of arrays in files, their layouts, precisions and the names they have had."""

import json
import logging
import tracemalloc

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from minddpm import tree
from minddpm.errors import UserError
from minddpm.storage import weights
from minddpm.storage.safetensors_file import TensorFile, open_file
from minddpm.unet import UNetConfig, parameters

CFG = UNetConfig(8, 3, (8, 16), 1, (1,), groups=4)
SHAPES = tree.map(lambda draw: draw.shape, parameters(CFG))
TREE = {"conv": {"weight": (3, 3, 2, 4), "bias": (4,)}, "list": [{"weight": (2, 5)}, {"weight": (1, 1, 6, 7)}]}


def random_tree(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return tree.map(lambda shape: rng.standard_normal(shape).astype(np.float32), shapes)


def same(a, b):
    a, b = tree.flatten(a), tree.flatten(b)
    assert a.keys() == b.keys()
    assert all(a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]) for name in a)


def rewrite(path, change):
    """Read a file with the safetensors library, change the dict of arrays, write it with the library."""
    save_file({name: np.ascontiguousarray(a) for name, a in change(load_file(path)).items()}, path)


# ---- layouts and precisions -----------------------------------------------------------------------------------------

def test_write_and_read(tmp_path):
    params = random_tree(TREE)
    weights.write(tmp_path / "a.safetensors", params, {"step": "7"})
    back, metadata = weights.read(tmp_path / "a.safetensors", TREE)
    same(params, back)
    assert metadata == {"step": "7"}
    assert all(a.flags.c_contiguous and a.flags.writeable and a.flags.owndata for a in tree.leaves(back))


def test_writing_takes_the_memory_of_one_array(tmp_path):
    params = {"many": [{"weight": np.ones((3, 3, 64, 64), np.float32)} for _ in range(40)]}
    one = params["many"][0]["weight"].nbytes
    tracemalloc.start()
    try:
        weights.write(tmp_path / "a.safetensors", params)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert one < peak < 2.5 * one


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_library_reads_what_is_written(tmp_path, dtype):
    params = tree.map(lambda a: a.astype(dtype), random_tree(TREE | {"none": {"weight": (0, 3)}, "µ \"x": (2,)}))
    weights.write(tmp_path / "a.safetensors", params, {"step": "7", "line": "\n"})
    with safe_open(tmp_path / "a.safetensors", "numpy") as f:
        assert f.metadata() == {"step": "7", "line": "\n"}
    flat = load_file(tmp_path / "a.safetensors")
    same(flat, {name: weights.to_file_layout(a) for name, a in tree.flatten(params).items()})
    assert int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little") % 8 == 0


def test_the_default_metadata_is_what_pytorchs_readers_look_for(tmp_path):
    weights.write(tmp_path / "a.safetensors", random_tree(TREE))
    assert weights.read(tmp_path / "a.safetensors", TREE)[1] == {"format": "pt"}


def test_layout_of_the_file(tmp_path):
    """Each number where PyTorch has it: convolutions (N,C,i,j), dense (out,in)."""
    params = random_tree(TREE)
    weights.write(tmp_path / "a.safetensors", params)
    flat = load_file(tmp_path / "a.safetensors")
    w, dense = params["conv"]["weight"], params["list"][0]["weight"]
    for n, c, i, j in np.ndindex(4, 2, 3, 3):
        assert flat["conv.weight"][n, c, i, j] == w[i, j, c, n]
    for n, c in np.ndindex(5, 2):
        assert flat["list.0.weight"][n, c] == dense[c, n]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_become_float32_with_a_note(tmp_path, dtype, caplog):
    path = tmp_path / "a.safetensors"
    weights.write(path, random_tree(TREE))
    rewrite(path, lambda flat: {name: a.astype(dtype) for name, a in flat.items()})
    expected = {name: a.astype(np.float32) for name, a in load_file(path).items()}
    back, _ = weights.read(path, TREE)
    flat = tree.flatten(tree.map(weights.to_file_layout, back))
    assert all(a.dtype == np.float32 and np.array_equal(a, expected[name]) for name, a in flat.items())
    assert [r.getMessage() for r in caplog.records] == [f"{path} holds {'F16' if dtype == np.float16 else 'F64'} weights: "
                                                        "used as float32"]


def bfloat16_file(path, bits):
    """A safetensors file of one bfloat16 array `x`, of the given uint16 bit patterns, written by hand."""
    data = np.asarray(bits, "<u2").tobytes()
    header = json.dumps({"x": {"dtype": "BF16", "shape": [len(bits)], "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def test_bfloat16_is_read_bit_by_bit(tmp_path, caplog):
    bfloat16_file(tmp_path / "a.safetensors", [0x3F80, 0xC000, 0x3DCD, 0x0000, 0x8000, 0x0001, 0x7F7F])
    back, _ = weights.read(tmp_path / "a.safetensors", {"x": (7,)})
    np.testing.assert_array_equal(back["x"], np.float32([1, -2, 0.10009765625, 0, -0.0, 2.0**-133, 3.3895314e38]))
    assert "BF16 weights: used as float32" in caplog.text


def test_float32_weights_need_no_note(tmp_path, caplog):
    weights.write(tmp_path / "a.safetensors", random_tree(TREE))
    weights.read(tmp_path / "a.safetensors", TREE)
    assert not caplog.records


def test_the_note_is_a_plain_line_on_stderr(tmp_path, capsys):
    """Without a logging set-up, which neither the command line nor most scripts have, Python prints the line itself."""
    bfloat16_file(tmp_path / "a.safetensors", [0x3F80])
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []                 # pytest's own
    try:
        weights.read(tmp_path / "a.safetensors", {"x": (1,)})
    finally:
        root.handlers = handlers
    assert capsys.readouterr().err == f"{tmp_path / 'a.safetensors'} holds BF16 weights: used as float32\n"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_reported(tmp_path, value):
    params = random_tree(TREE)
    params["list"][0]["weight"][1, 3] = value
    weights.write(tmp_path / "a.safetensors", params)
    with pytest.raises(UserError, match=r"list\.0\.weight holds values that are not finite"):
        weights.read(tmp_path / "a.safetensors", TREE)


def test_float64_beyond_float32_is_reported(tmp_path):
    save_file({"x": np.array([1e300])}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="x holds values that are not finite"):
        weights.read(tmp_path / "a.safetensors", {"x": (1,)})


def test_missing_surplus_and_misshapen_tensors_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    for change, message in [
        (lambda flat: {name: a for name, a in flat.items() if name != "conv.bias"}, r"lacks conv\.bias; expected 4 .* found 3"),
        (lambda flat: flat | {"more": np.zeros(1, np.float32)}, "has unexpected more; expected 4 .* found 5"),
        (lambda flat: flat | {"conv.bias": np.zeros(5, np.float32)}, r"conv\.bias has shape \(5,\); expected \(4,\)"),
        (lambda flat: flat | {"conv.weight": flat["conv.weight"].transpose(1, 0, 2, 3)},
         r"has shape \(2, 4, 3, 3\); expected \(4, 2"),
        (lambda flat: flat | {"conv.bias": np.zeros(4, np.int32)}, r"conv\.bias has dtype I32; expected one of F64, F32"),
    ]:
        weights.write(path, random_tree(TREE))
        rewrite(path, change)
        with pytest.raises(UserError, match=message):
            weights.read(path, TREE)


def test_nothing_is_read_before_all_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(TensorFile, "read", lambda *args: pytest.fail("an array was read"))
    weights.write(tmp_path / "a.safetensors", random_tree(TREE))
    rewrite(tmp_path / "a.safetensors", lambda flat: flat | {"list.1.weight": np.zeros((7, 6, 1, 2), np.float32)})
    with pytest.raises(UserError, match="has shape"):
        weights.read(tmp_path / "a.safetensors", TREE)


def test_a_file_that_is_replaced_while_it_is_read_is_read_whole(tmp_path):
    """A training run saves while `minddpm sample` loads: the weights are all of the old file or all of the new."""
    path = tmp_path / "a.safetensors"
    weights.write(path, {"x": np.full(5, 1, np.float32), "y": np.full(5, 1, np.float32)})
    with open_file(path) as stored:
        x = stored.read(stored.entries["x"]).copy()
        weights.write(path, {"x": np.full(5, 2, np.float32), "y": np.full(5, 2, np.float32)})
        assert np.array_equal(x, stored.read(stored.entries["y"]))


# ---- names ----------------------------------------------------------------------------------------------------------

def old_name(name):
    for old, new in weights.OLD_NAMES.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def test_old_attention_names(tmp_path):
    params = random_tree(SHAPES)
    weights.write(tmp_path / "a.safetensors", params)
    rewrite(tmp_path / "a.safetensors", lambda flat: {old_name(name): a for name, a in flat.items()})
    assert "mid_block.attentions.0.proj_attn.weight" in load_file(tmp_path / "a.safetensors")
    same(params, weights.read(tmp_path / "a.safetensors", SHAPES)[0])


def test_old_names_beside_new_ones_are_refused(tmp_path):
    weights.write(tmp_path / "a.safetensors", random_tree(SHAPES))
    rewrite(tmp_path / "a.safetensors", lambda flat: flat | {"mid_block.attentions.0.query.bias": np.zeros(16, np.float32)})
    with pytest.raises(UserError, match="twice"):
        weights.read(tmp_path / "a.safetensors", SHAPES)
