"""SQL as HTML: coloured by kind of word, and the words that two queries do not share marked.

A lexer of our own rather than a parser, because a model's wrong answer need not be SQL at all.
"""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import NamedTuple

from markupsafe import Markup

_LEXER = re.compile(
    r"""(?P<space>\s+)
    |(?P<comment>--[^\n]*|/\*.*?\*/)
    |(?P<string>'(?:[^']|'')*')
    |(?P<name>"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\])
    |(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
    |(?P<word>[^\W\d]\w*)
    |(?P<sign><>|!=|<=|>=|==|\|\||.)""",
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS = frozenset(
    # A plain string, because fifty quoted words would hide the list.
    """ALL AND AS ASC BETWEEN BY CASE CAST COLLATE CROSS DESC DISTINCT ELSE END ESCAPE EXCEPT EXISTS
    FROM FULL GLOB GROUP HAVING IN INNER INTERSECT IS JOIN LEFT LIKE LIMIT NATURAL NOT NULL OFFSET
    ON OR ORDER OUTER OVER PARTITION RECURSIVE RIGHT SELECT THEN UNION USING VALUES WHEN WHERE
    WITH""".split()  # noqa: SIM905
)


class Token(NamedTuple):
    """A piece of SQL text and its kind; the pieces of a query join to its exact text."""

    text: str
    kind: str


def tokens(sql: str) -> list[Token]:
    """Split ``sql``, whatever it is, into tokens."""
    found = [Token(match.group(), match.lastgroup or "sign") for match in _LEXER.finditer(sql)]
    for index, (text, kind) in enumerate(found):
        if kind != "word":
            continue
        if text.upper() in _KEYWORDS:
            found[index] = Token(text, "keyword")
        elif index + 1 < len(found) and found[index + 1].text == "(":
            found[index] = Token(text, "function")
    return found


def _only_in_first(first: list[Token], second: list[Token]) -> set[int]:
    """Indexes of the words of ``first`` that an alignment with ``second`` leaves over."""
    where = [index for index, token in enumerate(first) if token.kind != "space"]
    left = [first[index].text.casefold() for index in where]
    right = [token.text.casefold() for token in second if token.kind != "space"]
    blocks = SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
    matched = {block.a + offset for block in blocks for offset in range(block.size)}
    return {index for position, index in enumerate(where) if position not in matched}


def _pieces(found: list[Token], marked: set[int]) -> Iterator[Markup]:
    inside = False
    for index, (text, kind) in enumerate(found):
        # A space belongs to the mark when what follows it is marked too.
        mark = index in marked or (inside and kind == "space" and index + 1 in marked)
        if mark != inside:
            yield Markup("<mark>") if mark else Markup("</mark>")
            inside = mark
        if kind in ("space", "sign", "word"):
            yield Markup.escape(text)
        else:
            yield Markup('<span class="sql-{}">{}</span>').format(kind, text)
    if inside:
        yield Markup("</mark>")


def highlight(sql: str, against: str | None = None) -> Markup:
    """``sql`` as safe HTML; with ``against``, the words that the other query lacks are marked."""
    found = tokens(sql)
    marked = set() if against is None else _only_in_first(found, tokens(against))
    return Markup("").join(_pieces(found, marked))
