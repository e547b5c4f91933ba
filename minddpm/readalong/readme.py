"""The README's generated sections: the order to read in, the paper's index, and "Paper vs. released code"."""

import re

from minddpm.errors import UserError
from minddpm.readalong.differences import DIFFERENCES
from minddpm.readalong.paper import ITEMS
from minddpm.storage import files

# Files of minddpm/, what they have of the paper, and what they hold.
ORDER = [
    ("diffusion", "Sec. 2, 3.1, 3.2", "the schedules; q step by step, at once, and backwards: Eq. (2), (4), (6), (7), (15)"),
    ("gaussian", "Sec. 2, 3.3", "log-density and KL of Gaussians, the discretised decoder: Eq. (13)"),
    ("reverse", "Eq. (1), (11), Table 2", "p_θ from what the network says"),
    ("objective bound", "Eq. (8), (12), (14), Table 2", "the training losses, each with its gradient"),
    ("sample", "Alg. 2, Fig. 6-9", "from noise to data, and what can be done on the way"),
    ("likelihood app/evaluate app/metrics", "Eq. (3), (5), (16), Tables 1, 4", "bits/dim, rate and distortion; samples judged"),
    ("coding/", "Alg. 3, 4", "images sent and received for real"),
    ("score", "Sec. 3.2, App. C", "ε_θ as a score; Langevin dynamics"),
    ("unet/layers/", "App. B", "one file a layer: forward pass, derivation, gradient; `cuda.py`, `kernels.cu`: on a GPU"),
    ("unet/blocks unet/network unet/recompute", "App. B", "residual block, attention, the U-Net and its initialisation"),
    ("train optim", "Alg. 1, Sec. 4", "one training step; Adam, warm-up, clipping, EMA; threads"),
    ("app/", "", "a run's folder, pictures, the command line"),
    ("model storage/", "", "folders that diffusers opens, and its folders opened here"),
    ("data/", "Sec. 3.3", "data sets in, pictures out"),
    ("fast/ readalong/", "", "from the paper to the line to the test"),
]


def update(index):
    """Write the generated sections into the README beside the sources -> whether it changed."""
    path = index.root / "README.md"
    if not path.is_file():
        raise UserError(f"{path} is not there: expected a checkout of the repository")
    old = path.read_text(encoding="utf-8")
    if (new := current(old, index)) != old:
        files.write(path, new.encode())
    return new != old


def current(text, index):
    """A README with its generated sections as they should be.  UserError: a section's marks are missing."""
    sections = ("order", order_section(index.root)), ("index", index_section(index)), ("differences", differences_section(index))
    for name, section in sections:
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise UserError(f"README.md: expected one {begin} and one {end} after it")
        text = text[:text.index(begin) + len(begin)] + f"\n{section}\n" + text[text.index(end):]
    return text


def order_section(root):
    """A table of the files in the order to read them in, with their lengths."""
    lines = ["| file | lines | paper | what it holds |", "|---|---|---|---|"]
    for names, where, what in ORDER:
        paths = [root / "minddpm" / (name if name.endswith("/") else f"{name}.py") for name in names.split()]
        counts = [sum(_lines(file) for file in ([path] if path.is_file() else path.rglob("*.py"))) for path in paths]
        files_ = ", ".join(f"`{path.name}{'' if path.suffix else '/'}`" for path in paths)
        lines.append(f"| {files_} | {', '.join(map(str, counts))} | {where} | {what} |")
    total = sum(_lines(file) for file in (root / "minddpm").rglob("*.py"))
    return "\n".join([*lines, "", f"All of `minddpm/` is {total:,} lines, words included."])


def _lines(path):
    return path.read_text(encoding="utf-8").count("\n")


def index_section(index):
    """A table of what is computed and tested, and a list of what is not, with the reasons."""
    lines = ["| paper | what it is | code | test |", "|---|---|---|---|"]
    reasons = {}
    for item in ITEMS:
        if index.code[item.key]:
            cells = item.key, item.meaning, _first(index.code[item.key]), _first(index.tests[item.key])
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
        else:
            reasons.setdefault(item.why_not or "not there yet", []).append(item.key)
    lines += ["", "No code of their own:", ""]
    return "\n".join(lines + [f"- {joined(keys)}: {reason}." for reason, keys in reasons.items()])


def differences_section(index):
    """The table of differences.py."""
    lines = ["| | the paper | the released code | minddpm | the other | shown by |", "|---|---|---|---|---|---|"]
    for d in DIFFERENCES:
        cells = d.what, d.paper, d.code, d.default, d.other, _link(index.named[d.test]) if d.test in index.named else d.test
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines)


def joined(keys):
    """["Fig. 1", "Fig. 3", "Sec. 4"] -> "Fig. 1, 3, Sec. 4"."""
    text, kind = "", None
    for key in keys:
        word, number = re.split(r" (?=\S+$)", key)
        text += f"{', ' if text else ''}{number if word == kind else key}"
        kind = word
    return text


def _first(places):
    return _link(places[0]) + (f" +{len(places) - 1}" if len(places) > 1 else "") if places else "–"


def _link(place):
    module = re.sub(r"^(minddpm|tests)/", "", place.path)
    name = place.name.replace("_", "\\_")
    return f"[`{module}:{place.line}`{f' {name}' if name else ''}]({place.path}#L{place.line})"
