"""Kinds of questions that join tables, nest queries or combine sets."""

from collections.abc import Callable, Sequence

from hone.sql.questions.fields import Edge, Entity, Field
from hone.sql.questions.intents import (
    Columns,
    Extreme,
    FieldOf,
    Intent,
    Named,
    Noun,
    Part,
    literal,
    select,
)
from hone.sql.questions.kinds_plain import aggregates, known_fields, repeated_field
from hone.sql.questions.picking import Picker, Skip, spread


def join_filter(pick: Picker) -> Intent:
    """Columns of rows whose owner meets a condition."""
    noun = pick.owned(pick.edge())
    cols = pick.columns(noun.entity, without=known_fields(noun))
    sql = select([field.sql(True) for field in cols.fields], noun)
    return Intent("join_filter", sql, {"cols": cols, **_family(noun)}, (noun,))


def join_columns(pick: Picker) -> Intent:
    """Columns of rows beside columns of their owner."""
    edge = pick.edge()
    noun = pick.noun(edge.child, (0, 80, 20))
    cols = pick.columns(edge.child, 2, known_fields(noun))
    other = pick.columns(edge.parent, 2, edge.parent.having("key"))
    other = Columns(other.fields, edge.parent)
    fields = cols.fields + other.fields
    sql = select([field.sql(True) for field in fields], noun, joins=(edge,))
    return Intent("join_columns", sql, {"cols": cols, "other": other, "child": noun}, (noun,))


def join_count(pick: Picker) -> Intent:
    """The number of rows whose owner meets a condition."""
    noun = pick.owned(pick.edge())
    return Intent("join_count", select(["COUNT(*)"], noun), _family(noun), (noun,))


def join_aggregate(pick: Picker) -> Intent:
    """An aggregate of rows whose owner meets a condition."""
    noun = pick.owned(pick.edge(lambda edge: bool(edge.child.having("number"))))
    agg = aggregates(pick, noun.entity, 1)
    return Intent(
        "join_aggregate", select(agg.sql(True), noun), {"agg": agg, **_family(noun)}, (noun,)
    )


def join_top(pick: Picker) -> Intent:
    """The few rows of some owners with the highest (lowest) number or latest (earliest) date."""
    noun = pick.owned(pick.edge(lambda edge: bool(edge.child.having("number", "date"))), (1,))
    key, high = pick.field(noun.entity, "number", "date"), pick.random.random() < 0.65
    limit = pick.random.choice((2, 3, 3, 4, 5, 5, 10))
    cols = pick.columns(noun.entity, 2)
    order = f"{key.sql(True)}{' DESC' if high else ''}"
    items = [field.sql(True) for field in cols.fields]
    sql = select(items, noun, order=order, limit=limit)
    ranked = select([*items, key.sql(True)], noun, order=order, limit=limit + 1)
    extreme = Extreme(high, key)
    parts: dict[str, Part] = {"cols": cols, "key": FieldOf(key), "sup": extreme, "top": extreme}
    parts |= {"k": limit, **_family(noun)}
    return Intent("join_top", sql, parts, (noun,), limit, ranked)


def above_average(pick: Picker) -> Intent:
    """Columns of rows whose number is above (below) the average of all rows."""
    noun, parts, where = _against_average(pick)
    cols = pick.columns(noun.entity)
    sql = f"{select([field.sql(False) for field in cols.fields], noun)} WHERE {where}"
    return Intent("above_average", sql, {**parts, "cols": cols})


def count_above_average(pick: Picker) -> Intent:
    """The number of rows whose number is above (below) the average of all rows."""
    noun, parts, where = _against_average(pick)
    return Intent("count_above_average", f"{select(['COUNT(*)'], noun)} WHERE {where}", parts)


def extreme(pick: Picker) -> Intent:
    """Columns of all rows whose number equals the highest (lowest) of all rows."""
    entity = pick.entity("number")
    key, high = pick.field(entity, "number"), pick.random.random() < 0.5
    cols, noun = pick.columns(entity, without=(key,)), Noun(entity)
    name, function = key.sql(False), "MAX" if high else "MIN"
    inner = f"(SELECT {function}({name}) FROM {entity.sql})"
    sql = f"{select([field.sql(False) for field in cols.fields], noun)} WHERE {name} = {inner}"
    parts: dict[str, Part] = {
        "cols": cols, "np": noun, "key": FieldOf(key), "bound": Extreme(high, key),
    }  # fmt: skip
    return Intent("extreme", sql, parts, unlike=_everything(entity))


