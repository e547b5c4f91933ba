"""All code as web pages to read beside the paper: docstrings on the left, code on the right, each equation linked to its tests.

    python demos/pages.py [DIR]
    python demos/pages.py --guide       bring the generated sections of minddpm/README.md up to date, nothing else
"""

import argparse
from pathlib import Path

import common
from pages_html import guide

from minddpm.errors import UserError
from minddpm.readalong.index import build


def main(argv=None):
    """One page for each source file, one for the paper, one for its released code."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", nargs="?", type=Path, metavar="DIR", default=Path("pages"), help="(default: %(default)s)")
    p.add_argument("--guide", action="store_true", help="bring minddpm/README.md up to date, and nothing else")
    p.add_argument("--smoke", action="store_true", help="try the code: the first three files only")
    args = p.parse_args(argv)
    if args.guide:
        index = build()
        print(f"{'wrote' if guide.update(index) else 'nothing to change in'} {guide.path(index)}")
        return
    try:
        from pages_html import book
    except ImportError as e:
        raise UserError(f"{e.name} is not installed; expected `pip install -e '.[docs]'`") from e
    count = book.write(build(), args.folder, modules=3 if args.smoke else None)
    print(f"wrote {count} pages; begin with {args.folder.absolute() / 'index.html'}")


if __name__ == "__main__":
    common.start(main)
