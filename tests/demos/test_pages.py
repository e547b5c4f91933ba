"""The read-along pages: complete, well formed, true to the sources, and sound in a browser."""

import ast
import html
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from minddpm.errors import UserError
from minddpm.readalong.index import build, functions, paths
from minddpm.readalong.paper import ITEMS

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("latex2mathml", reason="pip install -e '.[docs]'")
pytest.importorskip("pygments", reason="pip install -e '.[docs]'")
sys.path.insert(0, str(ROOT / "demos"))
from pages_html import blocks, markup, maths  # noqa: E402
from pages_html import book as pages  # noqa: E402

VOID = {"meta", "br", "wbr", "link", "img", "hr", "mspace"}


class Page(HTMLParser):
    """What a page has: links, ids, text, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.problems, self.links, self.ids, self.text, self.code = [], [], [], [], [], []
        self.wheres, self.tags = [], set()
        self.feed(text)
        self.close()
        self.ids, self.repeated = set(self.ids), len(self.ids) - len(set(self.ids))
        self.problems += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs[name] for name in ("href", "src") if name in attrs]
        if attrs.get("class") == "l":
            self.code.append("")
        if attrs.get("class") == "where":
            self.wheres.append("")
        if tag not in VOID:
            self.open.append((tag, attrs.get("class")))

    def handle_endtag(self, tag):
        if not self.open or self.open[-1][0] != tag:
            self.problems.append(f"</{tag}> closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        if ("span", "l") in self.open:
            self.code[-1] += data
        elif ("p", "where") in self.open:
            self.wheres[-1] += data
        elif not {"style", "title", "pre", "code"} & {tag for tag, _ in self.open}:
            self.text.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    pages.write(build(ROOT), folder)
    return folder


@pytest.fixture(scope="module")
def book(folder):
    return {path.name: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.iterdir())}


# ---- each page ------------------------------------------------------------------------------------------------------------


def test_there_is_a_page_for_each_file_an_index_and_the_differences(book):
    assert set(book) == {"index.html", "differences.html", *map(pages.page_of, paths(ROOT))}


def test_pages_are_well_formed(book):
    for name, page in book.items():
        assert page.problems == [], name
        assert not page.repeated, name


def test_every_link_resolves(book):
    count = 0
    for name, page in book.items():
        for link in page.links:
            file, _, anchor = link.partition("#")
            there = book.get(file or name)
            if not there or (anchor and anchor not in there.ids):
                pytest.fail(f"{name}: {link}")
            count += 1
    assert count > 2000


def test_pages_need_no_network_and_no_script(folder, book):
    for name, page in book.items():
        text = (folder / name).read_text(encoding="utf-8")
        assert not page.tags & {"script", "link", "img", "iframe", "object"}, name
        words = re.sub(r'<pre>.*?</pre>|<div class="code">.*?</div>', "", text, flags=re.DOTALL)
        assert not re.search(r"url\(|@import|\son\w+=|javascript:", words), name
        assert set(re.findall(r"https?://[\w./-]+", words)) <= {"http://www.w3.org/1998/Math/MathML"}, name


def test_no_raw_tex(book):
    for name, page in book.items():
        words = "".join(page.text)
        if "$" in words:
            pytest.fail(name)
        raw = re.search(r"\\[a-z]{2,}|_\{|\^\{", words)
        assert not raw, f"{name}: …{words[raw.start() - 40:raw.end() + 20]}…"


def test_all_code_is_shown_once_and_nothing_else(book):
    """The lines of each file that are neither docstring nor comment nor blank, in their order but for pullbacks."""
    for path in paths(ROOT):
        text = (ROOT / path).read_text(encoding="utf-8")
        module = ast.parse(text)
        docs, inner = set(), set()
        for place, node in {None: module, **functions(path, module)}.items():
            if ast.get_docstring(node):
                docs |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
            if place and "." in place.name and place.name.rpartition(".")[0] in functions_of(module):
                inner |= set(range(place.line, place.end + 1))      # a function in a function keeps its docstring
        expected = [line.strip() for k, line in enumerate(text.splitlines(), 1)
                    if line.strip() and not line.strip().startswith("#") and k not in docs - inner]
        shown = [line.strip() for line in book[pages.page_of(path)].code]
        shown = [line for line in shown if line and not line.startswith("#")]
        lost, more = counted(expected) - counted(shown), counted(shown) - counted(expected)
        assert (list(lost)[:3], list(more)[:3]) == ([], []), path


def functions_of(module):
    """The names of the functions of a file, not of its classes."""
    return {place.name for place, node in functions("", module).items() if isinstance(node, ast.FunctionDef)}


def counted(lines):
    return Counter(re.sub(r"\s+", " ", line) for line in lines)


def test_file_and_line_stand_above_each_block_and_are_right(book):
    count = 0
    for name, page in book.items():
        for where in page.wheres:
            path, line, function = re.fullmatch(r"([\w/]+\.py):(\d+)(?: ([\w.]+))?(?:\W+(?:forward|gradient))?", where).groups()
            assert pages.page_of(path) == name
            if function:
                text = (ROOT / path).read_text().splitlines()[int(line) - 1]
                assert re.match(rf"\s*(def|class) {function.rpartition('.')[2]}\b", text), where
            count += 1
    assert count > 800


def test_every_public_function_has_its_words_beside_it(folder):
    page = (folder / "minddpm.diffusion.html").read_text()
    section = page[page.index('id="q_posterior"'):page.index('id="posterior_coefficients"')]
    words, code = section.split('<p class="where">')
    assert '<a href="index.html#eq06">Eq. (6)</a>' in words and '<a href="index.html#eq07">Eq. (7)</a>' in words
    assert words.count("<math") >= 2 and "<msqrt>" in words and "tests.literal.html#eq07" in words
    assert re.search(r'href="tests\.test_diffusion\.html#test_eq07_\w+"', words)
    assert "return mu_tilde" in re.sub("<[^>]*>", "", code) and "Mean μ̃" not in code


def test_layers_have_the_gradient_beside_the_forward_pass(folder):
    layers = sorted((ROOT / "minddpm" / "unet" / "layers").glob("*.py"))
    assert len(layers) > 5
    for path in layers:
        text = path.read_text()
        backs = re.findall(r"^    def (\w+_back)\(", text, re.MULTILINE)
        page = (folder / f"minddpm.unet.layers.{path.stem}.html").read_text()
        assert page.count("&ensp; forward") == page.count("&ensp; gradient") == len(backs), path
        for back in backs:
            forward, gradient = page.index(f"<b>{back.removesuffix('_back')}</b>"), page.index(f"<b>{back}</b>")
            assert forward < gradient < page.index("</section>", forward)
    norm = (folder / "minddpm.unet.layers.norm.html").read_text()
    assert norm.index("derivation") < norm.index("J is symmetric") < norm.index("<b>group_norm</b>")


def test_the_index_has_every_item_with_formula_and_links(book, folder):
    page = book["index.html"]
    text = (folder / "index.html").read_text()
    for item in ITEMS:
        assert item.token in page.ids
    for k in range(1, 27):
        section = text[text.index(f'id="eq{k:02}"'):]
        assert "<math" in section[:section.index("</section>")]
    assert len(page.links) > 500


def test_an_algorithms_tests_stand_beside_its_first_function_only(folder):
    index = build(ROOT)
    for key in "Alg. 1", "Alg. 2":
        first = index.code[key][0]
        page = (folder / pages.page_of(first.path)).read_text()
        link = f'href="{pages.Book(index).href(index.tests[key][0])}"'
        section = page[page.index(f'id="{first.name}"'):]
        assert page.count(link) == section[:section.index("</section>")].count(link) == 1, key


def test_a_formula_that_is_wider_than_half_a_page_has_a_row_of_its_own(folder):
    text = (folder / "index.html").read_text()
    wide = {key for key in ("eq07", "eq12", "eq26") if f'id="{key}">\n<div class="wide">' in text}
    assert wide == {"eq26"}


# ---- its parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line, tex", [
    ("x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε", r"x_{t} = \sqrt{\bar{\alpha }_{t}} x_{0} + \sqrt{1 - \bar{\alpha }_{t}} \epsilon "),
    ("½ [ (μ̃ − m)² / σ_t² ]", r"\tfrac{1}{2} [ (\tilde{\mu } - m)^{2} / \sigma _{t}^{2} ]"),
    ("dW = Pᵀ dy", r"d W = P^{T} d y"), ("e^−x", "e^{-x}"), ("Σ_{t>1} L_{t−1}", r"\sum _{t>1} L_{t-1}"),
    ("S_ij / Σ_j exp S_ij", r"S_{ij} / \sum _{j} \exp  S_{ij}"), ("10000^(−i/(h−1))", "10000^{-i/(h-1)}"),
    ("x = 0 outside", r"x = 0 \text{ outside }"), ("log_var = log β_t", r"\text{log_var} = \log  \beta _{t}"),
    ("a ≠ b", r"a \ne  b"), ("∇_θ 1/B", r"\nabla _{\theta }\, 1/B"), ("x ☃ y", None), ("(a", None),
])
def test_unicode_formulas_become_latex(line, tex):
    found = maths.tex(line)
    if line != "(a":
        assert found == tex
    if found and tex:
        assert maths.mathml(found).startswith("<math")


@pytest.mark.parametrize("line, formula", [
    ("    y = x s,     s = 1 / (1 + e^−x)", True), ("    β̃_t = (1 − ᾱ_{t−1}) / (1 − ᾱ_t) β_t", True),
    ("    y, back = layer(p, x, ...)", False), ("    settings.json      everything that the run was told", False),
    (">>> x = 1", False), ("    8 bytes   the length n of the header", False), ("    1: send x_T ~ q(x_T | x_0)", False),
])
def test_what_is_a_formula(line, formula):
    assert maths.is_formula(line) is formula


@pytest.mark.parametrize("text, shown", [
    ("where dP_j is", "where dP<sub>j</sub> is"), ("x_t and L_{t−1}", "x<sub>t</sub> and L<sub>t−1</sub>"),
    ("adP_j, x.y_t", "adP_j, x.y_t"), ("e^{−d}", "e<sup>−d</sup>"),
])
def test_letters_with_subscripts_in_a_sentence(text, shown):
    assert markup.sentence(text) == shown


@pytest.mark.parametrize("text, rest", [
    ("Eq. (6), (7).  Mean and variance, Eq. (4).", "Mean and variance, Eq. (4)."), ("Sec. 4.3, Fig. 5, Table 4.  Rates", "Rates"),
    ("Alg. 1, line 5.  The mean", "Alg. 1, line 5.  The mean"), ("The mean of Eq. (7).", "The mean of Eq. (7)."), ("", ""),
])
def test_a_docstring_without_its_tags(text, rest):
    assert blocks.without_tags(text) == rest


def test_paragraphs():
    text = ("First line\ngoes on.\n\n    y = x\n    z = y\nwith x.\nBack:  dx = dy\n       and more.\nKeeps: x.\n\n"
            ">>> f(1)\n2\n\nLast.")
    assert blocks.paragraphs(text) == [
        ("p", "First line goes on."), ("lines", ["    y = x", "    z = y"]), ("p", "with x."),
        ("label", "Back:  dx = dy and more."), ("label", "Keeps: x."), ("lines", [">>> f(1)", "2"]), ("p", "Last.")]


def test_blocks_of_a_file():
    text = ('"""Doc."""\n\nimport a\n\n# Why.\nB = 1\n\n# Part two ------\n\n\n'
            '@c\ndef f(x):\n    """F.\n\n        y = x\n    """\n    y = x\n\n'
            '    # Because.\n    def f_back(dy):\n        return dy\n\n    return y, f_back\n\n\n'
            'class C:\n    """C."""\n    n: int\n\n    def g(self):\n        return 1\n')
    doc, found = blocks.split("m.py", text)
    assert doc == "Doc."
    imports, constant, f, c, g = found
    assert (imports.code, constant.remark, constant.code) == ([3], "Why.", [6])
    assert (f.heading, f.doc, f.derivation) == ("Part two", "F.\n\n    y = x", "Because.")
    assert (f.place.line, f.place.start, f.back) == (12, 11, [20, 21]) and not set(f.back) & set(f.code) and 23 in f.code
    assert (c.place.name, c.doc, g.place.name) == ("C", "C.", "C.g")


def test_long_code_lines_hang_and_blocks_move_to_the_left():
    lines = markup.highlighted("class A:\n    def f(self):\n\n        return 1\n")
    text = markup.code(lines, [2, 3, 4])
    assert re.sub("<[^>]*>", "|", text).replace("|", "") == "def f(self):    return 1"
    assert 'style="--i:4"><span class="in">    <' in text and 'style="--i:0"' in text


# ---- the program ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def program():
    return importlib.import_module("pages")


def test_smoke_writes_the_first_pages(program, tmp_path, capsys):
    program.main([str(tmp_path / "pages"), "--smoke"])
    assert {"index.html", "differences.html", "minddpm.diffusion.html"} < {path.name for path in (tmp_path / "pages").iterdir()}
    assert capsys.readouterr().out == f"wrote 5 pages; begin with {tmp_path / 'pages' / 'index.html'}\n"


@pytest.mark.parametrize("missing", ["pygments", "latex2mathml"])
def test_what_is_not_installed_is_named(monkeypatch, program, tmp_path, missing):
    for name in [name for name in sys.modules if name.split(".")[0] in ("pages_html", missing)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"{missing}\S* is not installed; expected `pip install -e '\.\[docs\]'`"):
        program.main([str(tmp_path / "pages")])
    assert not (tmp_path / "pages").exists()


def test_a_folder_that_cannot_be_written_to_is_one_sentence(program, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        program.main([str(tmp_path / "file"), "--smoke"])


# ---- in a browser ---------------------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# For each page in a frame of the given width: elements wider than the frame, and letters too small or too faint to read.
CHECK = """
const linear = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const luminance = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(linear);
                         return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ground = e => { for (; e; e = e.parentElement) { const c = e.ownerDocument.defaultView.getComputedStyle(e).backgroundColor;
                      if (!c.startsWith('rgba(0, 0, 0, 0')) return c; } return 'rgb(255, 255, 255)'; };
