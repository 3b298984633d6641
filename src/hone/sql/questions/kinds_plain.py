"""Kinds of questions about one table."""

from collections.abc import Callable

from hone.sql.questions.fields import Entity, Field
from hone.sql.questions.intents import (
    Aggregates,
    Extreme,
    FieldOf,
    Function,
    Intent,
    Noun,
    Part,
    select,
)
from hone.sql.questions.picking import Picker, Skip, spread

_ONE_OR_TWO = (0, 72, 28)
_MAYBE = (55, 35, 10)


def all_rows(pick: Picker) -> Intent:
    """Columns of every row."""
    noun = Noun(pick.entity())
    cols = pick.columns(noun.entity)
    sql = select([field.sql(False) for field in cols.fields], noun)
    return Intent("columns", sql, {"cols": cols, "np": noun})


def filtered(pick: Picker) -> Intent:
    """Columns of the rows that meet conditions."""
    noun = pick.noun(pick.entity(), _ONE_OR_TWO)
    cols = pick.columns(noun.entity, without=known_fields(noun))
    sql = select([field.sql(False) for field in cols.fields], noun)
    return Intent("filter", sql, {"cols": cols, "np": noun}, (noun,))


def whole_rows(pick: Picker) -> Intent:
    """All columns of the rows that meet conditions."""
    noun = pick.noun(pick.entity(), _ONE_OR_TWO)
    return Intent("rows", select(["*"], noun), {"np": noun}, (noun,))


def count(pick: Picker) -> Intent:
    """The number of rows."""
    noun = pick.noun(pick.entity(), (8, 66, 26))
    return Intent("count", select(["COUNT(*)"], noun), {"np": noun}, (noun,))


def count_distinct(pick: Picker) -> Intent:
    """The number of different values of a column."""
    entity = pick.entity("category", "text", "name")
    field = repeated_field(pick, entity)
    noun = without_field(pick.noun(entity, _MAYBE), field)
    sql = select([f"COUNT(DISTINCT {field.sql(False)})"], noun)
    return Intent("count_distinct", sql, {"field": FieldOf(field), "np": noun}, (noun,))


def distinct(pick: Picker) -> Intent:
    """The different values of a column."""
    entity = pick.entity("category", "text", "name")
    field = repeated_field(pick, entity)
    noun = without_field(pick.noun(entity, (30, 55, 15)), field)
    sql = select([field.sql(False)], noun, distinct=True)
    return Intent("distinct", sql, {"field": FieldOf(field), "np": noun}, (noun,))


def aggregate(pick: Picker) -> Intent:
    """Sums, averages and extremes."""
    entity = pick.entity("number", "date")
    noun = pick.noun(entity, (25, 60, 15))
    agg = aggregates(pick, entity, 1 if pick.random.random() < 0.75 else 2)
    if agg.items[0][1] in known_fields(noun):
        raise Skip
    return Intent("aggregate", select(agg.sql(False), noun), {"agg": agg, "np": noun}, (noun,))


def sorted_rows(pick: Picker) -> Intent:
    """Columns of rows in the order of a number or date."""
    entity = pick.entity("number", "date")
    noun = pick.noun(entity, _ONE_OR_TWO)
    key, high = pick.field(entity, "number", "date"), pick.random.random() < 0.6
    cols = pick.columns(entity, without=known_fields(noun))
    order = f"{key.sql(False)}{' DESC' if high else ''}"
    items = [field.sql(False) for field in cols.fields]
    sql = select(items, noun, order=order)
    ranked = select([*items, key.sql(False)], noun, order=order)
    extreme = Extreme(high, key)
    parts: dict[str, Part] = {"cols": cols, "np": noun, "key": FieldOf(key), "direction": extreme}
    return Intent("sort", sql, {**parts, "from_to": extreme}, (noun,), 1, ranked)


def top_rows(pick: Picker) -> Intent:
    """Columns of the few rows with the highest (lowest) number or latest (earliest) date."""
    return _top(pick, "top", pick.random.choice((2, 3, 3, 4, 5, 5, 6, 7, 8, 10, 10)))


def best_row(pick: Picker) -> Intent:
    """Columns of the one row with the highest (lowest) number or latest (earliest) date."""
    return _top(pick, "best", 1)


def _top(pick: Picker, kind: str, limit: int) -> Intent:
    entity = pick.entity("number", "date")
    noun = pick.noun(entity, (45, 45, 10))
    key, high = pick.field(entity, "number", "date"), pick.random.random() < 0.6
    if any(condition.field is key for condition in noun.conditions):
        raise Skip
    cols = pick.columns(entity, without=known_fields(noun))
    order = f"{key.sql(False)}{' DESC' if high else ''}"
    items = [field.sql(False) for field in cols.fields]
    sql = select(items, noun, order=order, limit=limit)
    ranked = select([*items, key.sql(False)], noun, order=order, limit=limit + 1)
    extreme = Extreme(high, key)
    parts: dict[str, Part] = {
        "cols": cols, "np": noun, "key": FieldOf(key), "sup": extreme, "top": extreme,
    }  # fmt: skip
    return Intent(kind, sql, {**parts, "k": limit}, (noun,), limit, ranked)


def aggregates(pick: Picker, entity: Entity, count: int) -> Aggregates:
    """``count`` aggregates of one number of ``entity`` (a date has only extremes)."""
    field = pick.field(entity, "number", "number", "date")
    weights: dict[Function, int] = (
        {"MIN": 1, "MAX": 1}
        if field.role == "date"
        else {"AVG": 5, "SUM": 3 if is_summable(field) else 0, "MIN": 3, "MAX": 3}
    )
    chosen: list[tuple[Function, Field]] = []
    while len(chosen) < count:
        function = spread(pick.random, weights)
        del weights[function]
        chosen.append((function, field))
    return Aggregates(tuple(chosen))


def is_summable(field: Field) -> bool:
    """Whether a total makes sense: not for scores and shares, whose values are few and small."""
    words = field.column.name.lower()
    return not any(mark in words for mark in ("rat", "score", "percent", "age", "discount", "율"))


def repeated_field(pick: Picker, entity: Entity) -> Field:
    """A field of words whose values recur, so that "different" says something."""
    rows = min(entity.table.rows or 2000, 2000)
    fields = [
        field
        for field in entity.having("category", "text", "name")
        if field.column.distinct is not None
        and 1 < field.column.distinct < 0.9 * rows * (1 - field.column.null_fraction)
        # COUNT(DISTINCT x) leaves NULL out and SELECT DISTINCT x does not.
        and field.column.null_fraction == 0
    ]
    return pick.one(fields)


def known_fields(noun: Noun) -> list[Field]:
    """Fields whose value the question itself gives; asking for them would be idle."""
    return [
        c.field for c in noun.conditions if c.operator in ("eq", "null") and noun.joiner == "AND"
    ]


def without_field(noun: Noun, field: Field) -> Noun:
    """``noun`` without its conditions on ``field``."""
    kept = tuple(c for c in noun.conditions if c.field is not field)
    return Noun(noun.entity, kept, noun.joiner if len(kept) > 1 else "AND")


KINDS: dict[str, Callable[[Picker], Intent]] = {
    "columns": all_rows,
    "filter": filtered,
    "rows": whole_rows,
    "count": count,
    "count_distinct": count_distinct,
    "distinct": distinct,
    "aggregate": aggregate,
    "sort": sorted_rows,
    "top": top_rows,
    "best": best_row,
}
