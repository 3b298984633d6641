"""Which table each column of a query belongs to, by SQLite's rules of scope."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlglot import exp

from hone.sql.schema import Schema
from hone.sql.sqltree import Node, unwrap

# Lower-case name to real spelling; None where the columns cannot be known.
Names = dict[str, str]

_ALWAYS_THERE = frozenset({"*", "rowid", "oid", "_rowid_"})


@dataclass(slots=True, eq=False)
class Source:
    """One entry of a FROM clause. ``table`` is the real name of a table, view or WITH query."""

    node: Node
    name: str
    table: str | None
    columns: Names | None
    scope: "Scope"


@dataclass(slots=True, eq=False)
class Reference:
    """A column as it is used. ``source`` is None when nothing in scope has it.

    ``output`` is the SELECT item that an ORDER BY or GROUP BY names instead of a column.
    """

    column: exp.Column
    scope: "Scope"
    source: Source | None
    name: str
    output: exp.Alias | None = None

    def is_unknown(self) -> bool:
        """Whether no source that it may mean has such a column (a missing table may have any)."""
        if self.output is not None or self.name.lower() in _ALWAYS_THERE:
            return False
        if self.source is not None:
            columns = self.source.columns
            return columns is not None and self.name.lower() not in columns
        sources = [source for level in self.scope.chain() for source in level.sources]
        return not self.column.table and all(source.columns is not None for source in sources)


@dataclass(slots=True, eq=False)
class Scope:
    """One SELECT. ``names_matter``: its output names are seen from outside, so aliases stay."""

    select: exp.Select
    parent: "Scope | None"
    names_matter: bool
    sources: list[Source] = field(default_factory=list)
    merged: set[str] = field(default_factory=set)
    natural: bool = False
    references: list[Reference] = field(default_factory=list)

    def chain(self) -> Iterator["Scope"]:
        """This scope and those around it, from the inside out."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent


def resolve(tree: Node, schema: Schema | None) -> list[Scope]:
    """Every SELECT of ``tree``, outer before inner, with its sources and column references.

    A double-quoted name that is no column becomes a string, as in SQLite. ``tree`` is changed in
    that respect only.
    """
    resolver = _Resolver(schema)
    resolver.query(tree, None, names_matter=False, visible={})
    return resolver.scopes


