"""READMEs and docstrings are true: examples run, excerpts stand in the sources, commands and files exist."""

import ast
import doctest
import importlib
import io
import re
import tokenize
from pathlib import Path

import pytest

from minddpm.app import cli

ROOT = Path(__file__).resolve().parents[2]
READMES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(ROOT.glob("*/README.md")))}
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", "\n".join(READMES.values()), re.MULTILINE | re.DOTALL)
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "minddpm").rglob("*.py"))}
EXAMPLES = [path.relative_to(ROOT).with_suffix("") for path, text in SOURCES.items() if re.search(r"^ *>>> ", text, re.MULTILINE)]


@pytest.mark.parametrize("path", EXAMPLES, ids=str)
def test_examples_in_docstrings(path):
    failed, tried = doctest.testmod(importlib.import_module(".".join(path.parts)))
    assert tried and not failed


def test_the_readmes_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (text,) = [text for language, text in BLOCKS if ">>> " in text]
    test = doctest.DocTestParser().get_doctest(text, {}, "README", "README.md", 0)
    result = doctest.DocTestRunner().run(test)
    assert result.attempted > 10 and not result.failed


def bare(text):
    """A module's code without comments, docstrings and blank lines, each line without its indentation."""
    lines, docs = text.splitlines(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(node):
            docs |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = lines[token.start[0] - 1][:token.start[1]]
    return "".join(f"{line.strip()}\n" for k, line in enumerate(lines, 1) if line.strip() and k not in docs)


def test_the_readmes_excerpts_stand_in_the_sources():
    excerpts = [text for language, text in BLOCKS if language == "python" and ">>> " not in text and "diffusers" not in text]
    code = "".join(map(bare, [*SOURCES.values(), (ROOT / "demos" / "minimal.py").read_text(encoding="utf-8")]))
    assert len(excerpts) >= 3
    for excerpt in excerpts:
        lines = [line.partition("#")[0].strip() for line in excerpt.splitlines()]
        assert "".join(f"{line}\n" for line in lines if line) in code, excerpt


def test_the_readmes_commands_parse():
    """Every `minddpm …` line is one that the command line takes."""
    lines = [line for _, text in BLOCKS for line in text.splitlines() if line.startswith("minddpm ")]
    commands = [line.partition("#")[0].split()[1:] for line in lines]
    assert len(commands) >= 10
    for words in commands:
        cli._parser().parse_args(words)


def test_the_readmes_files_exist():
    """Links count from a README's own folder, and files with demos/, tests/ or minddpm/ before them from the root."""
    files, links = [], []
    for path, text in READMES.items():
        words = re.sub(r"<!-- index -->.*?<!-- /index -->", "", text, flags=re.DOTALL)           # its links show shorter names
        files += [ROOT / name for name in re.findall(r"(?<![\w/])((?:demos|tests|minddpm)/[\w/]+\.\w+)", words)]
        links += [path.parent / link for link in re.findall(r"\]\(([^)#\s]+)", text) if not link.startswith("http")]
    assert len(files) > 5 and len(links) > 100
    assert not [path for path in files + links if not path.exists()]
