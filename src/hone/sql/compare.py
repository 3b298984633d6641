"""Whether two queries give the same answer: the execution metric of Spider's test suites.

Rows are a bag, columns may be permuted, order counts where the gold query asks for one, and every
database must agree (Zhong, Yu and Klein, "Semantic Evaluation for Text-to-SQL with Distilled Test
Suites", 2020).
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from hone.core.errors import RequestError
from hone.sql.execute import Database, Result

# Sums and averages differ in the last bits with the order in which rows are read.
_RELATIVE = 1e-9
_ROW_CAP = 100_000
_QUOTED_OR_COMMENT = re.compile(
    r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/", re.DOTALL
)

# A column of a result, each value replaced by the number of its class of equal values.
_Column = tuple[int, ...]


def same_rows(gold: Result, pred: Result, ordered: bool) -> bool:
    """Whether two results hold the same rows, up to an order of columns.

    ``ordered`` makes the order of rows count. 1 equals 1.0, and floats equal when they are within
    1e-9 of each other relative to their size. Two empty results are the same whatever their
    columns. A result that was cut off equals nothing, because its other rows are unknown.
    """
    if gold.truncated or pred.truncated or len(gold.rows) != len(pred.rows):
        return False
    if not gold.rows:
        return True
    if len(gold.rows[0]) != len(pred.rows[0]):
        return False
    left, right = _number_values(gold.rows, pred.rows)
    if ordered:
        return Counter(left) == Counter(right)
    return _match_columns(left, right)


def is_ordered(sql: str) -> bool:
    """Whether the outermost query has an ORDER BY."""
    text = _QUOTED_OR_COMMENT.sub(" ", sql)
    while (shorter := re.sub(r"\([^()]*\)", " ", text)) != text:
        text = shorter
    return re.search(r"\border\s+by\b", text, re.IGNORECASE) is not None


def execution_match(
    databases: Iterable[Database], gold_sql: str, predicted_sql: str, timeout_s: float = 10.0
) -> bool:
    """Whether ``predicted_sql`` answers like ``gold_sql`` on every one of ``databases``.

    A query that fails or returns more than 100,000 rows matches nothing, not even its like.

    Raises:
        ValueError: there is no database to agree.
    """
    ordered = is_ordered(gold_sql)
    compared = False
    for database in databases:
        compared = True
        try:
            gold = database.execute(gold_sql, _ROW_CAP, timeout_s)
            # More rows than the gold's are a mismatch already; one more is enough to see it.
            pred = database.execute(predicted_sql, len(gold.rows) + 1, timeout_s)
        except RequestError:
            return False
        if not same_rows(gold, pred, ordered):
            return False
    if not compared:
        raise ValueError("execution_match needs at least one database")
    return True


def _number_values(
    gold: Sequence[tuple[object, ...]], pred: Sequence[tuple[object, ...]]
) -> tuple[list[_Column], list[_Column]]:
    """Both results by columns, with equal numbers for equal values."""
    distinct = {value for rows in (gold, pred) for row in rows for value in row}
    numbers = sorted(value for value in distinct if isinstance(value, (int, float)))
    classes: dict[object, int] = {}
    for place, number in enumerate(numbers):
        last = numbers[place - 1] if place else None
        same = last is not None and _close(last, number)
        classes[number] = classes[last] if same else len(classes)
    for value in distinct:
        if not isinstance(value, (int, float)):
            classes[value] = len(classes)
    return (
        [tuple(classes[value] for value in column) for column in zip(*gold, strict=True)],
        [tuple(classes[value] for value in column) for column in zip(*pred, strict=True)],
    )


def _close(low: int | float, high: int | float) -> bool:
    if isinstance(low, int) and isinstance(high, int):
        return False
    if math.isinf(low) or math.isinf(high):
        return False
    return high - low <= _RELATIVE * max(abs(low), abs(high))


def _match_columns(left: list[_Column], right: list[_Column]) -> bool:
    """Whether some order of ``right``'s columns gives the same bag of rows as ``left``.

    Columns are chosen one by one, and every choice must leave the bags of row beginnings equal, so
    a wrong one is noticed at once; only columns of the same bag of values are tried.
    """
    bags_left = [frozenset(Counter(column).items()) for column in left]
    bags_right = [frozenset(Counter(column).items()) for column in right]
    if Counter(bags_left) != Counter(bags_right):
        return False
    # The most telling columns come first.
    places = sorted(range(len(left)), key=lambda place: -len(bags_left[place]))

    def extend(depth: int, rows_left: _Column, rows_right: _Column, free: frozenset[int]) -> bool:
        if depth == len(places):
            return True
        place = places[depth]
        tried: set[_Column] = set()
        for other in sorted(free):
            if bags_right[other] != bags_left[place] or right[other] in tried:
                continue
            tried.add(right[other])
            names: dict[tuple[int, int], int] = {}
            longer_left = _refine(rows_left, left[place], names)
            longer_right = _refine(rows_right, right[other], names)
            if Counter(longer_left) == Counter(longer_right) and extend(
                depth + 1, longer_left, longer_right, free - {other}
            ):
                return True
        return False

    start = (0,) * len(left[0])
    return extend(0, start, start, frozenset(range(len(right))))


def _refine(rows: _Column, column: _Column, names: dict[tuple[int, int], int]) -> _Column:
    """Each row's beginning, one column longer, as a number given by ``names``."""
    return tuple(names.setdefault(pair, len(names)) for pair in zip(rows, column, strict=True))
