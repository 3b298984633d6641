"""How hard a query is, by the counting rules of Spider's ``evaluation.py``."""

from collections.abc import Iterable
from typing import Any, Literal

from hone.core.errors import RequestError
from hone.sql.parts import Parts, take_apart

Hardness = Literal["easy", "medium", "hard", "extra"]


def hardness(sql: str) -> Hardness:
    """ "easy", "medium", "hard" or "extra"; text that cannot be parsed is "extra"."""
    try:
        parts = take_apart(sql)
    except RequestError:
        return "extra"
    first, second, others = _clauses(parts), _nested(parts), _others(parts)
    if second == 0:
        if first <= 1 and others == 0:
            return "easy"
        if (first <= 1 and others <= 2) or (first <= 2 and others < 2):
            return "medium"
        if (first <= 2 and others > 2) or (first == 3 and others <= 2):
            return "hard"
        return "extra"
    return "hard" if second == 1 and first <= 1 and others == 0 else "extra"


def _clauses(parts: Parts) -> int:
    """The script's first component: WHERE, GROUP BY, ORDER BY, LIMIT, joins, OR and LIKE."""
    conditions = [*parts.on[::2], *parts.where[::2], *parts.having[::2]]
    connectives = [*parts.on[1::2], *parts.where[1::2], *parts.having[1::2]]
    return (
        sum(bool(clause) for clause in (parts.where, parts.group, parts.order, parts.limit))
        + max(len(parts.tables) - 1, 0)
        + connectives.count("or")
        + sum(condition[1] == "like" for condition in conditions)
    )


def _nested(parts: Parts) -> int:
    """The second: subqueries in conditions, and what is combined by UNION and the like."""
    conditions = [*parts.on[::2], *parts.where[::2], *parts.having[::2]]
    operands = [operand for condition in conditions for operand in condition[3:]]
    combined = (parts.intersect, parts.except_, parts.union)
    return sum(isinstance(part, Parts) for part in (*operands, *combined))


def _others(parts: Parts) -> int:
    """The third: more than one aggregate, output, condition or grouping."""
    order = parts.order[1] if parts.order else ()
    aggregates = (
        _count_aggregates(parts.select)
        # The script looks at a condition's first field, which says whether it is negated, and at
        # the words between the conditions of HAVING; published figures rest on both.
        + sum(bool(condition[0]) for condition in parts.where[::2])
        + _count_aggregates(parts.group)
        + _count_aggregates(unit for value in order for unit in value[1:] if unit)
        + sum(item in ("and", "or") or bool(item[0]) for item in parts.having)
    )
    return (
        (aggregates > 1) + (len(parts.select) > 1) + (len(parts.where) > 1) + (len(parts.group) > 1)
    )


def _count_aggregates(units: Iterable[Any]) -> int:
    return sum(unit[0] != "none" for unit in units)
