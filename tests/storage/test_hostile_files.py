"""Hostile folders: whatever is in them, `minddpm.load` returns a model or raises a UserError of one sentence, soon and in little
memory, and the command line exits with code 2.
"""

import json
import math
import os
import re
import shutil
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load as library_load

import minddpm
from minddpm import tree
from minddpm.app import cli
from minddpm.diffusion import Schedule
from minddpm.errors import UserError
from minddpm.model import Model
from minddpm.storage import files
from minddpm.storage.safetensors_file import open_file
from minddpm.unet import UNetConfig, init

CFG = UNetConfig(4, 1, (4, 8), 1, (), groups=4)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
JSON = ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"]
FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A sound model's folder, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("sound")
    minddpm.save(folder, Model(CFG, init(CFG, 0), Schedule.linear(10)))
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "model")


def parts(data):
    """A safetensors file's bytes -> its header as a dict, and its data."""
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8:8 + n]), data[8 + n:]


def assemble(header, data):
    """A header, a dict or bytes, and data -> a file's bytes."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + data


def refused(folder):
    """The sentence with which loading is refused."""
    with pytest.raises(UserError) as caught:
        minddpm.load(folder)
    message = str(caught.value)
    assert message.isprintable() and 20 < len(message) < 600 and str(folder) in message
    return message


def damaged(edit):
    """edit(header, data) -> a function of a file's bytes; what edit returns, (header, data) or a changed header in place."""
    def damage(data):
        header, rest = parts(data)
        return assemble(*(edit(header, rest) or (header, rest)))
    return damage


def entry(name, **change):
    return damaged(lambda header, rest: header[name].update(change))


def first_names(header):
    """The names of the arrays in the order of their places."""
    return sorted((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])


def overlap(header, rest):
    a, b = first_names(header)[:2]
    length = np.subtract(*reversed(header[b]["data_offsets"]))
    start = header[a]["data_offsets"][1] - 4
    header[b]["data_offsets"] = [int(start), int(start + length)]


def alias(header, rest):
    """Two names for the same bytes, and nothing left out: the other array's bytes are gone from the file."""
    names = first_names(header)
    same = [b for a, b in zip(names, names[1:], strict=False) if header[a]["shape"] == header[b]["shape"]][0]
    before = names[names.index(same) - 1]
    start, stop = header[same]["data_offsets"]
    header[same]["data_offsets"] = header[before]["data_offsets"]
    for name in names[names.index(same) + 1:]:
        header[name]["data_offsets"] = [i - (stop - start) for i in header[name]["data_offsets"]]
    return header, rest[:start] + rest[stop:]


def gap(header, rest):
    last = first_names(header)[-1]
    header[last]["data_offsets"] = [i + 4 for i in header[last]["data_offsets"]]
    return header, rest + b"\0\0\0\0"


