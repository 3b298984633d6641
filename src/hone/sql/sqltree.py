"""SQL text to a syntax tree and back, for SQLite's dialect, through sqlglot.

sqlglot is built to translate between dialects, so it renames functions and types. Here a query must
come back meaning the same to SQLite, so every function stays what it was called.
"""

import re
from typing import Any, ClassVar, TypeAlias

import sqlglot
from sqlglot import exp
from sqlglot.dialects.sqlite import SQLite

from hone.core.errors import RequestError
from hone.sql.identifiers import quote_identifier

# A node of the tree; sqlglot's own base class changed its name between versions.
Node: TypeAlias = Any

_Parser: Any = SQLite.Parser
_Generator: Any = SQLite.Generator
_NEGATED = {exp.In: "IN", exp.Like: "LIKE", exp.Glob: "GLOB", exp.Between: "BETWEEN", exp.Is: "IS"}
_MISREAD_NUMBER = re.compile(r"\b0[xX]")


class HoneSQLite(SQLite):
    """SQLite as SQLite reads it: no function or type is translated."""

    class Parser(_Parser):  # noqa: D106
        FUNCTIONS: ClassVar[dict] = {}
        FUNCTION_PARSERS: ClassVar[dict] = {"CAST": _Parser.FUNCTION_PARSERS["CAST"]}
        NO_PAREN_FUNCTION_PARSERS: ClassVar[dict] = {
            "CASE": _Parser.NO_PAREN_FUNCTION_PARSERS["CASE"]
        }

    class Generator(_Generator):  # noqa: D106
        TYPE_MAPPING: ClassVar[dict] = {
            **_Generator.TYPE_MAPPING,
            exp.DType.DECIMAL: "NUMERIC",
        }

        def identifier_sql(self, expression: exp.Identifier) -> str:
            """Quoted only when it must be."""
            return quote_identifier(expression.name)

        def neq_sql(self, expression: exp.NEQ) -> str:
            """``!=``, the shorter habit of people and data sets."""
            return self.binary(expression, "!=")

        def not_sql(self, expression: exp.Not) -> str:
            """``x NOT IN (...)`` and ``x IS NOT NULL`` rather than ``NOT x IN (...)``."""
            inner = expression.this
            if isinstance(inner, exp.Escape) and isinstance(inner.this, exp.Like):
                like = self.not_sql(exp.Not(this=inner.this.copy()))
                return f"{like} ESCAPE {self.sql(inner, 'expression')}"
            word = _NEGATED.get(type(inner))
            if word is None:
                return f"NOT {self.sql(inner)}"
            written = self.sql(inner)
            left = self.sql(inner, "this")
            word_not = "IS NOT" if word == "IS" else f"NOT {word}"
            rest = written[len(left) :].lstrip()
            return f"{left} {word_not}{rest[len(word) :]}"

        def join_sql(self, expression: exp.Join, join_op: str | None = None) -> str:
            """``JOIN`` and ``LEFT JOIN`` without INNER and OUTER; a comma where there is no ON."""
            table = self.sql(expression, "this")
            words = [expression.method, expression.side]
            condition = expression.args.get("on")
            using = expression.args.get("using")
            if not any(words) and not using and _always_true(condition):
                return f", {table}"
            text = " ".join([word for word in words if word] + ["JOIN", table])
            if using:
                return f" {text} USING ({', '.join(self.sql(column) for column in using)})"
            return f" {text} ON {self.sql(condition)}" if condition else f" {text}"

        def ordered_sql(self, expression: exp.Ordered) -> str:
            """Ascending goes without saying, but not after a term that descends.

            Spider's exact match takes the last direction written as the one of the whole clause.
            """
            before = expression.parent.expressions if expression.parent else []
            mixed = any(item.args.get("desc") for item in before[: expression.index or 0])
            if expression.args.get("desc") is False and not mixed:
                expression.set("desc", None)
            return super().ordered_sql(expression)

        def cast_sql(self, expression: exp.Cast, safe_prefix: str | None = None) -> str:
            """A cast stays a cast: to DATE, it takes the leading number."""
            return f"CAST({self.sql(expression, 'this')} AS {self.sql(expression, 'to')})"

        def table_sql(self, expression: exp.Table, sep: str = " AS ") -> str:
            """``city T1``: SQLite needs no AS before a table's alias."""
            return super().table_sql(expression, sep=" ")

        def subquery_sql(self, expression: exp.Subquery, sep: str = " AS ") -> str:
            """``(SELECT ...) T1``, likewise."""
            return super().subquery_sql(expression, sep=" ")

        def exists_sql(self, expression: exp.Exists) -> str:
            """With the space that people write."""
            return f"EXISTS {self.wrap(expression.this)}"


_DIALECT = HoneSQLite()


def parse(sql: str) -> Node:
    """The syntax tree of one SELECT, possibly with set operations and WITH.

    Raises:
        RequestError: sqlglot cannot read it, it holds several statements, or it is no SELECT.
    """
    if _MISREAD_NUMBER.search(sql):
        raise RequestError("The query holds a hexadecimal number, which is not supported here.")
    try:
        trees = [tree for tree in _DIALECT.parse(sql) if tree is not None]
    except (sqlglot.errors.SqlglotError, RecursionError) as error:
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise RequestError(f"The query cannot be parsed: {reason}.") from error
    trees = [tree for tree in trees if not isinstance(tree, exp.Semicolon)]
    if len(trees) != 1 or not isinstance(trees[0], (exp.Select, exp.SetOperation)):
        raise RequestError("The query is not one SELECT.")
    for node in list(trees[0].find_all(exp.Like)):
        if node.args.get("negate"):
            _move_negation_out(node)
    return trees[0]


def write(tree: Node) -> str:
    """The text of ``tree``: one space between words, upper-case keywords, no comments."""
    return _DIALECT.generate(tree, comments=False, unsupported_level=sqlglot.ErrorLevel.IGNORE)


def unwrap(node: Node) -> Node:
    """``node`` without the parentheses around it."""
    while isinstance(node, exp.Paren) or (
        isinstance(node, exp.Subquery) and not node.alias and isinstance(node.this, exp.Query)
    ):
        node = node.this
    return node


def _move_negation_out(like: Node) -> None:
    # Of all negated operators sqlglot keeps only this one as a mark: NOT IN is a Not around an In.
    like.set("negate", None)
    inner = like.parent if isinstance(like.parent, exp.Escape) else like
    outer = exp.Not()
    inner.replace(outer)
    outer.set("this", inner)


def _always_true(condition: Node) -> bool:
    return condition is None or (isinstance(condition, exp.Boolean) and condition.this is True)
