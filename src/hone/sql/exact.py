"""Exact set match: Spider's measure of whether two queries say the same, clause by clause.

Every clause is compared as a set, literal values and the main query's DISTINCT are ignored, and
columns joined by a foreign key count as one (Yu et al., "Spider", 2018; ``evaluation.py`` there).
Inside a subquery of a condition the official script compares literally, and so does this.
"""

from collections import Counter
from functools import lru_cache
from typing import Any

from hone.core.errors import RequestError
from hone.sql.parts import Parts, take_apart
from hone.sql.schema import Schema


def exact_set_match(gold: str, pred: str, schema: Schema) -> bool:
    """Whether ``pred`` has the same clauses as ``gold``.

    What cannot be parsed matches nothing, nor does a prediction that names a column which its table
    does not have: the script refuses both.
    """
    same = equal_columns(schema)
    try:
        return _match(take_apart(pred, schema, same, strict=True), take_apart(gold, schema, same))
    except RequestError:
        return False


@lru_cache(maxsize=256)
def equal_columns(schema: Schema) -> dict[str, str]:
    """Each column of a foreign key ("table.column") and the first of those it is equal to."""
    places = [
        f"{table.name}.{column.name}".lower() for table in schema.tables for column in table.columns
    ]
    order = {name: place for place, name in enumerate(places)}
    groups: list[set[str]] = []
    for key in schema.foreign_keys:
        for column, other in zip(key.columns, key.ref_columns, strict=True):
            pair = {f"{key.table}.{column}".lower(), f"{key.ref_table}.{other}".lower()}
            # The script joins a pair to the first group that it touches, and merges none.
            group = next((group for group in groups if group & pair), None)
            if group is None:
                groups.append(pair)
            else:
                group |= pair
    return {
        name: min(group, key=lambda name: order.get(name, len(order)))
        for group in groups
        for name in group
    }


def _match(pred: Parts, gold: Parts) -> bool:
    return (
        Counter(pred.select) == Counter(gold.select)
        and Counter(pred.where[::2]) == Counter(gold.where[::2])
        and set(pred.where[1::2]) == set(gold.where[1::2])
        and pred.group == gold.group
        and (not gold.group or pred.having == gold.having)
        and pred.order == gold.order
        and (not gold.order or pred.limit == gold.limit)
        and _keywords(pred) == _keywords(gold)
        and _match_nested(pred.intersect, gold.intersect)
        and _match_nested(pred.except_, gold.except_)
        and _match_nested(pred.union, gold.union)
        and Counter(pred.tables) == Counter(gold.tables)
    )


def _match_nested(pred: Parts | None, gold: Parts | None) -> bool:
    if pred is None or gold is None:
        return pred is gold
    return _match(pred, gold)


def _keywords(parts: Parts) -> set[Any]:
    conditions = [*parts.on[::2], *parts.where[::2], *parts.having[::2]]
    connectives = [*parts.on[1::2], *parts.where[1::2], *parts.having[1::2]]
    return {
        word
        for word, present in (
            ("where", parts.where),
            ("group", parts.group),
            ("having", parts.having),
            ("order", parts.order),
            (parts.order[0] if parts.order else "", parts.order),
            ("limit", parts.limit),
            ("except", parts.except_),
            ("union", parts.union),
            ("intersect", parts.intersect),
            ("or", "or" in connectives),
            ("not", any(condition[0] for condition in conditions)),
            ("in", any(condition[1] == "in" for condition in conditions)),
            ("like", any(condition[1] == "like" for condition in conditions)),
        )
        if present
    }
