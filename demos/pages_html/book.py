"""The read-along pages: one for each source file, with docstrings and comments on the left and the code on the right.

Each page is one file of HTML that needs nothing else: its style is in it, it has no script and no link out of the folder.
"""

import html
import re

from minddpm.errors import UserError
from minddpm.readalong import tags
from minddpm.readalong.paper import ITEMS
from minddpm.readalong.plain import plain
from pages_html import blocks, maths
from pages_html.differences import DIFFERENCES
from pages_html.markup import code, formulas, highlighted, page, sentence, where
from pages_html.order import reading_order

TESTS_SHOWN = 4
HALF = 85                       # about as many characters of a formula fit into half of a page's width
LABEL, BOLD = re.compile("(Back|Keeps):"), r"<b>\1:</b>"


def write(index, folder, modules=None):
    """Write the pages into a folder -> their number.  modules: only so many modules' pages, the first to read.

    UserError: the folder cannot be written to.
    """
    book = Book(index)
    pages = {"index.html": book.contents(), "differences.html": book.differences()}
    pages |= {page_of(path): book.module(path) for path in book.order[:modules]}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in pages.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as e:
        raise UserError(f"{folder} cannot be written to: {e.strerror}") from e
    return len(pages)


def page_of(path):
    """The file name of a module's page."""
    return f"{path.removesuffix('.py').replace('/', '.')}.html"


