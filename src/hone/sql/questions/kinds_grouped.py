"""Kinds of questions about groups of rows, of one table or of a table and its owner."""

from collections.abc import Callable

from hone.sql.questions.fields import Edge, Entity, Field
from hone.sql.questions.intents import (
    COMPARISONS,
    Columns,
    Extreme,
    FieldOf,
    Intent,
    Noun,
    Operator,
    Part,
    Period,
    Than,
    literal,
    select,
)
from hone.sql.questions.kinds_plain import aggregates, without_field
from hone.sql.questions.picking import Picker, Skip

_MAYBE = (60, 40)
_LIMITS: tuple[Operator, ...] = ("gt", "ge", "lt", "le")
_FLOORS: tuple[Operator, ...] = ("gt", "ge", "ge")


def group_count(pick: Picker) -> Intent:
    """The number of rows per group."""
    noun, group = _grouped(pick)
    sql = select([group.sql(False), "COUNT(*)"], noun, group=group.sql(False))
    return Intent("group_count", sql, {"group": FieldOf(group), "np": noun}, (noun,), at_least=2)


def group_aggregate(pick: Picker) -> Intent:
    """An aggregate per group."""
    noun, group = _grouped(pick, measured=True)
    agg = aggregates(pick, noun.entity, 1)
    sql = select([group.sql(False), *agg.sql(False)], noun, group=group.sql(False))
    parts: dict[str, Part] = {"group": FieldOf(group), "np": noun, "agg": agg}
    return Intent("group_aggregate", sql, parts, (noun,), at_least=2)


def having_count(pick: Picker) -> Intent:
    """The groups that have more (fewer) than some number of rows."""
    noun, group = _grouped(pick)
    name = group.sql(False)
    values = _second_column(pick, select([name, "COUNT(*)"], noun, group=name))
    operator, value = pick.random.choice(_LIMITS), pick.threshold(values)
    if value == 1:
        raise Skip
    having = f"COUNT(*) {COMPARISONS[operator]} {literal(value)}"
    sql = select([name], noun, group=name, having=having)
    than = Than(operator, value, noun.entity)
    every = select([name], noun, group=name)
    parts: dict[str, Part] = {"group": FieldOf(group), "np": noun, "than": than}
    return Intent("having_count", sql, parts, (noun,), unlike=(every,))


def having_aggregate(pick: Picker) -> Intent:
    """The groups whose aggregate is over (under) some number."""
    noun, group = _grouped(pick, measured=True)
    agg = aggregates(pick, noun.entity, 1)
    if agg.items[0][1].role != "number":
        raise Skip
    name, measure = group.sql(False), agg.sql(False)[0]
    values = _second_column(pick, select([name, measure], noun, group=name))
    operator, value = pick.random.choice(_LIMITS), pick.threshold(values)
    if isinstance(value, float):
        value = int(value) if abs(value) >= 20 else round(value, 1)
    having = f"{measure} {COMPARISONS[operator]} {literal(value)}"
    sql = select([name], noun, group=name, having=having)
    every = select([name], noun, group=name)
    parts: dict[str, Part] = {
        "group": FieldOf(group), "np": noun, "agg": agg, "than": Than(operator, value),
    }  # fmt: skip
    return Intent("having_aggregate", sql, parts, (noun,), unlike=(every,))


def group_top(pick: Picker) -> Intent:
    """The group with the most (fewest) rows."""
    noun, group = _grouped(pick)
    high, name = pick.random.random() < 0.7, group.sql(False)
    order = f"COUNT(*){' DESC' if high else ''}"
    sql = select([name], noun, group=name, order=order, limit=1)
    ranked = select([name, "COUNT(*)"], noun, group=name, order=order, limit=2)
    parts: dict[str, Part] = {"group": FieldOf(group), "np": noun, "most": Extreme(high)}
    return Intent("group_top", sql, parts, (noun,), 1, ranked)


def group_top_aggregate(pick: Picker) -> Intent:
    """The group with the highest (lowest) aggregate."""
    noun, group = _grouped(pick, measured=True)
    agg = aggregates(pick, noun.entity, 1)
    if agg.items[0][0] not in ("AVG", "SUM"):
        raise Skip
    high, name, measure = pick.random.random() < 0.6, group.sql(False), agg.sql(False)[0]
    order = f"{measure}{' DESC' if high else ''}"
    sql = select([name], noun, group=name, order=order, limit=1)
    ranked = select([name, measure], noun, group=name, order=order, limit=2)
    parts: dict[str, Part] = {
        "group": FieldOf(group), "np": noun, "agg": agg, "sup": Extreme(high, agg.items[0][1]),
    }  # fmt: skip
    return Intent("group_top_aggregate", sql, parts, (noun,), 1, ranked)


def date_count(pick: Picker) -> Intent:
    """The number of rows per year or month."""
    entity = pick.entity("date")
    date = pick.field(entity, "date")
    if date.column.null_fraction > 0:
        raise Skip
    noun = without_field(pick.noun(entity, (35, 65)), date)
    period = Period("year" if pick.random.random() < 0.55 else "month")
    part = period.sql(date.sql(False))
    sql = select([part, "COUNT(*)"], noun, group=part)
    parts: dict[str, Part] = {"date": FieldOf(date), "period": period, "np": noun}
    return Intent("date_count", sql, parts, (noun,), at_least=2)


