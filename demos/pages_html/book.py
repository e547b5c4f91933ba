"""The read-along pages: for each source file one page, what is written about the code on the left and the code on the right.

Each page is complete in itself: one file of HTML with its style in it, no script, and no address outside the folder.
"""

import html
import re

from minddpm.errors import UserError
from minddpm.readalong import blocks, maths, tags
from minddpm.readalong.differences import DIFFERENCES
from minddpm.readalong.index import FIRST, sources
from minddpm.readalong.markup import code, formulas, highlighted, page, sentence, where
from minddpm.readalong.paper import ITEMS
from minddpm.storage import files

TESTS_SHOWN = 4
LABEL, BOLD = re.compile("(Back|Keeps):"), r"<b>\1:</b>"


def write(index, folder):
    """Write all pages into a folder -> how many.  UserError: it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{folder} cannot be written to: {e.strerror}") from e
    book = Book(index)
    pages = {"index.html": book.contents(), "differences.html": book.differences()}
    pages |= {page_of(path): book.module(path) for path in book.order}
    for name, text in pages.items():
        files.write(folder / name, text.encode())
    return len(pages)


def page_of(path):
    """The file name of a module's page."""
    return f"{path.removesuffix('.py').replace('/', '.')}.html"


class Book:
    """All that the pages need to know of each other."""

    def __init__(self, index):
        self.index = index
        self.texts = {path: (index.root / path).read_text(encoding="utf-8") for path in sources(index.root)}
        self.parts = {path: blocks.split(path, text) for path, text in self.texts.items()}
        self.order = sorted(self.texts, key=_book_order)
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
        """What is written, and beside it the code."""
        return (f'<section class="row"{_id(block)}>\n<div>{self.left(block)}</div>\n'
                f"<div>{where(block.place)}{code(lines, block.code)}</div>\n</section>")

    def pullback(self, block, lines):
        """What is written beside the derivation, and under them the forward pass beside its gradient."""
        back = block.place._replace(line=block.back[0], name=f"{block.place.name}_back")
        wide = "" if block.derivation else ' class="wide"'
        words = f"<div{wide}>{self.left(block)}</div>"
        if block.derivation:
            words += f'\n<div><p class="label">derivation</p>{self.written(block.derivation)}</div>'
        return (f'<section{_id(block)} class="row half">\n{words}\n'
                f"<div>{where(block.place, 'forward')}{code(lines, block.code, narrow=True)}</div>\n"
                f"<div>{where(back, 'gradient')}{code(lines, block.back, narrow=True)}</div>\n</section>")

    def left(self, block):
        """Tags, what is written, the paper's formulas where the words have none, and the proof."""
        name, path = block.place.name, block.place.path
        keys = self.keys.get((path, name), []) if name else []
        own = self.written(block.remark) + self.written(block.doc)
        from_paper = [line for item in ITEMS if item.key in keys for line in _apart(item)] if "<math" not in own else []
        return (self.tags_of(path, name) if name else "") + own + formulas(from_paper) + self.proof(keys)

    def tags_of(self, path, name):
        """The equations and sections that the code is tagged with, or that a test's name has, as links to the index."""
        keys = self.keys.get((path, name), [])
        if path.startswith("tests/") and name.rpartition(".")[2].startswith("test_"):
            tokens = tags.in_name(name)
            keys = [item.key for item in ITEMS if item.token in tokens]
        return _chips(keys) if keys else ""

    def proof(self, keys):
        """Where the paper's equations, of which `keys` are some, are transcribed and tested."""
        keys = [key for key in keys if not key.startswith(("Sec.", "App."))]
        found = [self.link(place) for key in keys for place in self.index.literal[key][:1]]
        tests = list(dict.fromkeys(place for key in keys for place in self.index.tests[key]))
        found += [self.link(place) for place in tests[:TESTS_SHOWN]]
        if len(tests) > TESTS_SHOWN:
            found.append(f'<a href="{_item_href(keys[0])}">and {len(tests) - TESTS_SHOWN} more tests</a>')
        return f'<ul class="proof">{"".join(f"<li>{line}</li>" for line in found)}</ul>' if found else ""

    def written(self, text):
        """A docstring or a comment as HTML."""
        out = []
        for kind, part in blocks.paragraphs(tags.without_leading(text)):
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
                "each equation, algorithm, table and figure, the code that computes it, and the tests that prove it.  "
                '<a href="differences.html">Where the paper and its released code differ</a> is a page of its own, and '
                '<a href="#files">each file</a> has one.</p>',
                _chips(item.key for item in ITEMS)]
        for item in ITEMS:
            section = item.section if item.section.startswith("App") else f"Sec. {item.section}"
            body.append(f'<section class="row half" id="{item.token}">\n<div><h3>{item.key}&ensp;{sentence(item.meaning)}'
                        + (f' <span class="label">{section}</span>' if item.section else "")
                        + f"</h3>{formulas(_apart(item))}"
                        + (f"<p>No code of its own: {self.prose(item.why_not)}.</p>" if item.why_not else "")
                        + f"</div>\n<div>{self.links_of(item)}</div>\n</section>")
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
                "what minddpm does unless told otherwise, and the test that shows the difference.</p>"]
        for d in DIFFERENCES:
            test = self.link(self.index.named[d.test]) if d.test in self.index.named else html.escape(d.test)
            rows = ("the paper", self.prose(d.paper)), ("the released code", self.prose(d.code)), (
                "minddpm", self.prose(d.default)), ("the other", self.prose(d.other)), ("shown by", test)
            cells = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)
            body.append(f"<h2>{self.prose(d.what)}</h2><dl>{cells}</dl>")
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


def _book_order(path):
    """The method, then the rest of the package, then demos and tests."""
    folder, _, module = path.partition("/")
    rank = next((k for k, name in enumerate(FIRST) if folder == "minddpm" and module.startswith(name)), len(FIRST))
    return ("minddpm", "demos", "tests").index(folder), rank, path