class Book:
    """The pages, and the links between them."""

    def __init__(self, index):
        self.index = index
        self.order = reading_order(index)
        self.texts = {path: (index.root / path).read_text(encoding="utf-8") for path in self.order}
        self.parts = {path: blocks.split(path, text) for path, text in self.texts.items()}
        self.keys = {}                                              # {(path, name): the keys that the code there is tagged with}
        for kind in index.code, index.literal:
            for key, places in kind.items():
                for place in places:
                    self.keys.setdefault((place.path, place.name), []).append(key)
        self.names = {path: {block.place.name for block in found} - {""} for path, (_, found) in self.parts.items()}

    # ---- links ----------------------------------------------------------------------------------------------------------------

    def href(self, place):
        """The address of the block that a place is in."""
        name = place.name
        while name and name not in self.names[place.path]:
            name = name.rpartition(".")[0]
        return page_of(place.path) + (f"#{name}" if name else "")

    def link(self, place):
        """A link that shows file, line and name."""
        return f'<a href="{self.href(place)}">{html.escape(str(place)).replace("_", "_<wbr>")}</a>'

    def prose(self, text):
        """A sentence with its tags as links and its backquotes as code."""
        out = []
        for k, part in enumerate(re.split(r"`([^`\n]+)`", text)):
            if k % 2:
                out.append(f"<code>{html.escape(part)}</code>")
                continue
            end = 0
            for match, keys in tags.groups(part):
                out.append(sentence(part[end:match.start()]))
                out.append(f'<a href="{_item_href(keys[0])}">{html.escape(match[0])}</a>' if _known(keys[0]) else match[0])
                end = match.end()
            out.append(sentence(part[end:]))
        return "".join(out)

    # ---- pages ----------------------------------------------------------------------------------------------------------------

    def module(self, path):
        """A source file's page."""
        doc, parts = self.parts[path]
        lines = highlighted(self.texts[path])
        place = self.order.index(path)
        around = [(f"← {self.order[place - 1]}" if place else "", place - 1),
                  (f"{self.order[place + 1]} →" if place + 1 < len(self.order) else "", place + 1)]
        ways = [f'<a href="{page_of(self.order[k])}">{text}</a>' for text, k in around if text]
        body, lead = [f"<h1>{path}</h1>"], self.tags_of(path, "") + self.written(doc)
        if parts and not parts[0].place.name and not parts[0].remark:
            first, *parts = parts
            right = where(first.place) + code(lines, first.code)
            body.append(f'<section class="row">\n<div>{lead}</div>\n<div>{right}</div>\n</section>')
        else:
            body.append(f'<div class="lead">{lead}</div>')
        for block in parts:
            if block.heading:
                body.append(f"<h2>{sentence(block.heading)}</h2>")
            body.append(self.pullback(block, lines) if block.back else self.block(block, lines))
        return page(path, body, ways)

    def block(self, block, lines):
        """A block's docstring and comments, and beside them the code."""
        return (f'<section class="row"{_id(block)}>\n<div>{self.left(block)}</div>\n'
                f"<div>{where(block.place)}{code(lines, block.code)}</div>\n</section>")

    def pullback(self, block, lines):
        """A layer's docstring beside the derivation, and under them the forward pass beside its gradient."""
        back = block.place._replace(line=block.back[0], name=f"{block.place.name}_back")
        wide = "" if block.derivation else ' class="wide"'
        words = f"<div{wide}>{self.left(block)}</div>"
        if block.derivation:
            words += f'\n<div><p class="label">derivation</p>{self.written(block.derivation)}</div>'
        return (f'<section{_id(block)} class="row half">\n{words}\n'
                f"<div>{where(block.place, 'forward')}{code(lines, block.code, narrow=True)}</div>\n"
                f"<div>{where(back, 'gradient')}{code(lines, block.back, narrow=True)}</div>\n</section>")

    def left(self, block):
        """A block's tags, its comments and docstring, the paper's formulas where the docstring has none, and its tests."""
        name, path = block.place.name, block.place.path
        keys = self.keys.get((path, name), []) if name else []
        own = self.written(block.remark) + self.written(block.doc)
        from_paper = [line for item in ITEMS if item.key in keys for line in _apart(item)] if "<math" not in own else []
        return (self.tags_of(path, name) if name else "") + own + formulas(from_paper) + self.proof(block.place, keys)

    def tags_of(self, path, name):
        """The equations and sections that the code is tagged with, or that a test's name has, as links to the index."""
        keys = self.keys.get((path, name), [])
        if path.startswith("tests/") and name.rpartition(".")[2].startswith("test_"):
            tokens = tags.in_name(name)
            keys = [item.key for item in ITEMS if item.token in tokens]
        return _chips(keys) if keys else ""

    def proof(self, place, keys):
        """The transcription and the tests of those of the equations `keys` for which this is the first place to look."""
        code, literal = self.index.code, self.index.literal
        keys = [key for key in keys if not key.startswith(("Sec.", "App.")) and place in (*code[key][:1], *literal[key][:1])]
        found = [self.link(other) for key in keys for other in literal[key][:1] if other != place]
        tests = list(dict.fromkeys(test for key in keys for test in self.index.tests[key]))
        found += [self.link(test) for test in tests[:TESTS_SHOWN]]
        if len(tests) > TESTS_SHOWN:
            found.append(f'<a href="{_item_href(keys[0])}">and {len(tests) - TESTS_SHOWN} more tests</a>')
        return f'<ul class="proof">{"".join(f"<li>{line}</li>" for line in found)}</ul>' if found else ""

    def written(self, text):
        """A docstring or a comment as HTML."""
        out = []
        for kind, part in blocks.paragraphs(blocks.without_tags(text)):
            if kind == "lines":
                if all(maths.is_formula(line) for line in part):
                    out.append(formulas([[maths.tex(piece) for piece in re.split(r" {3,}", line.strip())] for line in part]))
                else:
                    margin = min(len(line) - len(line.lstrip()) for line in part)
                    out.append(f"<pre>{html.escape(chr(10).join(line[margin:] for line in part))}</pre>")
            else:
                words = self.prose(part)
                out.append(f"<p>{LABEL.sub(BOLD, words) if kind == 'label' else words}</p>")
        return "".join(out)

    def contents(self):
        """The page to begin with: the paper from Eq. (1) on, and the files in reading order."""
        body = ["<h1>minddpm, beside the paper</h1>",
                '<p class="lead">Ho, Jain and Abbeel, <i>Denoising Diffusion Probabilistic Models</i> (2020), arXiv 2006.11239: '
                "each equation, algorithm, table and figure, the code that computes it, and its tests.  "
                '<a href="differences.html">Where the paper and its released code differ</a> is a page of its own, and '
                '<a href="#files">each file</a> has one.</p>',
                _chips(item.key for item in ITEMS)]
        for item in ITEMS:
            label = f' <span class="label">{item.where}</span>' if item.where else ""
            reason = f"<p>No code of its own: {self.prose(item.no_code_because)}.</p>" if item.no_code_because else ""
            words = f"<h3>{item.key}&ensp;{sentence(item.meaning)}{label}</h3>{formulas(_apart(item))}"
            if any(len(plain(part)) > HALF for line in _apart(item) for part in line):
                left = f'<div class="wide">{words}</div>\n<div>{reason}</div>'
            else:
                left = f"<div>{words}{reason}</div>"
            body.append(f'<section class="row half" id="{item.token}">\n{left}\n<div>{self.links_of(item)}</div>\n</section>')
        rows = [f'<li><a href="{page_of(path)}">{path}</a> <span>{len(self.texts[path].splitlines())} lines</span></li>'
                for path in self.order]
        return page("minddpm, beside the paper", [*body, '<h2 id="files">Files, in reading order</h2>',
                                                  f'<ul class="grid">{"".join(rows)}</ul>'])

    def links_of(self, item):
        """An item's code, transcription and tests."""
        out = ""
        for name, kind in ("code", self.index.code), ("the paper, literally", self.index.literal), ("tests", self.index.tests):
            if places := kind[item.key]:
                lines = "".join(f"<li>{self.link(place)}</li>" for place in places)
                out += f'<p class="label">{name}</p><ul class="proof">{lines}</ul>'
        return out

    def differences(self):
        """Paper vs. released code."""
        body = ["<h1>Paper vs. released code</h1>",
                '<p class="lead">Where the paper and hojonathanho/diffusion at 1e0dceb differ, '
                "the behaviour of minddpm, and the test that shows the difference.</p>"]
        for d in DIFFERENCES:
            test = self.link(self.index.named[d.test]) if d.test in self.index.named else html.escape(d.test)
            rows = ("the paper", self.prose(d.paper)), ("the released code", self.prose(d.code)), (
                "minddpm", self.prose(d.default)), ("to get the other", self.prose(d.other)), ("shown by", test)
            cells = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)
            body.append(f"<h2>{self.prose(d.subject)}</h2><dl>{cells}</dl>")
        return page("Paper vs. released code", body)


def _item_href(key):
    return f"index.html#{next(item.token for item in ITEMS if item.key == key)}"


def _apart(item):
    """An item's formulas, each line in the parts that a wide space divides."""
    return [re.split(r"(?<=\S) *\\qquad *", line) for line in item.tex]


def _chips(keys):
    return '<div class="tags">{}</div>'.format("".join(f'<a href="{_item_href(key)}">{key}</a>' for key in keys))


def _known(key):
    return any(item.key == key for item in ITEMS)


def _id(block):
    return f' id="{block.place.name}"' if block.place.name else ""
