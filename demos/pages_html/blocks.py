"""A source file as blocks to read: docstrings and comments apart from the code that they are about."""

import ast
import re
from typing import NamedTuple

from minddpm.readalong import tags
from minddpm.readalong.index import Place


class Block(NamedTuple):
    """A function, a method, the head of a class, or a few statements that stand together."""

    place: Place
    heading: str                    # of a new part of the file, where one begins here
    remark: str                     # the comment above it
    doc: str                        # its docstring
    code: list[int]                 # numbers of the lines that are code
    derivation: str = ""            # the comment above its pullback
    back: list[int] = ()            # numbers of the pullback's lines, where it has one; they are not in `code`


def split(path, text):
    """The module's docstring, and its blocks from top to bottom."""
    module, lines = ast.parse(text), text.splitlines()
    start = module.body[0].end_lineno + 1 if module.body and ast.get_docstring(module) else 1
    return _docstring(module), list(_blocks(path, lines, module.body, start, len(lines), ""))


def _blocks(path, lines, body, start, end, prefix):
    """The blocks of statements that lie in lines start..end."""
    loose = []                                                      # statements that are neither functions nor classes
    for node in body:
        if _is_docstring(node):
            continue
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            if loose and lines[node.lineno - 2].startswith("#"):    # with a comment above them others begin
                yield _statements(path, lines, loose, start)
                start, loose = loose[-1].end_lineno + 1, []
            loose.append(node)
            continue
        if loose:
            yield _statements(path, lines, loose, start)
            start, loose = loose[-1].end_lineno + 1, []
        yield from _definition(path, lines, node, start, prefix)
        start = node.end_lineno + 1
    if loose:
        yield _statements(path, lines, loose, start)


def _statements(path, lines, nodes, start):
    heading, remark, first = _above(lines, start, nodes[0].lineno)
    last = nodes[-1].end_lineno
    return Block(Place(path, "", first, first, last), heading, remark, "", list(range(first, last + 1)))


def _definition(path, lines, node, start, prefix):
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    heading, remark, first = _above(lines, start, first)
    name, doc = prefix + node.name, _docstring(node)
    inside = [d for d in node.body if isinstance(d, ast.FunctionDef | ast.ClassDef)]
    last = node.end_lineno
    if isinstance(node, ast.ClassDef) and inside:
        last = min(min([d.lineno, *(e.lineno for e in d.decorator_list)]) for d in inside) - 1
    docstring = range(node.body[0].lineno, node.body[0].end_lineno + 1) if doc else ()
    place = Place(path, name, node.lineno, first, node.end_lineno)
    code = [k for k in range(first, last + 1) if k not in docstring]
    backs = [d for d in inside if d.name.endswith("_back")]
    if isinstance(node, ast.FunctionDef) and backs:
        back = backs[-1]
        _, derivation, _ = _above(lines, _comment_start(lines, back.lineno), back.lineno)
        taken = set(range(_comment_start(lines, back.lineno), back.end_lineno + 1))
        yield Block(place, heading, remark, doc, [k for k in code if k not in taken], derivation,
                    list(range(back.lineno, back.end_lineno + 1)))
        return
    yield Block(place, heading, remark, doc, code)
    if isinstance(node, ast.ClassDef) and inside:
        rest = node.body[node.body.index(inside[0]):]
        yield from _blocks(path, lines, rest, last + 1, node.end_lineno, f"{name}.")


def _comment_start(lines, lineno):
    """The first of the comment lines right above a line."""
    while lines[lineno - 2].lstrip().startswith("#"):
        lineno -= 1
    return lineno


def _above(lines, start, lineno):
    """The comments between the last block and a line: a heading and a remark; and the line itself."""
    heading, remark = "", []
    for line in lines[start - 1:lineno - 1]:
        text = line.strip()
        if rule := re.fullmatch(r"#+ *-* *(.*?) *-{3,}", text):
            heading, remark = rule[1], []
        else:
            remark.append(re.sub(r"^# ?", "", text))
    return heading, "\n".join(remark).strip("\n"), lineno


def _is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _docstring(node):
    """A docstring with its lines set in as they are, measured from its own quotes."""
    if not ast.get_docstring(node):
        return ""
    margin = node.body[0].col_offset
    first, *rest = node.body[0].value.value.rstrip().split("\n")
    return "\n".join([first, *(line[margin:] if not line[:margin].strip() else line for line in rest)])


def without_tags(text):
    """A docstring without the tags that it begins with, if a sentence begins after them: "Eq. (7).  Mean" -> "Mean"."""
    while match := re.match(rf"{tags.TAGS}\.\s+(?=\S)", text):
        text = text[match.end():]
    return text


def paragraphs(text):
    """A docstring or comment -> a list of ("p", text), ("label", text) and ("lines", [lines]): indented lines stay lines.

    A paragraph that begins with "Back:" or "Keeps:" is a label's, and the indented lines below it belong to it.
    """
    parts, margin = [], None
    for line in text.splitlines():
        inset = len(line) - len(line.lstrip())
        kind, last = "lines" if inset >= 4 else "p", parts[-1] if parts else ("", "")
        if not line.strip():
            parts.append(("", ""))
        elif re.match(r"\s{0,3}(Back|Keeps):", line):
            parts.append(("label", line.strip()))
        elif last[0] == "label" and inset:
            parts[-1] = "label", f"{last[1]} {line.strip()}"
        elif kind == "lines" or (line.startswith((">>>", "...")) and not margin):
            parts[-1:] = [("lines", [*last[1], line])] if last[0] == "lines" else [*parts[-1:], ("lines", [line])]
        elif last[0] == "lines" and last[1][0].lstrip().startswith(">>>"):
            parts[-1] = "lines", [*last[1], line]                   # the output of a doctest
        elif last[0] in ("p", "label"):
            parts[-1] = last[0], f"{last[1]} {line.strip()}"
        else:
            parts.append(("p", line.strip()))
    return [part for part in parts if part[0]]
