"""One short spelling for queries that mean the same, so that a small model has less to learn.

The rules:

- names are spelled as the schema spells them, and quoted only when they must be;
- a table is called by its own name; only one that a query uses twice, a subquery beside other
  sources, and a table that an inner query would hide are called ``T1``, ``T2``, ...;
- columns are bare in a SELECT from one source, and always qualified in a SELECT from several;
  a column of an outer query is always qualified;
- output names (``AS total``) go; an ORDER BY that used one repeats the expression;
- ``INNER``, ``OUTER``, ``AS`` before a table's alias and needless parentheses go; so does ``ASC``,
  unless another column of the same clause descends before it;
- strings have single quotes, keywords are upper-case, words are one space apart, and there is no
  closing semicolon.
"""

import re

from sqlglot import exp

from hone.core.errors import RequestError
from hone.sql.schema import Schema
from hone.sql.scopes import Reference, Scope, Source, resolve
from hone.sql.sqltree import Node, parse, write

_COMPARISONS = (
    exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Is, exp.In, exp.Between, exp.Like,
    exp.Glob,
)  # fmt: skip
_ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.DPipe)
_ATOMS = (exp.Column, exp.Literal, exp.Anonymous, exp.Null, exp.Cast, exp.Exists)
_CONTAINERS = (exp.Where, exp.Having, exp.Join, exp.Select, exp.Ordered, exp.Alias, exp.Group)
# What sqlglot reads but would write in a way that SQLite does not.
_UNWRITABLE = (exp.Values, exp.HexString, exp.Lateral, exp.Pivot, exp.Command)


def canonical_sql(sql: str, schema: Schema) -> str:
    """``sql`` in its one spelling; it returns the same rows.

    Text that cannot be parsed comes back with its spaces normalised and nothing else changed.
    """
    try:
        tree = parse(sql)
    except RequestError:
        return _plain(sql)
    if tree.find(*_UNWRITABLE) is not None or _is_invalid(tree):
        return _plain(sql)
    scopes = resolve(tree, schema)
    if [scope for scope in scopes if _drop_output_names(scope)]:
        # Copied expressions hold columns of their own, which must be looked up too.
        scopes = resolve(tree, schema)
    aliases = _choose_aliases(scopes, schema)
    for scope in scopes:
        _rename(scope, aliases)
    _drop_parentheses(tree)
    return write(tree)


def _is_invalid(tree: Node) -> bool:
    # An ORDER BY before UNION: sqlglot would mend what SQLite refuses.
    lefts = [node.this for node in tree.find_all(exp.SetOperation)]
    return any(left.args.get("order") or left.args.get("limit") for left in lefts)


def _plain(sql: str) -> str:
    pieces = re.findall(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\s+|[^\s'\"]+|['\"]", sql.strip())
    text = "".join(" " if piece.isspace() else piece for piece in pieces)
    return text.rstrip("; ")


def _drop_output_names(scope: Scope) -> bool:
    """Whether an expression was copied to where its name had been used."""
    if scope.names_matter:
        return False
    copied = False
    kept: set[int] = set()
    for reference in scope.references:
        if reference.output is None:
            continue
        if _is_repeatable(reference.output.this):
            reference.column.replace(reference.output.this.copy())
            copied = True
        else:
            kept.add(id(reference.output))
    for item in list(scope.select.expressions):
        if isinstance(item, exp.Alias) and id(item) not in kept:
            item.replace(item.this)
    return copied


def _is_repeatable(expression: Node) -> bool:
    # A bare number in ORDER BY would be a position; a subquery would be long.
    return (
        not isinstance(expression, (exp.Literal, exp.Neg))
        and expression.find(exp.Query, exp.Window) is None
    )


def _choose_aliases(scopes: list[Scope], schema: Schema) -> dict[int, str]:
    """New names by ``id`` of source; a source that is not there keeps its table's name."""
    needed: set[int] = set()
    for scope in scopes:
        names = [(source.table or "").lower() for source in scope.sources]
        for source, name in zip(scope.sources, names, strict=True):
            crowded = len(scope.sources) > 1
            if (source.table is None and crowded) or (name and names.count(name) > 1):
                needed.add(id(source))
        for reference in scope.references:
            if _is_hidden(reference):
                needed.add(id(reference.source))
    taken = {table.name.lower() for table in schema.tables}
    taken.update((source.table or "").lower() for scope in scopes for source in scope.sources)
    aliases: dict[int, str] = {}
    number = 0
    for scope in scopes:
        for source in scope.sources:
            if id(source) in needed:
                number += 1
                while f"t{number}" in taken:
                    number += 1
                aliases[id(source)] = f"T{number}"
    return aliases


def _is_hidden(reference: Reference) -> bool:
    """Whether a table between an outer column's use and its own SELECT has the same name."""
    source = reference.source
    if source is None or source.scope is reference.scope:
        return False
    for scope in reference.scope.chain():
        if scope is source.scope:
            # A subquery has no name of its own by which an inner query could call it.
            return source.table is None
        if any(
            (other.table or "").lower() == (source.table or "").lower() for other in scope.sources
        ):
            return True
    return False


def _rename(scope: Scope, aliases: dict[int, str]) -> None:
    for entry in scope.sources:
        _rename_source(entry, aliases.get(id(entry)))
    crowded = len(scope.sources) > 1
    for join in scope.select.args.get("joins") or ():
        for name in join.args.get("using") or ():
            real = [(entry.columns or {}).get(name.name.lower()) for entry in scope.sources]
            name.set("this", next((spelling for spelling in real if spelling), name.name))
    for reference in scope.references:
        column = reference.column
        source = reference.source
        if source is None:
            continue
        bare = not column.table
        is_own = source.scope is reference.scope
        if column.name != "*":
            column.set("this", exp.to_identifier(reference.name))
        merged = scope.natural or column.name.lower() in scope.merged
        if (is_own and not crowded and source.columns is not None) or (bare and is_own and merged):
            column.set("table", None)
        elif source.columns is not None or not bare:
            name = aliases.get(id(source)) or source.table or source.name
            column.set("table", exp.to_identifier(name))


def _rename_source(source: Source, alias: str | None) -> None:
    node = source.node
    if isinstance(node, exp.Table) and isinstance(node.this, exp.Identifier) and source.table:
        node.set("this", exp.to_identifier(source.table))
    elif isinstance(node, exp.Table):
        return  # a table function keeps the alias that it came with
    node.set("alias", exp.TableAlias(this=exp.to_identifier(alias)) if alias else None)


def _drop_parentheses(tree: Node) -> None:
    for node in list(tree.find_all(exp.Paren)):
        while isinstance(node.this, exp.Paren):
            node.this.replace(node.this.this)
        parent, inner = node.parent, node.this
        if _is_needless(parent, inner):
            node.replace(inner)


def _is_needless(parent: Node, inner: Node) -> bool:
    if isinstance(parent, _CONTAINERS) or (
        isinstance(parent, exp.Anonymous) and not isinstance(inner, exp.Query)
    ):
        return True
    if isinstance(inner, _ATOMS):
        return not isinstance(parent, exp.In)
    if isinstance(parent, (exp.And, exp.Or)):
        return isinstance(inner, (*_COMPARISONS, exp.And, type(parent)))
    if isinstance(parent, exp.Not):
        return isinstance(inner, _COMPARISONS)
    return isinstance(parent, _COMPARISONS) and isinstance(inner, _ARITHMETIC)