def join_group_count(pick: Picker) -> Intent:
    """The number of rows per group of their owners."""
    edge, group, noun = _owned_groups(pick)
    name = group.sql(True)
    sql = select([name, "COUNT(*)"], noun, group=name, joins=(edge,))
    parts: dict[str, Part] = {"group": FieldOf(group, edge.parent), "child": noun}
    return Intent("join_group_count", sql, parts, (noun,), at_least=2)


def join_group_aggregate(pick: Picker) -> Intent:
    """An aggregate per group of the rows' owners."""
    edge, group, noun = _owned_groups(pick, measured=True)
    agg = aggregates(pick, noun.entity, 1)
    name = group.sql(True)
    sql = select([name, *agg.sql(True)], noun, group=name, joins=(edge,))
    parts: dict[str, Part] = {"group": FieldOf(group, edge.parent), "child": noun, "agg": agg}
    return Intent("join_group_aggregate", sql, parts, (noun,), at_least=2)


def join_having(pick: Picker) -> Intent:
    """Owners with more (fewer) than some number of rows."""
    edge, child, parent, cols = _owners(pick)
    key = edge.target.sql(True)
    values = _second_column(pick, select([key, "COUNT(*)"], child, group=key, joins=(edge,)))
    operator, value = pick.random.choice(_FLOORS), pick.threshold(values)
    if value == 1:
        raise Skip  # "at least one" is another kind, and "more than 1" is said "at least 2"
    having = f"COUNT(*) {COMPARISONS[operator]} {literal(value)}"
    items = [field.sql(True) for field in cols.fields]
    sql = select(items, child, group=key, having=having, joins=(edge,))
    every = select(items, child, group=key, joins=(edge,))
    parts: dict[str, Part] = {
        "cols": cols, "parent": parent, "child": child,
        "than": Than(operator, value, edge.child),
    }  # fmt: skip
    return Intent("join_having", sql, parts, (child,), unlike=(every,))


def join_most(pick: Picker) -> Intent:
    """The owner with the most rows."""
    edge, child, parent, cols = _owners(pick)
    key, order = edge.target.sql(True), "COUNT(*) DESC"
    items = [field.sql(True) for field in cols.fields]
    sql = select(items, child, group=key, order=order, limit=1, joins=(edge,))
    ranked = select([key, "COUNT(*)"], child, group=key, order=order, limit=2, joins=(edge,))
    parts: dict[str, Part] = {
        "cols": cols, "parent": parent, "child": child, "most": Extreme(True),
    }  # fmt: skip
    return Intent("join_most", sql, parts, (child,), 1, ranked)


def _grouped(pick: Picker, measured: bool = False) -> tuple[Noun, Field]:
    def measurable(entity: Entity) -> bool:
        return not measured or bool(entity.having("number"))

    entity = pick.entity("category", where=measurable)
    group = _group_field(pick, entity)
    return without_field(pick.noun(entity, _MAYBE), group), group


def _group_field(pick: Picker, entity: Entity) -> Field:
    fields = [
        field
        for field in entity.having("category")
        if (field.column.distinct or 0) > 1 and field.column.null_fraction == 0
    ]
    return pick.one(fields)


def _owned_groups(pick: Picker, measured: bool = False) -> tuple[Edge, Field, Noun]:
    edge = pick.edge(
        lambda edge: (
            bool(edge.parent.having("category", "name"))
            and (not measured or bool(edge.child.having("number")))
        )
    )
    unique = [field for field in edge.parent.having("name") if _is_unique(field)]
    groups = [field for field in edge.parent.having("category") if (field.column.distinct or 0) > 1]
    group = pick.one(groups * 2 + unique)
    if group.column.null_fraction > 0:
        raise Skip
    return edge, group, pick.noun(edge.child, (65, 35))


def _is_unique(field: Field) -> bool:
    """Whether grouping by a name is grouping by row (and there are not too many to list)."""
    rows = field.table.rows or 0
    return field.column.distinct == rows and rows <= 500


def _owners(pick: Picker) -> tuple[Edge, Noun, Noun, Columns]:
    edge = pick.edge(lambda edge: edge.parent.table.primary_key == (edge.target.column.name,))
    child = pick.noun(edge.child, (70, 30))
    cols = pick.columns(edge.parent, most=2)
    return edge, child, Noun(edge.parent), cols


def _second_column(pick: Picker, sql: str) -> list[int | float | str]:
    rows = pick.probe.remembered(sql)
    return [row[1] for row in rows or () if isinstance(row[1], (int, float))]


KINDS: dict[str, Callable[[Picker], Intent]] = {
    "group_count": group_count,
    "group_aggregate": group_aggregate,
    "having_count": having_count,
    "having_aggregate": having_aggregate,
    "group_top": group_top,
    "group_top_aggregate": group_top_aggregate,
    "date_count": date_count,
    "join_group_count": join_group_count,
    "join_group_aggregate": join_group_aggregate,
    "join_having": join_having,
    "join_most": join_most,
}
