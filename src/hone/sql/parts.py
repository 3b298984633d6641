"""A query taken apart the way Spider's evaluation does it: clauses as lists of small tuples.

The shapes follow Spider's ``process_sql.py``, and where SQL goes beyond what that script reads
(functions, CASE, EXISTS, comma joins, output names), the nearest shape is used:

- a column: ``(aggregate, name, distinct)``, aggregate "none" for a plain column;
- a value: ``(operator, column, column or None)``;
- a condition: ``(negated, operator, value, operand, second operand)``, operands kept only
  where they are subqueries, because literal values do not count.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from sqlglot import exp

from hone.core.errors import RequestError
from hone.sql.schema import Schema
from hone.sql.scopes import Reference, resolve
from hone.sql.sqltree import Node, parse, unwrap

Unit: TypeAlias = tuple[Any, ...]

_AGGREGATES = frozenset({"max", "min", "count", "sum", "avg"})
_ARITHMETIC = {exp.Add: "+", exp.Sub: "-", exp.Mul: "*", exp.Div: "/"}
_OPERATORS = {
    exp.EQ: "=", exp.GT: ">", exp.LT: "<", exp.GTE: ">=", exp.LTE: "<=", exp.NEQ: "!=",
    exp.In: "in", exp.Like: "like", exp.Is: "is", exp.Between: "between", exp.Exists: "exists",
    exp.NullSafeEQ: "is", exp.NullSafeNEQ: "is",
}  # fmt: skip
_MIRRORED = {"=": "=", "!=": "!=", ">": "<", "<": ">", ">=": "<=", "<=": ">="}
_NOTHING: Unit = ("none", None, None)


@dataclass(frozen=True, slots=True)
class Parts:
    """One SELECT and what it is combined with. Equality is the script's equality of nested SQL."""

    distinct: bool | None
    select: tuple[Unit, ...]
    tables: tuple[Any, ...]
    on: tuple[Any, ...]
    where: tuple[Any, ...] = ()
    group: tuple[Unit, ...] = ()
    having: tuple[Any, ...] = ()
    order: tuple[Any, ...] = ()
    limit: bool = False
    intersect: "Parts | None" = None
    union: "Parts | None" = None
    except_: "Parts | None" = None


def take_apart(
    sql: str,
    schema: Schema | None = None,
    same: Mapping[str, str] | None = None,
    strict: bool = False,
) -> Parts:
    """The parts of ``sql``. ``same`` maps a column ("table.column") to the one it is equal to.

    As in Spider's script, columns are replaced by their equals and DISTINCT is dropped in the main
    query and what it is combined with by UNION and the like, but not inside subqueries.

    Raises:
        RequestError: the text is not one SELECT that can be parsed, or ``strict`` and it names a
            column that its table does not have.
    """
    tree = parse(sql)
    references = {}
    for scope in resolve(tree, schema):
        references.update({id(reference.column): reference for reference in scope.references})
    unknown = next((r for r in references.values() if strict and r.is_unknown()), None)
    if unknown is not None:
        raise RequestError(f"The query names a column that is not there: {unknown.name}.")
    return _Builder(references, dict(same or {})).query(tree, top=True)