def has_any(pick: Picker) -> Intent:
    """Columns of rows that own at least one row of another table."""
    edge = _owner_edge(pick)
    cols, parent = pick.columns(edge.parent), Noun(edge.parent)
    head = select([field.sql(False) for field in cols.fields], parent)
    parts: dict[str, Part] = {"cols": cols, "parent": parent, "child": Noun(edge.child)}
    sql = f"{head} WHERE EXISTS {_correlated(edge)}"
    return Intent("has_any", sql, parts, unlike=_everything(edge.parent))


def has_where(pick: Picker) -> Intent:
    """Columns of rows that own a row of another table that meets conditions."""
    edge = _owner_edge(pick)
    child = pick.noun(edge.child, (0, 85, 15))
    cols, parent = pick.columns(edge.parent), Noun(edge.parent)
    head = select([field.sql(False) for field in cols.fields], parent)
    inner = select([edge.key.sql(False)], child)
    sql = f"{head} WHERE {edge.target.sql(False)} IN ({inner})"
    parts: dict[str, Part] = {"cols": cols, "parent": parent, "child": child}
    return Intent("has_where", sql, parts, (child,), unlike=_everything(edge.parent))


def has_none(pick: Picker) -> Intent:
    """Columns of rows that own no row of another table."""
    edge = _owner_edge(pick)
    cols, parent = pick.columns(edge.parent), Noun(edge.parent)
    head = select([field.sql(False) for field in cols.fields], parent)
    sql = f"{head} WHERE NOT EXISTS {_correlated(edge)}"
    parts: dict[str, Part] = {"cols": cols, "parent": parent, "child": Noun(edge.child)}
    return Intent("has_none", sql, parts, unlike=_everything(edge.parent))


def none_where(pick: Picker) -> Intent:
    """Columns of rows that own no row of another table that meets conditions."""
    edge, child = _excluded(pick)
    cols, parent = pick.columns(edge.parent), Noun(edge.parent)
    head = select([field.sql(False) for field in cols.fields], parent)
    inner = select([edge.key.sql(False)], child)
    sql = f"{head} WHERE {edge.target.sql(False)} NOT IN ({inner})"
    parts: dict[str, Part] = {"cols": cols, "parent": parent, "child": child}
    return Intent("none_where", sql, parts, (child,), unlike=_everything(edge.parent))


def count_none(pick: Picker) -> Intent:
    """The number of rows that own no row of another table (that meets a condition)."""
    edge, child = _excluded(pick, (25, 75))
    parent = Noun(edge.parent)
    head = select(["COUNT(*)"], parent)
    if child.conditions:
        inner = select([edge.key.sql(False)], child)
        sql = f"{head} WHERE {edge.target.sql(False)} NOT IN ({inner})"
    else:
        sql = f"{head} WHERE NOT EXISTS {_correlated(edge)}"
    return Intent("count_none", sql, {"parent": parent, "child": child}, (child,))


def same_as(pick: Picker) -> Intent:
    """Columns of rows that share a value with a named row."""
    entity, name, value = _named(pick, "category")
    field = pick.field(entity, "category")
    inner = (
        f"(SELECT {field.sql(False)} FROM {entity.sql} WHERE {name.sql(False)} = {literal(value)})"
    )
    cols, noun = pick.columns(entity, 2, (field,)), Noun(entity)
    head = select([column.sql(False) for column in cols.fields], noun)
    parts: dict[str, Part] = {
        "cols": cols, "np": noun, "field": FieldOf(field), "name": Named(entity, value),
    }  # fmt: skip
    return Intent("same_as", f"{head} WHERE {field.sql(False)} = {inner}", parts)


def compare_to(pick: Picker) -> Intent:
    """Columns of rows whose number is above (below) that of a named row."""
    entity, name, value = _named(pick, "number")
    key, high = pick.field(entity, "number"), pick.random.random() < 0.5
    inner = (
        f"(SELECT {key.sql(False)} FROM {entity.sql} WHERE {name.sql(False)} = {literal(value)})"
    )
    cols, noun = pick.columns(entity, 2), Noun(entity)
    head = select([column.sql(False) for column in cols.fields], noun)
    parts: dict[str, Part] = {
        "cols": cols, "np": noun, "key": FieldOf(key), "side": Extreme(high, key),
        "name": Named(entity, value),
    }  # fmt: skip
    sql = f"{head} WHERE {key.sql(False)} {'>' if high else '<'} {inner}"
    return Intent("compare_to", sql, parts, unlike=_everything(entity))