addEventListener('load', () => {
  const found = {dark: matchMedia('(prefers-color-scheme: dark)').matches, pages: 0, maths: 0, problems: []};
  for (const frame of document.querySelectorAll('iframe')) {
    const d = frame.contentDocument, w = frame.contentWindow, name = frame.title, wide = d.documentElement.clientWidth;
    const say = text => found.problems.length < 30 && found.problems.push(`${name}: ${text}`);
    found.pages += 1;
    if (w.matchMedia('(prefers-color-scheme: dark)').matches != found.dark) say('has another colour scheme');
    if (d.documentElement.scrollWidth > wide) say(`is ${d.documentElement.scrollWidth} wide`);
    for (const e of d.querySelectorAll('body *')) {
      const box = e.getBoundingClientRect(), style = w.getComputedStyle(e);
      const inside = e.closest('.maths'), out = box.right > wide + 1 || box.left < -1;         // a formula may be scrolled
      if (e.matches('.code, pre') ? e.scrollWidth > e.clientWidth : !inside && !e.closest('.code') && box.width && out)
        say(`${e.tagName} ${e.className} ends at ${box.right}`);
      if (e.tagName == 'math') { found.maths += 1; if (box.height < 8) say('an empty formula'); }
      const own = [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim());
      if (own && !inside && e.tagName != 'STYLE') {
        const small = parseFloat(style.fontSize) < 10 && !['SUB', 'SUP'].includes(e.tagName);
        if (small) say(`${e.tagName} has letters of ${style.fontSize}`);
        const [a, b] = [luminance(style.color), luminance(ground(e))].sort((x, y) => y - x), contrast = (a + 0.05) / (b + 0.05);
        if (contrast < 4.5) say(`${e.tagName} ${e.className} has contrast ${contrast.toFixed(2)}`);
      }
    }
  }
  document.getElementById('found').textContent = JSON.stringify(found);
});
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(folder, tmp_path, width, scheme):
    """No overflow, readable letters and contrast, every formula drawn."""
    frames = "".join(f'<iframe title="{path.name}" style="width:{width}px;height:900px" '
                     f'srcdoc="{html.escape(path.read_text(encoding="utf-8"))}"></iframe>' for path in sorted(folder.iterdir()))
    harness = tmp_path / "check.html"
    harness.write_text(f'<!DOCTYPE html><html style="color-scheme: {scheme}"><meta charset="utf-8"><body>{frames}'
                       f'<pre id="found"></pre><script>{CHECK}</script></body></html>', encoding="utf-8")
    dark = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    done = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                           "--disable-background-networking", "--disable-component-update", "--disable-sync", *dark,
                           f"--user-data-dir={tmp_path / 'profile'}", "--timeout=120000", "--dump-dom", harness.as_uri()],
                          capture_output=True, text=True, timeout=300, env=os.environ | {"HOME": str(tmp_path)})
    found = json.loads(html.unescape(re.search(r'<pre id="found">(\{.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert found["dark"] == (scheme == "dark") and found["pages"] == len(list(folder.iterdir())) and found["maths"] > 200
    assert found["problems"] == [], "\n".join(found["problems"])