@dataclass(slots=True)
class _Builder:
    references: dict[int, Reference]
    same: dict[str, str]
    # Columns may be replaced only in tables that the outermost FROM names, as in the script.
    tables: set[str] = field(default_factory=set)
    top: bool = True

    def query(self, node: Node, top: bool) -> Parts:
        node = unwrap(node)
        if isinstance(node, exp.SetOperation):
            left = self.query(node.this, top)
            right = self.query(node.expression, top)
            # The last SELECT owns the ORDER BY that ends the text.
            right = _at_the_end(right, order=self._order(node, top), limit=_has_limit(node))
            return _combine(left, right, _set_name(node))
        return self._select(node, top)

    def _select(self, node: Node, top: bool) -> Parts:
        start = node.args.get("from_")
        joins = node.args.get("joins") or []
        sources = ([start.this] if start else []) + [join.this for join in joins]
        tables = tuple(self._table(source) for source in sources)
        if top and not self.tables:
            self.tables = {table for table in tables if isinstance(table, str)}
        self.top = top
        return Parts(
            distinct=None if top else node.args.get("distinct") is not None,
            select=tuple(self._item(item) for item in node.expressions),
            tables=tables,
            on=self._on(joins),
            where=self._clause(node, "where"),
            group=self._group(node),
            having=self._clause(node, "having"),
            order=self._order(node, top),
            limit=_has_limit(node),
        )

    def nested(self, node: Node) -> Parts:
        outer = self.top
        parts = self.query(node, top=False)
        self.top = outer
        return parts

    def _table(self, source: Node) -> Any:
        if isinstance(source, exp.Subquery):
            return self.nested(source.this)
        return source.name.lower()

    def _on(self, joins: list[Node]) -> tuple[Any, ...]:
        found: list[Any] = []
        for join in joins:
            condition = join.args.get("on")
            conditions: list[Any] = []
            if condition is not None and not isinstance(condition, exp.Boolean):
                conditions = list(self._conditions(condition))
            for column in join.args.get("using") or ():
                name = ("none", column.name.lower(), None)
                conditions.append((False, "=", ("none", name, None), None, None))
            if conditions:
                found += (["and"] if found else []) + conditions
        return tuple(found)

    def _clause(self, node: Node, key: str) -> tuple[Any, ...]:
        clause = node.args.get(key)
        return tuple(self._conditions(clause.this)) if clause is not None else ()

    def _group(self, node: Node) -> tuple[Unit, ...]:
        clause = node.args.get("group")
        return tuple(self.column(item) for item in clause.expressions) if clause else ()

    def _order(self, node: Node, top: bool) -> tuple[Any, ...]:
        clause = node.args.get("order")
        if clause is None:
            return ()
        self.top = top
        direction = "asc"
        for item in clause.expressions:
            if item.args.get("desc") is not None:
                direction = "desc" if item.args["desc"] else "asc"
        return (direction, tuple(self.value(item.this) for item in clause.expressions))

    def _item(self, node: Node) -> Unit:
        node = unwrap(node.this if isinstance(node, exp.Alias) else node)
        name = _aggregate(node)
        if name is None:
            return ("none", self.value(node))
        inner, distinct = _argument(node)
        value = self.value(inner)
        if distinct and not self.top:
            operator, first, second = value
            value = (operator, (*first[:2], True), second)
        return (name, value)

    def value(self, node: Node) -> Unit:
        """(operator, column, column or None)."""
        node = unwrap(node)
        operator = _ARITHMETIC.get(type(node))
        if operator:
            return (operator, self.column(node.this), self.column(node.expression))
        return ("none", self.column(node), None)

    def column(self, node: Node) -> Unit:
        """(aggregate, name, distinct)."""
        node = unwrap(node)
        output = self._output(node)
        if output is not None:
            return self.column(output)
        name = _aggregate(node)
        if name is not None:
            inner, distinct = _argument(node)
            return (name, self.column(inner)[1], None if self.top else distinct)
        return ("none", self._name(node), None if self.top else False)

    def _output(self, node: Node) -> Node | None:
        reference = self.references.get(id(node))
        return reference.output.this if reference is not None and reference.output else None

    def _name(self, node: Node) -> Any:
        """A column's full name, or the shape of an expression with its literals left out."""
        if isinstance(node, exp.Star) or (isinstance(node, exp.Column) and node.name == "*"):
            return "*"
        if isinstance(node, exp.Column):
            reference = self.references.get(id(node))
            source = reference.source if reference is not None else None
            table = (source.table or "") if source is not None else node.table
            name = f"{table}.{node.name}".lower() if table else node.name.lower()
            replaceable = self.top and table.lower() in self.tables
            return self.same.get(name, name) if replaceable else name
        if isinstance(node, exp.Query):
            return self.nested(node)
        if isinstance(node, (exp.Literal, exp.Null, exp.Boolean)):
            return None
        head = node.name.lower() if isinstance(node, exp.Anonymous) else type(node).__name__.lower()
        return (head, *(self.column(child) for child in node.iter_expressions()))

    def _conditions(self, node: Node) -> list[Any]:
        """Conditions with "and" and "or" between them, in the order of the text."""
        node = unwrap(node)
        if isinstance(node, (exp.And, exp.Or)):
            word = "and" if isinstance(node, exp.And) else "or"
            return [*self._conditions(node.this), word, *self._conditions(node.expression)]
        return [self._condition(node, negated=False)]

    def _condition(self, node: Node, negated: bool) -> Unit:
        node = unwrap(node)
        if isinstance(node, exp.Not):
            return self._condition(node.this, not negated)
        if isinstance(node, exp.Escape):
            node = node.this
        negated ^= isinstance(node, exp.NullSafeNEQ)
        operator = _OPERATORS.get(type(node))
        if operator is None:
            return (negated, "is", self.value(node), None, None)
        if isinstance(node, exp.Exists):
            return (negated, operator, _NOTHING, self.nested(node.this), None)
        left, operands = node.this, _operands(node)
        if operator in _MIRRORED and isinstance(unwrap(left), exp.Literal):
            left, operands, operator = operands[0], [left], _MIRRORED[operator]
        kept = [self._operand(operand) for operand in operands]
        return (negated, operator, self.value(left), *kept, *([None] * (2 - len(kept))))

    def _operand(self, node: Node) -> Any:
        node = unwrap(node)
        if isinstance(node, exp.Query):
            return self.nested(node)
        return self.value(node) if node is not None and node.find(exp.Query) else None


def _operands(node: Node) -> list[Node]:
    if isinstance(node, exp.Between):
        return [node.args["low"], node.args["high"]]
    if isinstance(node, exp.In):
        return [node.args.get("query")]
    return [node.expression]


def _aggregate(node: Node) -> str | None:
    if not isinstance(node, exp.Anonymous) or len(node.expressions) != 1:
        return None
    name = node.name.lower()
    return name if name in _AGGREGATES else None


def _argument(node: Node) -> tuple[Node, bool]:
    inner = node.expressions[0]
    if isinstance(inner, exp.Distinct):
        return unwrap(inner.expressions[0]), True
    return unwrap(inner), False


def _has_limit(node: Node) -> bool:
    return node.args.get("limit") is not None


def _set_name(node: Node) -> str:
    return {"Union": "union", "Intersect": "intersect", "Except": "except_"}[type(node).__name__]


def _tail(parts: Parts) -> str | None:
    return next((name for name in ("intersect", "union", "except_") if getattr(parts, name)), None)


def _with(parts: Parts, name: str, value: Any) -> Parts:
    changes: dict[str, Any] = {name: value}
    return replace(parts, **changes)


def _combine(left: Parts, right: Parts, name: str) -> Parts:
    # The script reads what follows UNION as one query, so a chain leans to the right.
    inner = _tail(left)
    if inner is None:
        return _with(left, name, right)
    return _with(left, inner, _combine(getattr(left, inner), right, name))


def _at_the_end(parts: Parts, order: tuple[Any, ...], limit: bool) -> Parts:
    inner = _tail(parts)
    if inner is not None:
        return _with(parts, inner, _at_the_end(getattr(parts, inner), order, limit))
    return replace(parts, order=order or parts.order, limit=limit or parts.limit)