def union(pick: Picker) -> Intent:
    """The values of a column among some rows or others."""
    return _combined(pick, "union", "UNION")


def intersect(pick: Picker) -> Intent:
    """The values of a column among some rows and others too."""
    return _combined(pick, "intersect", "INTERSECT")


def without(pick: Picker) -> Intent:
    """The values of a column among some rows and not others."""
    return _combined(pick, "except", "EXCEPT")


def _combined(pick: Picker, kind: str, word: str) -> Intent:
    fields = pick.domain.twins
    same_table = spread(pick.random, {True: 60, False: 40 if fields else 0})
    if same_table:
        entity = pick.entity("category", "text", "name")
        field = twin = repeated_field(pick, entity)
        left, right = pick.noun(entity, (0, 1)), pick.noun(entity, (0, 1))
        if left.conditions[0].field is field or right.conditions[0].field is field:
            raise Skip
    else:
        (left_of, field), (right_of, twin) = pick.one(fields)
        left, right = pick.noun(left_of, (45, 55)), pick.noun(right_of, (45, 55))
        used = [c.field for c in (*left.conditions, *right.conditions)]
        if field in used or twin in used:
            raise Skip
    one, other = select([field.sql(False)], left), select([twin.sql(False)], right)
    if field.column.null_fraction > 0 or twin.column.null_fraction > 0 or one == other:
        raise Skip
    parts: dict[str, Part] = {"field": FieldOf(field), "left": left, "right": right}
    # A set has no repeats, so the answer is compared with sets: it must differ from either side.
    alone = [select([field.sql(False)], left, distinct=True)]
    if kind != "except":
        alone.append(select([twin.sql(False)], right, distinct=True))
    return Intent(kind, f"{one} {word} {other}", parts, (left, right), unlike=tuple(alone))


def _family(noun: Noun) -> dict[str, Part]:
    """The rows and their owners as two parts of a frame."""
    assert noun.owner is not None
    return {"child": Noun(noun.entity, noun.conditions, noun.joiner), "parent": noun.owner}


def _against_average(pick: Picker) -> tuple[Noun, dict[str, Part], str]:
    entity = pick.entity("number")
    key, high = pick.field(entity, "number"), pick.random.random() < 0.5
    name = key.sql(False)
    where = f"{name} {'>' if high else '<'} (SELECT AVG({name}) FROM {entity.sql})"
    parts: dict[str, Part] = {"np": Noun(entity), "key": FieldOf(key), "side": Extreme(high, key)}
    return Noun(entity), parts, where


def _owner_edge(pick: Picker) -> Edge:
    return pick.edge(lambda edge: edge.parent.table.primary_key == (edge.target.column.name,))


def _excluded(pick: Picker, weights: Sequence[int] = (0, 1)) -> tuple[Edge, Noun]:
    """A link and conditions on its child for NOT IN, which one NULL would make empty."""
    edge = pick.edge(
        lambda edge: (
            edge.parent.table.primary_key == (edge.target.column.name,)
            and edge.key.column.null_fraction == 0
        )
    )
    return edge, pick.noun(edge.child, weights)


def _correlated(edge: Edge) -> str:
    on = f"{edge.key.sql(False)} = {edge.target.sql(True)}"
    return f"(SELECT * FROM {edge.child.sql} WHERE {on})"


def _named(pick: Picker, role: str) -> tuple[Entity, Field, str]:
    """A table and the name of one of its rows that no other row has."""
    entity = pick.entity("name", where=lambda entity: bool(entity.having(role)))  # type: ignore[arg-type]
    name = entity.name
    rows = min(entity.table.rows or 0, 2000)
    if name is None or name.column.distinct != rows:
        raise Skip
    return entity, name, str(pick.one(name.column.samples))


def _everything(entity: Entity) -> tuple[str, ...]:
    return (f"SELECT 1 FROM {entity.sql}",)


KINDS: dict[str, Callable[[Picker], Intent]] = {
    "join_filter": join_filter,
    "join_columns": join_columns,
    "join_count": join_count,
    "join_aggregate": join_aggregate,
    "join_top": join_top,
    "above_average": above_average,
    "count_above_average": count_above_average,
    "extreme": extreme,
    "has_any": has_any,
    "has_where": has_where,
    "has_none": has_none,
    "none_where": none_where,
    "count_none": count_none,
    "same_as": same_as,
    "compare_to": compare_to,
    "union": union,
    "intersect": intersect,
    "except": without,
}
