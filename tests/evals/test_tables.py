import io

import pytest
from made_up import made_up_inputs, made_up_records
from rich.cells import cell_len
from rich.console import Console

from hone.evals.records import Preview
from hone.evals.tables import (
    accuracy_table,
    compression_table,
    rows_table,
    sample_answers,
    sql_text,
)
from hone.sql.execute import Result


def shown(item, width=80, colour=False):
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
    )
    console.print(item)
    return console.file.getvalue()


@pytest.mark.smoke
def test_accuracy_fits_eighty_columns_with_everything_in_it(shop):
    text = shown(accuracy_table(made_up_records(shop)))
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    for figure in ("95.0%", "92.7–96.6", "500", "87.4%", "84.2–90.0", "Korean", "Extra"):
        assert figure in text


def test_compression_side_by_side(shop, shop_schema):
    text = shown(compression_table(made_up_inputs(shop, shop_schema).variants))
    for figure in ("fp32", "int8", "12.6 MB", "3.51 MB", "3.60× smaller", "2,893", "(n = 500)"):
        assert figure in text
    assert "0 gained, 4 lost" in text


def test_samples_show_question_sql_and_rows_in_both_languages(shop):
    text = shown(sample_answers(made_up_records(shop), per_language=3), width=100)
    lines = text.splitlines()
    questions = [line for line in lines if line.startswith(("✓", "✗"))]
    assert len(questions) == 6
    assert sum(any("가" <= c <= "힣" for c in line) for line in questions) == 3
    assert "SELECT" in text
    assert "rows, first 3 shown" in text


def test_wrong_samples_show_the_gold_query(shop):
    wrong = [record for record in made_up_records(shop) if not record.ok]
    text = shown(sample_answers(wrong, per_language=5), width=120)
    assert "✓" not in text
    assert "gold:" in text
    assert "The query failed" in text


def test_rows_of_hangul_stand_in_line():
    result = Result(("name", "n"), [("서울", 1), ("Busan", 20), (None, None)], False, 0.0)
    lines = shown(rows_table(result)).splitlines()
    # The numbers end at the same cell although a syllable is two cells wide.
    assert cell_len(lines[2].rstrip()) == cell_len(lines[3].rstrip())
    assert "NULL" in lines[4]
    assert lines[-1] == "3 rows"


def test_wide_rows_and_long_values_are_cut_visibly():
    columns = tuple(f"column_{i}" for i in range(30))
    result = Result(columns, [tuple("x" * 500 for _ in columns)], True, 0.0)
    text = shown(rows_table(result), width=100)
    assert all(cell_len(line) <= 100 for line in text.splitlines())
    assert "…" in text
    assert "more than 1 row" in text
    assert "+23 columns" in shown(rows_table(result), width=400)


def test_no_rows():
    assert shown(rows_table(Result(("a",), [], False, 0.0))).strip() == "no rows"


@pytest.mark.parametrize("evil", ["[red]x[/red]", "[/]", "\x1b[2Jx", "\u202ex", "\rx", "a\nb"])
def test_values_are_neither_markup_nor_terminal_commands(evil):
    text = shown(rows_table(Preview((evil,), ((evil,),), 1)))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\r" not in text
    if evil.startswith("["):
        assert text.count(evil) == 2


def test_sql_keeps_its_text():
    assert shown(sql_text("SELECT '[bold]' FROM t")).strip() == "SELECT '[bold]' FROM t"
    assert "\x1b" in shown(sql_text("SELECT 1"), colour=True)
