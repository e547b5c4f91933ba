"""checkpoint.py, tensorfile.py, names.py: trees of arrays in files, their layouts, precisions and the names they have had."""

import json
import logging
import tracemalloc

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from minddpm import tree
from minddpm.errors import UserError
from minddpm.storage import names
from minddpm.storage import safetensors_file as tensorfile
from minddpm.storage import weights as checkpoint
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
    checkpoint.write(tmp_path / "a.safetensors", params, {"step": "7"})
    back, metadata = checkpoint.read(tmp_path / "a.safetensors", TREE)
    same(params, back)
    assert metadata == {"step": "7"}
    assert all(a.flags.c_contiguous and a.flags.writeable and a.flags.owndata for a in tree.leaves(back))


def test_writing_takes_the_memory_of_one_array(tmp_path):
    params = {"many": [{"weight": np.ones((3, 3, 64, 64), np.float32)} for _ in range(40)]}
    one = params["many"][0]["weight"].nbytes
    tracemalloc.start()
    try:
        checkpoint.write(tmp_path / "a.safetensors", params)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert one < peak < 2.5 * one


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_library_reads_what_is_written(tmp_path, dtype):
    params = tree.map(lambda a: a.astype(dtype), random_tree(TREE | {"none": {"weight": (0, 3)}, "µ \"x": (2,)}))
    checkpoint.write(tmp_path / "a.safetensors", params, {"step": "7", "line": "\n"})
    with safe_open(tmp_path / "a.safetensors", "numpy") as f:
        assert f.metadata() == {"step": "7", "line": "\n"}
    flat = load_file(tmp_path / "a.safetensors")
    same(flat, {name: checkpoint.to_file_layout(a) for name, a in tree.flatten(params).items()})
    assert int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little") % 8 == 0


def test_by_default_the_file_says_what_pytorchs_readers_look_for(tmp_path):
    checkpoint.write(tmp_path / "a.safetensors", random_tree(TREE))
    assert checkpoint.read(tmp_path / "a.safetensors", TREE)[1] == {"format": "pt"}


def test_layout_of_the_file(tmp_path):
    """Each number where PyTorch has it: convolutions (N,C,i,j), dense (out,in)."""
    params = random_tree(TREE)
    checkpoint.write(tmp_path / "a.safetensors", params)
    flat = load_file(tmp_path / "a.safetensors")
    w, dense = params["conv"]["weight"], params["list"][0]["weight"]
    for n, c, i, j in np.ndindex(4, 2, 3, 3):
        assert flat["conv.weight"][n, c, i, j] == w[i, j, c, n]
    for n, c in np.ndindex(5, 2):
        assert flat["list.0.weight"][n, c] == dense[c, n]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_become_float32_with_a_note(tmp_path, dtype, caplog):
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, random_tree(TREE))
    rewrite(path, lambda flat: {name: a.astype(dtype) for name, a in flat.items()})
    expected = {name: a.astype(np.float32) for name, a in load_file(path).items()}
    back, _ = checkpoint.read(path, TREE)
    flat = tree.flatten(tree.map(checkpoint.to_file_layout, back))
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
    back, _ = checkpoint.read(tmp_path / "a.safetensors", {"x": (7,)})
    np.testing.assert_array_equal(back["x"], np.float32([1, -2, 0.10009765625, 0, -0.0, 2.0**-133, 3.3895314e38]))
    assert "BF16 weights: used as float32" in caplog.text


def test_float32_weights_need_no_note(tmp_path, caplog):
    checkpoint.write(tmp_path / "a.safetensors", random_tree(TREE))
    checkpoint.read(tmp_path / "a.safetensors", TREE)
    assert not caplog.records


def test_the_note_is_a_plain_line_on_stderr(tmp_path, capsys):
    """Without a logging set-up, which neither the command line nor most scripts have, Python prints the line itself."""
    bfloat16_file(tmp_path / "a.safetensors", [0x3F80])
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []                 # pytest's own
    try:
        checkpoint.read(tmp_path / "a.safetensors", {"x": (1,)})
    finally:
        root.handlers = handlers
    assert capsys.readouterr().err == f"{tmp_path / 'a.safetensors'} holds BF16 weights: used as float32\n"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_reported(tmp_path, value):
    params = random_tree(TREE)
    params["list"][0]["weight"][1, 3] = value
    checkpoint.write(tmp_path / "a.safetensors", params)
    with pytest.raises(UserError, match=r"list\.0\.weight holds values that are not finite"):
        checkpoint.read(tmp_path / "a.safetensors", TREE)


