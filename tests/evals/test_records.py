import pytest

from hone.core.errors import DataError
from hone.evals.charts import read_losses
from hone.evals.records import Preview, read_records

pytestmark = pytest.mark.smoke


def test_preview_keeps_the_first_rows_and_counts_all():
    preview = Preview.of(("a",), [(i,) for i in range(7)], 3)
    assert preview.rows == ((0,), (1,), (2,))
    assert preview.total == 7


def test_preview_shortens_long_text():
    (value,) = Preview.of(("a",), [("가" * 1000,)], 3).rows[0]
    assert len(value) == 200
    assert value.endswith("…")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{}\n{", "line 2: not valid JSON"),
        ('{"question": "?"}', "line 1: not a scored question"),
        ("[1]", "line 1: not a scored question"),
        ("3", "line 1: not a scored question"),
    ],
)
def test_damaged_records_are_named(tmp_path, text, sentence):
    path = tmp_path / "records.jsonl"
    path.write_text(text.replace("{}\n", "\n"), encoding="utf-8")
    with pytest.raises(DataError, match=sentence):
        read_records(path)


def test_missing_records_are_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_records(tmp_path / "none.jsonl")


def test_losses_pass_over_what_has_none(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": 2.5, "lr": 0.1}\n{"step": 1, "held_out": 3}\n'
        '{"step": 2, "loss": null}\n{"step": 3, "loss": NaN}\n{"step": 4, "loss": 1}\n',
        encoding="utf-8",
    )
    losses = read_losses(path)
    assert [step for step, _ in losses] == [1, 3, 4]
    assert losses[0] == (1, 2.5)


@pytest.mark.parametrize("line", ['{"loss": 1}', '{"step": "x", "loss": 1}', "[]"])
def test_unusable_metrics_are_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match="line 1"):
        read_losses(path)
