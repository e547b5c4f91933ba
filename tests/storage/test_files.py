"""files.py: a file is whole, old or new, or not there, whatever system call fails or is the last one before a kill."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minddpm.errors import UserError
from minddpm.storage import files

OLD, NEW = b"old" * 1000, b"new" * 50_000


class Killed(BaseException):
    """In the place of SIGKILL: after it the program makes no more system calls."""


class Disk:
    """The real file system, whose n-th operation fails: in part of its work where it can, or before or after all of it."""

    def __init__(self, monkeypatch, fails=0, error=None, when="before"):
        self.operations, self.fails, self.error, self.when = [], fails, error, when
        self.dead = False
        for owner, name in (os, "fsync"), (os, "replace"), (Path, "mkdir"), (Path, "unlink"):
            monkeypatch.setattr(owner, name, self.operation(name, getattr(owner, name)))
        monkeypatch.setattr(files, "open", self.open, raising=False)

    def operation(self, name, f):
        def call(*args, **kwargs):
            self.step(name, lambda: f(*args, **kwargs))
        return call

    def step(self, name, f):
        if self.dead:
            raise Killed
        self.operations.append(name)
        fails = len(self.operations) == self.fails
        if fails and self.when == "before":
            self.fail()
        f()
        if fails:
            self.fail()

    def fail(self):
        self.dead = self.error is Killed
        raise self.error

    def open(self, path, mode):
        disk, file = self, open(path, mode)
        disk.operations.append("open")
        if len(disk.operations) == disk.fails:
            file.close()
            disk.fail()

        class File:
            fileno, flush = file.fileno, file.flush

            def write(self, data):
                for half in data[:len(data) // 2], data[len(data) // 2:]:
                    disk.step("write", lambda half=half: (file.write(half), file.flush()))

            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

        return File()


def test_what_a_write_does(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    files.write(tmp_path / "a" / "b" / "file", NEW)
    assert disk.operations[-6:] == ["open", "write", "write", "fsync", "replace", "unlink"]
    assert (tmp_path / "a" / "b" / "file").read_bytes() == NEW


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("fails", range(1, 8))
@pytest.mark.parametrize("there", [False, True])
def test_killed_at_every_operation(tmp_path, monkeypatch, there, fails, when):
    path = tmp_path / "folder" / "file"
    if there:
        files.write(path, OLD)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        disk = Disk(patch, fails, Killed, when)
        files.write(path, NEW)
        raise Killed
    replaced = "replace" in disk.operations[:-1] or disk.operations[-1] == "replace" and when == "after"
    assert (path.read_bytes() if path.exists() else None) == (NEW if replaced else OLD if there else None)

    files.sweep(tmp_path)                                                           # what the next run does
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == (["file"] if there or replaced else [])
    files.write(path, NEW)
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("fails", range(1, 7))
def test_an_error_at_every_operation_is_one_sentence_and_leaves_the_old_file_alone(tmp_path, monkeypatch, fails, error):
    path = tmp_path / "file"
    files.write(path, OLD)
    with monkeypatch.context() as patch:
        disk = Disk(patch, fails, OSError(error, os.strerror(error)))
        try:
            files.write(path, NEW)
            assert len(disk.operations) < fails or disk.operations[fails - 1] == "unlink"
        except UserError as e:
            assert str(e) == f"{path} cannot be written: {os.strerror(error)}"
            assert path.read_bytes() == OLD and [p.name for p in tmp_path.iterdir()] == ["file"]
        else:
            assert path.read_bytes() == NEW


def test_a_second_ctrl_c_in_the_middle_leaves_nothing_behind(tmp_path, monkeypatch):
    files.write(tmp_path / "file", OLD)
    Disk(monkeypatch, 3, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write(tmp_path / "file", NEW)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_bytes() == OLD


@pytest.mark.parametrize("name, reason", [
    ("file/below", "File exists|Not a directory"), ("file/far/below", "Not a directory"), ("folder", "Is a directory"),
    ("x" * 300, "File name too long"), ("/proc/nothing", "No such file or directory|Permission denied"),
    (".", "Is a directory|Device or resource busy|Invalid argument"), ("folder/..", "Is a directory|.* busy|Directory not empty"),
])
def test_places_that_cannot_be_written(tmp_path, monkeypatch, name, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"cannot be written: ({reason})") as error:
        files.write(name, NEW)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


def test_two_threads_and_readers_never_see_half_a_file(tmp_path):
    path, contents = tmp_path / "file", [bytes([k]) * 100_000 for k in range(2)]
    files.write(path, contents[0])
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for k in range(20):
        files.write(path, contents[k % 2])
    done.set()
    reader.join()
    assert seen <= set(contents)


def test_sweep_takes_parts_only(tmp_path):
    for name in "file", ".hidden", "a.part", "deep/.file.12.part", ".file.99.part":
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(OLD)
    files.sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [".hidden", "a.part", "file"]
    files.sweep(tmp_path / "missing")


JSON = st.recursive(st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats(allow_nan=False) | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.dictionaries(st.text(), JSON, max_size=4))
def test_json_round_trip(tmp_path, value):
    path = tmp_path / "f.json"
    path.write_text("{}")                                           # replaced without a trace of what was there
    files.write_json(path, value)
    assert files.read_json(path) == value == json.loads(path.read_text())
    assert path.read_bytes().endswith(b"\n")


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40) | st.text("{}[]\":,0123456789truefalsnN-.eE ", max_size=40).map(str.encode))
def test_json_of_any_bytes_is_a_dict_or_one_sentence(tmp_path, content):
    path = tmp_path / "f.json"
    path.write_bytes(content)
    try:
        assert type(files.read_json(path)) is dict
    except UserError as e:
        assert str(e).startswith(str(path)) and "\n" not in str(e)


def test_json_that_is_not_there(tmp_path):
    for path in tmp_path / "missing.json", tmp_path:
        with pytest.raises(UserError) as error:
            files.read_json(path)
        assert str(error.value) == f"{path} does not exist or is not a regular file; expected a JSON file"