def test_float64_beyond_float32_is_reported(tmp_path):
    save_file({"x": np.array([1e300])}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="x holds values that are not finite"):
        checkpoint.read(tmp_path / "a.safetensors", {"x": (1,)})


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
        checkpoint.write(path, random_tree(TREE))
        rewrite(path, change)
        with pytest.raises(UserError, match=message):
            checkpoint.read(path, TREE)


def test_nothing_is_read_before_all_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorfile.TensorFile, "read", lambda *args: pytest.fail("an array was read"))
    checkpoint.write(tmp_path / "a.safetensors", random_tree(TREE))
    rewrite(tmp_path / "a.safetensors", lambda flat: flat | {"list.1.weight": np.zeros((7, 6, 1, 2), np.float32)})
    with pytest.raises(UserError, match="has shape"):
        checkpoint.read(tmp_path / "a.safetensors", TREE)


def test_a_file_that_is_replaced_while_it_is_read_is_read_whole(tmp_path):
    """A training run saves while `minddpm sample` loads: the weights are all of the old file or all of the new."""
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, {"x": np.full(5, 1, np.float32), "y": np.full(5, 1, np.float32)})
    with tensorfile.open_file(path) as stored:
        x = stored.read("x").copy()
        checkpoint.write(path, {"x": np.full(5, 2, np.float32), "y": np.full(5, 2, np.float32)})
        assert np.array_equal(x, stored.read("y"))


# ---- names ----------------------------------------------------------------------------------------------------------

def old_name(name):
    for old, new in names.OLD_ATTENTION.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def test_old_attention_names(tmp_path):
    params = random_tree(SHAPES)
    checkpoint.write(tmp_path / "a.safetensors", params)
    rewrite(tmp_path / "a.safetensors", lambda flat: {old_name(name): a for name, a in flat.items()})
    assert "mid_block.attentions.0.proj_attn.weight" in load_file(tmp_path / "a.safetensors")
    same(params, checkpoint.read(tmp_path / "a.safetensors", SHAPES)[0])


def test_old_names_beside_new_ones_are_refused(tmp_path):
    checkpoint.write(tmp_path / "a.safetensors", random_tree(SHAPES))
    rewrite(tmp_path / "a.safetensors", lambda flat: flat | {"mid_block.attentions.0.query.bias": np.zeros(16, np.float32)})
    with pytest.raises(UserError, match="twice"):
        checkpoint.read(tmp_path / "a.safetensors", SHAPES)


def tensorflow_shapes(cfg):
    """The released code's variables and shapes, from its own structure (models/unet.py): scope by scope, as it creates them."""
    shapes, ch, E = {}, cfg.widths[0], 4 * cfg.widths[0]

    def dense(scope, c, n):
        shapes.update({f"{scope}/W": (c, n), f"{scope}/b": (n,)})

    def conv(scope, c, n):
        shapes.update({f"{scope}/W": (3, 3, c, n), f"{scope}/b": (n,)})

    def norm(scope, c):
        shapes.update({f"{scope}/gamma": (c,), f"{scope}/beta": (c,)})

    def resnet_block(scope, c, n):
        norm(f"{scope}/norm1", c)
        conv(f"{scope}/conv1", c, n)
        dense(f"{scope}/temb_proj", E, n)
        norm(f"{scope}/norm2", n)
        conv(f"{scope}/conv2", n, n)
        if c != n:
            dense(f"{scope}/nin_shortcut", c, n)
        return n

    def attn_block(scope, c):
        norm(f"{scope}/norm", c)
        for part in "q", "k", "v", "proj_out":
            dense(f"{scope}/{part}", c, c)

    dense("temb/dense0", ch, E)
    dense("temb/dense1", E, E)
    conv("conv_in", cfg.in_channels, ch)
    hs, h = [ch], ch
    for i, width in enumerate(cfg.widths):
        for j in range(cfg.blocks):
            h = resnet_block(f"down_{i}/block_{j}", h, width)
            if i in cfg.attention:
                attn_block(f"down_{i}/attn_{j}", h)
            hs.append(h)
        if i != len(cfg.widths) - 1:
            conv(f"down_{i}/downsample/conv", h, h)
            hs.append(h)
    h = resnet_block("mid/block_1", h, h)
    attn_block("mid/attn_1", h)
    h = resnet_block("mid/block_2", h, h)
    for i in reversed(range(len(cfg.widths))):
        for j in range(cfg.blocks + 1):
            h = resnet_block(f"up_{i}/block_{j}", h + hs.pop(), cfg.widths[i])
            if i in cfg.attention:
                attn_block(f"up_{i}/attn_{j}", h)
        if i != 0:
            conv(f"up_{i}/upsample/conv", h, h)
    norm("norm_out", h)
    conv("conv_out", h, cfg.in_channels)
    return shapes