class _Resolver:
    def __init__(self, schema: Schema | None) -> None:
        self.schema = schema
        self.scopes: list[Scope] = []
        self.tables: dict[str, tuple[str, Names]] = {}
        for table in schema.tables if schema else ():
            columns = {column.name.lower(): column.name for column in table.columns}
            self.tables[table.name.lower()] = (table.name, columns)

    def query(
        self,
        node: Node,
        parent: Scope | None,
        names_matter: bool,
        visible: dict[str, tuple[str, Names | None]],
    ) -> Scope | None:
        """Resolve a query inside ``parent``; its leftmost SELECT is returned."""
        node = unwrap(node)
        clause = node.args.get("with_")
        if clause is not None:
            visible = dict(visible)
            for part in clause.expressions:
                given = part.args["alias"].columns
                names: Names | None = {c.name.lower(): c.name for c in given} or None
                # A recursive part sees itself, so its name is known before its columns are.
                visible[part.alias.lower()] = (part.alias, names)
                first = self.query(part.this, parent, not given, visible)
                visible[part.alias.lower()] = (part.alias, names or _outputs(first))
        if isinstance(node, exp.SetOperation):
            order = node.args.get("order")
            left = self.query(node.this, parent, names_matter or order is not None, visible)
            self.query(node.expression, parent, False, visible)
            for key in ("order", "limit", "offset"):
                if left is not None and node.args.get(key) is not None:
                    self._visit(node.args[key], left, visible)
            return left
        if isinstance(node, exp.Select):
            return self._select(node, parent, names_matter, visible)
        return None

    def _select(
        self,
        node: exp.Select,
        parent: Scope | None,
        names_matter: bool,
        visible: dict[str, tuple[str, Names | None]],
    ) -> Scope:
        scope = Scope(node, parent, names_matter)
        self.scopes.append(scope)
        start = node.args.get("from_")
        joins = node.args.get("joins") or []
        for item in ([start.this] if start else []) + [join.this for join in joins]:
            self._source(item, scope, visible)
        for join in joins:
            scope.natural = scope.natural or join.method == "NATURAL"
            scope.merged.update(name.name.lower() for name in join.args.get("using") or ())
        inside = {id(source.node) for source in scope.sources}
        for key, value in node.args.items():
            if key == "with_":
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, exp.Expression):
                    self._visit(child, scope, visible, inside)
        return scope

    def _source(
        self, item: Node, scope: Scope, visible: dict[str, tuple[str, Names | None]]
    ) -> None:
        if isinstance(item, exp.Subquery):
            first = self.query(item.this, scope.parent, True, visible)
            scope.sources.append(Source(item, item.alias, None, _outputs(first), scope))
            return
        name = item.name
        table: str | None = None
        columns: Names | None = None
        if isinstance(item, exp.Table) and isinstance(item.this, exp.Identifier):
            found = visible.get(name.lower()) or self.tables.get(name.lower())
            table, columns = found if found else (name, None)
        scope.sources.append(Source(item, item.alias or name, table, columns, scope))

    def _visit(
        self,
        node: Node,
        scope: Scope,
        visible: dict[str, tuple[str, Names | None]],
        skip: set[int] | None = None,
    ) -> None:
        if skip and id(node) in skip:
            return
        if isinstance(node, exp.Query):
            self.query(node, scope, False, visible)
        elif isinstance(node, exp.Column):
            self._column(node, scope)
        else:
            for child in list(node.iter_expressions()):
                self._visit(child, scope, visible, skip)

    def _column(self, node: exp.Column, scope: Scope) -> None:
        name, table = node.name, node.table
        if not table and (alias := _named_output(node, scope)) is not None:
            scope.references.append(Reference(node, scope, None, name, alias))
            return
        certain = True
        for level in scope.chain():
            for source in level.sources:
                if table and source.name.lower() != table.lower():
                    continue
                if source.columns is None:
                    certain = False
                real = (source.columns or {}).get(name.lower())
                if real or table:
                    reference = Reference(node, scope, source, real or name)
                    scope.references.append(reference)
                    return
        alias = _output(name, scope) if not table else None
        if alias is None and not table and certain and node.this.args.get("quoted"):
            node.replace(exp.Literal.string(name))
            return
        scope.references.append(Reference(node, scope, None, name, alias))


def _named_output(node: exp.Column, scope: Scope) -> exp.Alias | None:
    """The output that ``node`` names when it is a whole ORDER BY term, where outputs come first."""
    return _output(node.name, scope) if isinstance(node.parent, exp.Ordered) else None


def _output(name: str, scope: Scope) -> exp.Alias | None:
    for item in scope.select.expressions:
        if isinstance(item, exp.Alias) and item.alias.lower() == name.lower():
            return item
    return None


def _outputs(scope: Scope | None) -> Names | None:
    """The names of a subquery's columns; None if one has no name that SQLite promises."""
    if scope is None:
        return None
    names: Names = {}
    real = {id(reference.column): reference.name for reference in scope.references}
    for item in scope.select.expressions:
        if isinstance(item, exp.Star) or (isinstance(item, exp.Column) and item.name == "*"):
            wanted = item.table.lower() if isinstance(item, exp.Column) else None
            for source in scope.sources:
                if wanted is None or source.name.lower() == wanted:
                    if source.columns is None:
                        return None
                    names.update(source.columns)
        elif isinstance(item, (exp.Alias, exp.Column)):
            name = real.get(id(item), item.alias_or_name)
            names[name.lower()] = name
        else:
            return None
    return names
