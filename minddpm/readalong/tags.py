"""How a tag is written: `Eq. (7)`, `Eq. (3), (5) and (16)`, `Alg. 1-4`, `Sec. 4.3, Fig. 5, Table 4`, test_eq07_… in a name."""

import re

from minddpm.readalong.paper import spell

# kind: how one number of it is written
NUMBER = {"Eq.": r"\(\d+\)", "Alg.": r"\d+", "Sec.": r"\d(?:\.\d+)?", "App.": r"[A-Z]\b", "Fig.": r"\d+", "Table": r"\d+"}
_GROUPS = "|".join(rf"(?:{re.escape(kind)}|{kind[:-1]}s\.|{kind}s)[ ]{n}(?:(?:-|–|,[ ]|[ ]and[ ]|,[ ]and[ ]){n})*"
                   for kind, n in NUMBER.items())
TAGS = rf"(?:{_GROUPS})(?:, (?:{_GROUPS}))*"
GROUP = re.compile(rf"\b(?:{_GROUPS})")
IN_NAME = re.compile(r"(?<![a-z])(eq|alg|sec|app|fig|table)_?(\d+|[a-d])(?:_to_(?:eq|alg|sec|fig|table)(\d+))?(?=_|$)",
                     re.IGNORECASE)


def groups(text):
    """Yields (match, keys) for each place in a text where one or several keys of a kind stand together."""
    for match in GROUP.finditer(text):
        kind = next(kind for kind in NUMBER if match[0].startswith(kind.rstrip(".")))
        yield match, [f"{kind} {number}" for number in _numbers(kind, match[0])]


def _numbers(kind, text):
    found = re.findall(NUMBER[kind], text)
    if kind == "Sec." or not re.search(r"\d\)?[-–]\(?\d", text):
        return found
    wrap, numbers = "({})" if kind == "Eq." else "{}", []
    for first, _, last in re.findall(r"(\d+)\)?([-–]\(?(\d+))?", text):
        numbers += [wrap.format(k) for k in range(int(first), int(last or first) + 1)]
    return numbers


def leading(text):
    '''The keys at the start of a docstring or comment: "Eq. (8), (13).  Table 2, …" -> ["Eq. (8)", "Eq. (13)", "Table 2"].'''
    keys, end = [], 0
    for match, found in groups(text):
        if not re.fullmatch(r"(?:, line \d+|, lines \d+-\d+)?[.,:;]?\s*", text[end:match.start()]):
            break
        keys, end = keys + found, match.end()
    return keys


def is_whole(text):
    """Whether the tags that a docstring begins with stand as a sentence: in "Eq. (7).  The mean", not in "Alg. 1, line 5." """
    return bool(re.match(rf"{TAGS}\.(?=\s|$)", text))


def in_name(name):
    """The tokens in a test's name: test_eq03_eq05_and_eq16_agree -> ["eq03", "eq05", "eq16"]; eq08_to_eq12 is all five."""
    tokens = []
    for kind, first, last in IN_NAME.findall(name):
        kind = kind.capitalize()
        numbers = range(int(first), int(last) + 1) if last else [first]
        tokens += [spell(kind, str(int(n)) if kind in ("Eq", "Fig") else str(n)) for n in numbers]
    return tokens


def starts_with(name, token):
    """Whether a test is of this item before anything else: its name begins with the token, or with several one of which it is.

    test_literal_… tests the transcription, not the code.
    """
    prefix = re.match(r"test_(?:(?:eq|alg|sec|app|fig|table)_?(?:\d+|[a-d])_(?:and_)?)+", f"{name}_", re.IGNORECASE)
    return bool(prefix) and token in in_name(prefix[0])
