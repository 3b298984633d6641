import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.sql import Result, execution_match, is_ordered, open_database, same_rows

VALUES = st.one_of(
    st.none(),
    st.integers(-3, 3),
    st.sampled_from([0.5, 1.0, 1.5, 1e15]),
    st.sampled_from(["", "a", "1", "서울"]),
    st.sampled_from([b"", b"a", b"\xff"]),
)


@st.composite
def tables(draw, least_columns: int = 1) -> list[tuple]:
    width = draw(st.integers(least_columns, 5))
    return draw(st.lists(st.tuples(*[VALUES] * width), min_size=1, max_size=7))


def result(rows: list[tuple], truncated: bool = False) -> Result:
    return Result((), rows, truncated, 0.0)


def same(left: list[tuple], right: list[tuple], ordered: bool = False) -> bool:
    return same_rows(result(left), result(right), ordered)


@settings(max_examples=150, deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_order_of_columns_and_rows_is_free(rows: list[tuple], shuffle: random.Random) -> None:
    places = list(range(len(rows[0])))
    shuffle.shuffle(places)
    permuted = [tuple(row[place] for place in places) for row in rows]
    assert same(rows, permuted, ordered=True)
    shuffle.shuffle(permuted)
    assert same(rows, permuted)
    assert same(permuted, rows)


@settings(max_examples=150, deadline=None)
@given(tables(), st.data())
def test_a_changed_cell_is_detected(rows: list[tuple], data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.integers(0, len(rows[0]) - 1))
    changed = [list(each) for each in rows]
    # A value that no table has: whatever the permutation, the bags differ.
    changed[row][column] = data.draw(st.sampled_from(["new", 99, 2.25, b"new"]))
    assert not same(rows, [tuple(each) for each in changed])
    assert not same(rows, [tuple(each) for each in changed], ordered=True)


@settings(max_examples=150, deadline=None)
@given(tables(least_columns=2), tables(least_columns=2), st.booleans())
def test_agrees_with_trying_every_permutation(left, right, ordered) -> None:
    from collections import Counter
    from itertools import permutations

    expected = len(left) == len(right) and len(left[0]) == len(right[0])
    if expected:
        orders = permutations(range(len(right[0])))
        candidates = [[tuple(row[p] for p in order) for row in right] for order in orders]
        if ordered:
            expected = any(left == rows for rows in candidates)
        else:
            expected = any(Counter(left) == Counter(rows) for rows in candidates)
    assert same(left, right, ordered) == expected


@pytest.mark.smoke
def test_the_rules_one_by_one() -> None:
    assert same([], [])
    assert not same([], [(1,)])
    assert not same([(1,)], [(1, 1)])
    assert not same([(1,), (1,)], [(1,)])
    assert not same([(1,), (1,), (2,)], [(1,), (2,), (2,)])
    assert same([(1, "a")], [("a", 1.0)])
    assert not same([("1",)], [(1,)])
    assert not same([(None,)], [(0,)])
    assert not same([(None,)], [("",)])
    assert same([(0.1 + 0.2,)], [(0.3,)])
    assert same([(1e20,)], [(1e20 * (1 + 1e-12),)])
    assert not same([(1.0,)], [(1.000001,)])
    assert not same([(10**15,)], [(10**15 + 1,)])
    assert same([(b"\xff", None)], [(None, b"\xff")])
    assert not same([(float("inf"),)], [(1e308,)])
    # Columns must be permuted as a whole: here every row alone could be.
    assert not same([(1, 2), (3, 4)], [(1, 2), (4, 3)])
    assert not same([(1, 2), (2, 1), (3, 3)], [(1, 2), (2, 1), (1, 3)])
    assert same([(1,), (2,)], [(2,), (1,)])
    assert not same([(1,), (2,)], [(2,), (1,)], ordered=True)
    assert not same_rows(result([(1,)], truncated=True), result([(1,)], truncated=True), False)


def test_wide_results_are_quick() -> None:
    generator = random.Random(5)
    for values in ([0, 1], list(range(100))):
        rows = [tuple(generator.choice(values) for _ in range(40)) for _ in range(300)]
        order = list(range(40))
        generator.shuffle(order)
        other = [tuple(row[place] for place in order) for row in rows]
        generator.shuffle(other)
        start = time.monotonic()
        assert same(rows, other)
        other[0], other[1] = other[1], (*other[0][:-1], 1 - min(other[0][-1], 1))
        same(rows, other)
        assert time.monotonic() - start < 5
    assert same([(1,) * 60] * 3, [(1,) * 60] * 3)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n by a limit 3", True),
        ("SELECT a FROM t UNION SELECT b FROM u ORDER BY 1", True),
        ("SELECT a FROM t", False),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a LIMIT (3))", False),
        ("SELECT rank() OVER (ORDER BY a) FROM t", False),
        ("SELECT 'order by' FROM t", False),
        ('SELECT "order by (" FROM t', False),
        ("SELECT a FROM t -- order by a", False),
        ("SELECT a FROM t WHERE b = ')' AND c IN (SELECT d FROM e ORDER BY f)", False),
    ],
)
def test_is_ordered(sql: str, expected: bool) -> None:
    assert is_ordered(sql) is expected


def test_execution_match(make_database) -> None:
    one = make_database("CREATE TABLE t (a INT, b TEXT); INSERT INTO t VALUES (1,'x'),(2,'y')", "1")
    two = make_database("CREATE TABLE t (a INT, b TEXT); INSERT INTO t VALUES (3,'x'),(2,'y')", "2")
    with open_database(one) as first, open_database(two) as second:
        both = [first, second]
        assert execution_match(both, "SELECT a, b FROM t", "SELECT b, a FROM t ORDER BY a DESC")
        assert execution_match([first], "SELECT a FROM t WHERE b = 'x'", "SELECT 1")
        assert not execution_match(both, "SELECT a FROM t WHERE b = 'x'", "SELECT 1")
        assert not execution_match(
            both, "SELECT a FROM t ORDER BY a", "SELECT a FROM t ORDER BY -a"
        )
        assert not execution_match(both, "SELECT oops", "SELECT oops")
        assert not execution_match(both, "SELECT a FROM t", "SELECT oops")
        assert not execution_match(both, "SELECT a FROM t", "SELECT t.a FROM t, t AS u")
        count = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 100001)"
        many = f"{count} SELECT x FROM c"
        assert not execution_match([first], many, many)
        assert execution_match(
            [first], many.replace("100001", "100000"), many.replace("01)", "00)")
        )
        with pytest.raises(ValueError, match="at least one database"):
            execution_match([], "SELECT 1", "SELECT 1")