def to_pesser(name, a):
    """pesser's conversion of one variable of the released code: scopes by dots, OIHW, nin as 1×1 convolutions."""
    *scopes, kind = name.split("/")
    path = ".".join(scopes)
    for scope in "down", "up", "attn":
        path = path.replace(f"{scope}_", f"{scope}." if scope != "attn" or "mid" not in path else f"{scope}_")
    path = path.replace("block_", "block." if not path.startswith("mid") else "block_").replace("temb.dense", "temb.dense.")
    if kind == "W" and a.ndim == 4:
        a = a.transpose(3, 2, 0, 1)
    elif kind == "W":
        nin = scopes[-1] in ("q", "k", "v", "proj_out", "nin_shortcut")
        a = a.T[:, :, None, None] if nin else a.T
    return f"{path}.{dict(W='weight', b='bias', gamma='weight', beta='bias')[kind]}", a


CONFIGS = {"cifar10": UNetConfig.cifar10(), "image256": UNetConfig.image256(), "tiny": UNetConfig.tiny(), "one": CFG}


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
def test_released_names_are_all_there_is_in_the_released_code(cfg):
    expected = tensorflow_shapes(cfg)
    ours = {names.released(name, len(cfg.widths)): d.shape for name, d in tree.flatten(parameters(cfg)).items()}
    assert ours.keys() == expected.keys()
    assert {name: shape[-2:] if "nin_shortcut/W" in name else shape for name, shape in ours.items()} == expected
    pesser = {to_pesser(name, np.empty(shape, np.bool_))[0] for name, shape in expected.items()}
    assert pesser == {names.pesser(name, len(cfg.widths)) for name in tree.flatten(parameters(cfg))}


def test_known_names():
    """As the conversion script of diffusers, convert_ddpm_original_checkpoint_to_diffusers.py, has them."""
    for name, pesser, released in [
        ("conv_in.weight", "conv_in.weight", "conv_in/W"),
        ("time_embedding.linear_2.bias", "temb.dense.1.bias", "temb/dense1/b"),
        ("down_blocks.2.resnets.1.time_emb_proj.weight", "down.2.block.1.temb_proj.weight", "down_2/block_1/temb_proj/W"),
        ("down_blocks.1.attentions.0.to_out.0.bias", "down.1.attn.0.proj_out.bias", "down_1/attn_0/proj_out/b"),
        ("down_blocks.0.downsamplers.0.conv.weight", "down.0.downsample.conv.weight", "down_0/downsample/conv/W"),
        ("mid_block.attentions.0.group_norm.weight", "mid.attn_1.norm.weight", "mid/attn_1/norm/gamma"),
        ("mid_block.resnets.1.norm2.bias", "mid.block_2.norm2.bias", "mid/block_2/norm2/beta"),
        ("up_blocks.1.upsamplers.0.conv.bias", "up.2.upsample.conv.bias", "up_2/upsample/conv/b"),
        ("up_blocks.3.resnets.2.conv_shortcut.weight", "up.0.block.2.nin_shortcut.weight", "up_0/block_2/nin_shortcut/W"),
        ("conv_norm_out.bias", "norm_out.bias", "norm_out/beta"),
        ("conv_out.bias", "conv_out.bias", "conv_out/b"),
    ]:
        assert (names.pesser(name, 4), names.released(name, 4)) == (pesser, released)


def test_translate_from_both():
    rng = np.random.default_rng(0)
    released = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in tensorflow_shapes(CFG).items()}
    pesser = dict(to_pesser(name, a) for name, a in released.items())
    params = names.translate(released, CFG)
    same(params, names.translate(pesser, CFG))
    assert {name: a.shape for name, a in tree.flatten(params).items()} == tree.flatten(SHAPES)
    assert np.array_equal(params["conv_in"]["weight"], released["conv_in/W"])
    assert np.array_equal(params["up_blocks"][0]["attentions"][1]["to_k"]["weight"], released["up_1/attn_1/k/W"])
    assert np.array_equal(params["up_blocks"][1]["resnets"][0]["conv_shortcut"]["weight"][0, 0],
                          released["up_0/block_0/nin_shortcut/W"])


def test_translate_checks_names_and_shapes():
    released = {name: np.zeros(shape, np.float32) for name, shape in tensorflow_shapes(CFG).items()}
    with pytest.raises(UserError, match="lacks conv_out/b; expected"):
        names.translate({name: a for name, a in released.items() if name != "conv_out/b"}, CFG)
    with pytest.raises(UserError, match="has unexpected global_step"):
        names.translate(released | {"global_step": np.zeros(())}, CFG)
    with pytest.raises(UserError, match=r"conv_out/b has shape \(4,\)"):
        names.translate(released | {"conv_out/b": np.zeros(4)}, CFG)
    with pytest.raises(UserError, match="the weights lacks"):
        names.translate({}, CFG)
