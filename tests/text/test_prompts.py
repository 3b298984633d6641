import re
import sqlite3
import unicodedata
from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hone.text.prompts import MOST_SLOTS, clean_question, sql_string, text2sql_prompt

pytestmark = pytest.mark.smoke


@dataclass(frozen=True)
class Found:
    table: str
    column: str
    value: str
    start: int
    end: int


def test_values_become_slots_and_say_where_they_stand():
    links = [
        Found("customers", "city", "서울", 0, 2),
        Found("stores", "city", "서울", 0, 2),
    ]
    prompt = text2sql_prompt("서울에서 50,000원 넘게, 2024-03-15 전에 산 고객 5명", links)
    assert prompt.text == (
        "{1}에서 {2}원 넘게, {3} 전에 산 고객 {4}명\n{1} customers.city stores.city {3} date\nSQL:"
    )
    sql = "SELECT a FROM c WHERE city = '서울' AND x > 50000 AND d < '2024-03-15' LIMIT 5"
    template = "SELECT a FROM c WHERE city = {1} AND x > {2} AND d < {3} LIMIT {4}"
    assert prompt.template(sql) == template
    assert prompt.fill(template) == sql


@pytest.mark.parametrize(
    ("question", "sql", "template"),
    [
        ("made in 2024", "STRFTIME('%Y', d) = '2024'", "STRFTIME('%Y', d) = '{1}'"),
        ("in November 2024", "STRFTIME('%Y-%m', d) = '2024-11'", "STRFTIME('%Y-%m', d) = '{1}-11'"),
        ("name contains 'son'", "n LIKE '%son%'", "n LIKE '%{1}%'"),
        ("name is “O'Neil”", "n = 'O''Neil'", "n = {1}"),
        ("over 1,500.5 m", "x > 1500.5", "x > {1}"),
        ("as large as 300, not 3000", "x IN (300, 3000, 30)", "x IN ({1}, {2}, 30)"),
        ("상위5개, 3만원, 1.5억 명", "x IN (5, 30000, 150000000)", "x IN ({1}, {2}, {3})"),
        ("10-20", "BETWEEN 10 AND 20", "BETWEEN {1} AND {2}"),
        ("the 1 best of 1", "a = 1 LIMIT 1", "a = {1} LIMIT 1"),
        ("top 10 in 2024-10", "d > '2024-10-01' LIMIT 10", "d > '{2}-01' LIMIT {1}"),
        ("top 10", "LIMIT 10", "LIMIT {1}"),
        ("2024년 7월과 12월", "x IN ('2024-07', '2024-12')", "x IN ('{1}-07', '{1}-12')"),
        ("table t2024 of 2024", "SELECT t2024.x FROM t2024", "SELECT t2024.x FROM t2024"),
        ('the "2024" column', 'SELECT "2024" FROM t', 'SELECT "2024" FROM t'),
        ("2024 and '2024-x'", "a = '2024-x' OR b = 2024", "a = {2} OR b = {1}"),
    ],
)
def test_templates(question, sql, template):
    prompt = text2sql_prompt(question)
    assert prompt.template(sql) == template
    assert prompt.fill(template) == sql


def test_no_slot_where_there_is_no_value_and_none_of_its_own_braces():
    assert text2sql_prompt("How many customers?").text == "How many customers?\nSQL:"
    assert clean_question(" a\n{1}  b ") == "a (1) b"
    assert clean_question(unicodedata.normalize("NFD", "한글")) == "한글"


def test_a_slot_that_the_question_does_not_have_stays_and_cannot_run():
    sql = text2sql_prompt("over 300").fill("SELECT 1 WHERE 2 > {2}")
    assert sql == "SELECT 1 WHERE 2 > {2}"
    with pytest.raises(sqlite3.OperationalError):
        sqlite3.connect(":memory:").execute(sql)


def test_one_value_has_one_slot_and_there_are_not_too_many():
    prompt = text2sql_prompt("300 or 300 or 400")
    assert prompt.text.startswith("{1} or {1} or {2}\n")
    many = text2sql_prompt(" ".join(str(number) for number in range(100, 120)))
    assert len(many.slots) == MOST_SLOTS


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_characters='{}"“”‘’', exclude_categories=["Cs", "Cc"])))
def test_no_value_leaves_its_string(value):
    """Whatever a value holds, it comes back as one string that SQLite reads as that value."""
    assume(not re.fullmatch(r"-?\d+(\.\d+)?", value))  # a number is no string
    prompt = text2sql_prompt("x", [Found("t", "a", value, 0, 1)])
    for template in ("SELECT {1}", "SELECT '{1}'"):
        (row,) = sqlite3.connect(":memory:").execute(prompt.fill(template))
        assert row == (value,)
    sql = f"SELECT a FROM t WHERE a = {sql_string(value)}"
    assert prompt.fill(prompt.template(sql)) == sql