DAMAGES = {
    "empty":                    (lambda data: b"", "cut short"),
    "seven bytes":              (lambda data: data[:7], "cut short"),
    "only the length":          (lambda data: data[:8], "cut short"),
    "cut in the header":        (lambda data: data[:100], "cut short"),
    "cut in the data":          (lambda data: data[:-1], "cut short"),
    "cut to the header":        (lambda data: assemble(parts(data)[0], b""), "cut short"),
    "bytes after the end":      (lambda data: data + b"\0", "too long"),
    "header length 2^64-1":     (lambda data: b"\xff" * 8 + data[8:], "cut short"),
    "header length too large":  (lambda data: (len(data)).to_bytes(8, "little") + data[8:], "cut short"),
    "header length too small":  (lambda data: (20).to_bytes(8, "little") + data[8:], "not valid JSON"),
    "header length 0":          (lambda data: bytes(8) + data[8:], "not valid JSON"),
    "a pickle":                 (lambda data: b"\x80\x02}q\x00." * 100, "cut short"),
    "a zip":                    (lambda data: b"PK\x03\x04" + bytes(1000), "not valid JSON|cut short"),
    "header no UTF-8":          (lambda data: assemble(b'{"\xff\xfe": 1}', b""), "not valid JSON"),
    "header a list":            (lambda data: assemble(b"[]", b""), "JSON list"),
    "header a number":          (lambda data: assemble(b"1e999", b""), "JSON float"),
    "no arrays":                (lambda data: assemble(b"{}", b""), "lacks"),
    "nested deep":              (lambda data: assemble(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""), "not valid JSON"),
    "nested 21 deep":           (lambda data: assemble(b'{"x":' + b"[" * 20 + b"]" * 20 + b"}", b""), "nested more than 20"),
    "many small values":        (lambda data: assemble(b'{"x":[' + b"[]," * 300_000 + b"0]}", b""), "malformed"),
    "header beyond 10 MB":      (lambda data: assemble(b" " * (10**7 + 1), b""), "header of 10000001 bytes"),
    "number of a million digits": (lambda data: assemble(b'{"x":' + b"9" * 10**6 + b"}", b""), "not valid JSON"),
    "duplicate names":          (lambda data: assemble(json.dumps(parts(data)[0]).encode()[:-1] + b', "conv_in.bias": {}}',
                                                       parts(data)[1]), "two values for 'conv_in.bias'"),
    "duplicate keys in an entry": (lambda data: assemble(json.dumps(parts(data)[0]).encode().replace(
                                       b'"dtype": "F32"', b'"dtype": "F32", "dtype": "I8"', 1), parts(data)[1]), "two values"),
    "overlapping":              (damaged(overlap), "overlaps"),
    "two names for one place":  (damaged(alias), "overlaps"),
    "a gap":                    (damaged(gap), "leaves a gap"),
    "beyond the end":           (entry("conv_in.bias", data_offsets=[10**9, 10**9 + 16]), "leaves a gap|cut short"),
    "offsets backwards":        (entry("conv_in.bias", data_offsets=[16, 0]), "has shape .* bytes"),
    "negative offsets":         (entry("conv_in.bias", data_offsets=[-16, 0]), "malformed"),
    "offsets beyond 2^64":      (entry("conv_in.bias", data_offsets=[2**70, 2**70 + 16]), "malformed"),
    "three offsets":            (entry("conv_in.bias", data_offsets=[0, 8, 16]), "malformed"),
    "offsets as text":          (entry("conv_in.bias", data_offsets=["0", "16"]), "malformed"),
    "offsets as truth":         (entry("conv_in.bias", data_offsets=[False, True]), "malformed"),
    "huge shape":               (entry("conv_in.bias", shape=[2**62]), "has shape"),
    "shape whose size wraps":   (entry("conv_in.bias", shape=[2**62 + 4]), "has shape .* but 16 bytes"),
    "shape with a huge zero":   (entry("conv_in.bias", shape=[0, 2**62]), "has shape"),
    "too many dimensions":      (entry("conv_in.bias", shape=[1] * 100 + [4]), "has 101 dimensions"),
    "negative shape":           (entry("conv_in.bias", shape=[-4]), "malformed"),
    "shape of fractions":       (entry("conv_in.bias", shape=[4.0]), "malformed"),
    "shape a number":           (entry("conv_in.bias", shape=4), "malformed"),
    "no shape":                 (damaged(lambda header, rest: header["conv_in.bias"].pop("shape") and None), "malformed"),
    "an entry that is null":    (damaged(lambda header, rest: header.update({"conv_in.bias": None})), "malformed"),
    "unknown dtype":            (entry("conv_in.bias", dtype="F8_E4M3"), "has dtype F8_E4M3; expected one of F64, F32"),
    "dtype a list":             (entry("conv_in.bias", dtype=["F32"]), "malformed|has dtype"),
    "whole numbers":            (entry("conv_in.bias", dtype="I32"), "has dtype I32; expected one of F64, F32"),
    "truth":                    (entry("conv_in.bias", dtype="BOOL", shape=[16]), "has dtype BOOL; expected one of F64, F32"),
    "bytes":                    (entry("conv_in.bias", dtype="U8", shape=[16]), "has dtype U8; expected one of F64, F32"),
    "metadata a list":          (damaged(lambda header, rest: header.update(__metadata__=[1])), "__metadata__"),
    "metadata of numbers":      (damaged(lambda header, rest: header.update(__metadata__={"a": 1})), "__metadata__"),
    "a surplus empty array":    (damaged(lambda header, rest: header.update(
                                    x={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})), "unexpected x"),
    "a name of a megabyte":     (damaged(lambda header, rest: header.update(
                                    {"x" * 10**6: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})), "unexpected xxx"),
    "a name that is half a pair": (damaged(lambda header, rest: header.update(
                                    {"\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})), "unexpected [?]"),
    "a name with line breaks":  (damaged(lambda header, rest: header.update(
                                    {"x\ny\r\x1b[31m": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})), "unexpected"),
}


@pytest.mark.parametrize("damage, message", DAMAGES.values(), ids=DAMAGES)
def test_weights(folder, damage, message):
    path = folder / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    assert re.search(message, refused(folder))


@pytest.mark.parametrize("damage", [
    b"", b"{", b"[]", b"null", b'"DDPMPipeline"', b"\xff\xfe{}", b'{"_class_name": "a", "_class_name": "b"}', b"9" * 10**6,
    b"[" * 10**6, b'{"a":' * 10**5, b'{"_class_name": ' + b"[" * 900 + b"]" * 900 + b"}", b" " * (10**7 + 1),
    b'{"_class_name": "' + b"x" * 10**6 + b'"}', b'{"_class_name": ["UNet2DModel", "DDPMScheduler", "DDPMPipeline"]}',
], ids=lambda damage: damage[:24].decode("latin-1"))
@pytest.mark.parametrize("name", JSON)
def test_json(folder, name, damage):
    (folder / name).write_bytes(damage)
    assert name in refused(folder)


@pytest.mark.parametrize("change", [
    {"block_out_channels": [2**20] * 4, "down_block_types": ["AttnDownBlock2D"] * 4, "up_block_types": ["AttnUpBlock2D"] * 4},
    {"block_out_channels": [4] * 5000, "down_block_types": ["DownBlock2D"] * 5000, "up_block_types": ["UpBlock2D"] * 5000},
    {"layers_per_block": 100}, {"layers_per_block": 2**31 - 1}, {"sample_size": 2**16},
    {"in_channels": 2**20, "out_channels": 2**20},
], ids=str)
def test_networks_too_large_for_their_weights_cost_nothing(folder, change):
    """A configuration alone must not make us allocate or loop: the weights in the file have to be as large."""
    path = folder / "unet/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    tracemalloc.start()
    start = time.monotonic()
    try:
        if change == {"sample_size": 2**16}:
            minddpm.load(folder)                                # the weights do not depend on it
        else:
            refused(folder)
        assert tracemalloc.get_traced_memory()[1] < 50e6 and time.monotonic() - start < 5
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("header", [b'{"x":[' + b"[]," * 3_000_000 + b"0]}", b"[" * 10**7, b" " * 10**8,
                                    b'"' + b"x" * (10**7 - 2) + b'"'],
                         ids=["many small values", "nested deep", "a hundred megabytes", "one text"])
def test_the_largest_json_bombs_cost_little(folder, header):
    (folder / WEIGHTS).write_bytes(assemble(header, b""))
    tracemalloc.start()
    start = time.monotonic()
    try:
        refused(folder)
        seconds, peak = time.monotonic() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"\n{seconds:.1f} s, {peak / 1e6:.0f} MB", end="")
    assert peak < 600e6 and seconds < 30


@pytest.mark.parametrize("what", ["fifo", "folder", "nothing"])
def test_json_is_read_from_regular_files_only(tmp_path, what):
    path = tmp_path / "settings.json"
    if what == "fifo":
        os.mkfifo(path)                                         # opening it would wait for a writer for ever
    elif what == "folder":
        path.mkdir()
    with pytest.raises(UserError, match="does not exist or is not a regular file"):
        files.read_json(path)


def test_a_sparse_file_of_a_terabyte(folder):
    path = folder / WEIGHTS
    with open(path, "r+b") as f:
        f.truncate(2**40)
    assert "too long" in refused(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission(folder):
    (folder / WEIGHTS).chmod(0)
    assert "Permission denied" in refused(folder)


@pytest.mark.parametrize("damage", ["cut in the data", "overlapping", "duplicate names", "huge shape", "whole numbers",
                                    "nested deep", "header length 2^64-1", "a name with line breaks"])
def test_the_command_line_prints_one_sentence_and_exits_with_2(folder, damage, capsys):
    path = folder / WEIGHTS
    path.write_bytes(DAMAGES[damage][0](path.read_bytes()))
    check_command_line(folder, capsys)


@pytest.mark.parametrize("name", [*JSON, WEIGHTS])
@pytest.mark.parametrize("what", ["missing", "linked"])
def test_the_command_line_on_missing_and_linked_files(folder, tmp_path, name, what, capsys):
    shutil.move(folder / name, tmp_path / "elsewhere")
    if what == "linked":
        (folder / name).symlink_to(tmp_path / "elsewhere")
    check_command_line(folder, capsys)


def test_the_command_line_on_a_pickle(folder, capsys):
    (folder / WEIGHTS).rename((folder / WEIGHTS).with_suffix(".bin"))
    assert "is a pickle" in check_command_line(folder, capsys)


def check_command_line(folder, capsys):
    code = cli.main(["sample", str(folder), "-n", "1"])
    out, err = capsys.readouterr()
    assert code == 2 and err.startswith("minddpm: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


# ---- fuzzing --------------------------------------------------------------------------------------------------------

def load_or_refuse(folder):
    """A model with finite weights of the right shapes, or one sentence; nothing else."""
    try:
        model = minddpm.load(folder)
    except UserError as e:
        assert str(e).isprintable() and len(str(e)) < 1000
        return None
    assert all(a.dtype == np.float32 and np.isfinite(a).all() for a in tree.leaves(model.params))
    return model


@FUZZ
@given(st.data())
def test_fuzz_bytes_of_the_weights(sound, tmp_path_factory, data):
    """Some bytes changed, cut out or put in, in the header more often than in the data."""
    original = (sound / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(original[:8], "little")
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        if not changed:
            break
        place = data.draw(st.integers(0, min(header, len(changed)) - 1) | st.integers(0, len(changed) - 1))
        piece = data.draw(st.binary(max_size=4) | st.sampled_from([b"0", b"9", b"-", b'"', b"[", b"]", b"{", b"}", b",", b"e9"]))
        changed[place:place + data.draw(st.sampled_from([0, 1, 1, 1, 8, 100]))] = piece
    check_weights(sound, tmp_path_factory, bytes(changed))


values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
                      | st.sampled_from([2**31, 2**63, 2**64, "F32", "BF16", "I64", -1, 0]),
                      lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=5), v, max_size=3), max_leaves=6)


@FUZZ
@given(st.data())
def test_fuzz_values_of_the_header(sound, tmp_path_factory, data):
    """Entries of the header changed into any JSON."""
    header, rest = parts((sound / WEIGHTS).read_bytes())
    names = first_names(header)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(names))
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", None]))
        if field is None or not isinstance(header[name], dict):
            header[name] = data.draw(values)
        else:
            header[name] = header[name] | {field: data.draw(values | st.lists(st.integers(0, 10**4), max_size=4))}
    check_weights(sound, tmp_path_factory, assemble(header, rest))


def check_weights(sound, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    shutil.copytree(sound, folder)
    (folder / WEIGHTS).write_bytes(data)
    try:
        model = load_or_refuse(folder)
        if model is not None:                                   # what we take, the library of the format's authors takes
            library = library_load(data)
            assert np.array_equal(library["conv_out.bias"].astype(np.float32), model.params["conv_out"]["bias"])
    finally:
        shutil.rmtree(folder)


@FUZZ
@given(st.data(), st.sampled_from(JSON))
def test_fuzz_options(sound, tmp_path_factory, data, name):
    """Options of a JSON file changed into any JSON, left out or added."""
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    shutil.copytree(sound, folder)
    config = json.loads((folder / name).read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        option = data.draw(st.sampled_from(sorted(config)) if config else st.just("x"))
        if data.draw(st.booleans()):
            config[option] = data.draw(values | st.lists(st.integers(0, 2**20), max_size=4))
        else:
            config.pop(option, None)
    (folder / name).write_text(json.dumps(config))
    try:
        load_or_refuse(folder)
    finally:
        shutil.rmtree(folder)


DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


@FUZZ
@given(st.dictionaries(st.text(max_size=8).filter(lambda name: name != "__metadata__"),
                       st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 3), max_size=4)), max_size=5),
       st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2), st.integers(0, 7), st.randoms())
