"""Comments inside a CREATE statement, given to the table or the column that they describe.

SQLite keeps the statement as it was typed, so ``total INTEGER, -- 합계`` is still there.
"""

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""
    (?P<line>--[^\n]*) | (?P<block>/\*.*?\*/) |
    (?P<quoted>"(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\] | '(?:[^']|'')*') |
    (?P<newline>\n) | (?P<space>[^\S\n]+) |
    (?P<word>[^\W\d][\w$]*) | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_CONSTRAINTS = frozenset({"constraint", "primary", "unique", "check", "foreign"})


@dataclass(slots=True)
class Comments:
    """``table`` and ``columns[name.lower()]`` hold the comment's text; absent means none."""

    table: str = ""
    columns: dict[str, str] = field(default_factory=dict)


def read_comments(statement: str) -> Comments:
    """The comments of a ``CREATE TABLE`` statement.

    A comment on a column's own line, before or after its comma, belongs to that column. A comment
    alone on its line belongs to the column below. A comment right after the opening parenthesis, or
    before it, describes the table.
    """
    found = Comments()
    depth, column, waiting = 0, "", ""
    starts_column, line_is_blank = False, True
    for token in _TOKEN.finditer(statement):
        kind, text = token.lastgroup, token.group()
        if kind in ("line", "block"):
            comment = _clean(text)
            if depth == 0 or (
                depth == 1 and not found.columns and not column and not line_is_blank
            ):
                found.table = found.table or comment
            elif line_is_blank:
                waiting = comment
            elif column and comment:
                found.columns[column] = comment
        elif kind == "newline":
            line_is_blank = True
        elif kind != "space":
            line_is_blank = False
            if text == "(":
                depth += 1
                starts_column = starts_column or depth == 1
            elif text == ")":
                depth -= 1
            elif text == "," and depth == 1:
                starts_column = True
            elif depth == 1 and starts_column:
                column = _column_name(kind, text)
                starts_column = False
                if waiting and column:
                    found.columns[column] = waiting
                waiting = ""
    return found


def _column_name(kind: str | None, text: str) -> str:
    if kind == "quoted":
        return re.sub(r'""', '"', text[1:-1]).lower()
    return "" if text.lower() in _CONSTRAINTS else text.lower()


def _clean(comment: str) -> str:
    text = comment[2:-2] if comment.startswith("/*") else comment[2:]
    return " ".join(text.strip("-* \t\n").split())