def test_whatever_floats_the_library_reads_we_read_the_same(tmp_path_factory, arrays, metadata, padding, random):
    """Random sound files, in any order, with or without metadata and padding of the header."""
    header, data, expected = ({"__metadata__": metadata} if metadata else {}), b"", {}
    for name, (dtype, shape) in arrays.items():
        expected[name] = np.arange(math.prod(shape)).astype(DTYPES[dtype]).reshape(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + expected[name].nbytes]}
        data += expected[name].tobytes()
    items = list(header.items())
    random.shuffle(items)
    whole = assemble(json.dumps(dict(items)).encode() + b" " * padding, data)
    try:
        library = library_load(whole)
    except SafetensorError:
        assume(False)
    path = tmp_path_factory.mktemp("sound") / "a.safetensors"
    path.write_bytes(whole)
    with open_file(path) as stored:
        assert stored.entries.keys() == library.keys() == expected.keys() and stored.metadata == metadata
        for name, a in expected.items():
            assert stored.entries[name].shape == a.shape == library[name].shape
            assert np.array_equal(np.array(stored.read(stored.entries[name])), a)
    path.unlink()


def test_the_limits_are_far_from_what_we_write(tmp_path):
    """The header of the largest network's training state, four trees of it, is a thirtieth of what we read."""
    from minddpm.unet import parameters
    names = list(tree.flatten({name: parameters(UNetConfig.image256()) for name in ("params", "m", "v", "ema")}))
    assert 150 * len(names) + sum(map(len, names)) < files.MAX_JSON / 20
