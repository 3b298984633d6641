import json

import pytest

from hone.core.errors import DataError
from hone.evals.charts import curves
from hone.evals.comparison_report import write_comparison
from hone.evals.training_report import (
    Answer,
    TrainingReport,
    read_metrics,
    render_training_report,
    series,
)

METRICS = [
    {"step": 10, "loss": 3.0, "lr": 0.1, "tokens_per_second": 100.0},
    {"step": 20, "loss": 2.0, "lr": 0.05, "tokens_per_second": 110.0},
    {"step": 20, "held_out_loss": 2.5},
    {"step": 30, "loss": None, "held_out_loss": 2.25},
]


def report(**changes):
    values = {
        "title": "모델 <b>",
        "summary": "A summary.",
        "scores": {"loss": (2.5, 2.25), "accuracy": (0.75, 0.5)},
        "better": {"loss": False},
        "choices": [("method", "lora", "<it fits>")],
        "metrics": METRICS,
        "counts": {"Steps": "30"},
    }
    return TrainingReport(**(values | changes))


@pytest.mark.smoke
def test_the_page_says_what_was_chosen_and_escapes_everything():
    page = render_training_report(report())
    assert "모델 &lt;b&gt;" in page
    assert "&lt;it fits&gt;" in page
    assert "<script" not in page


def test_a_worse_score_is_marked_and_a_better_one_too():
    page = render_training_report(report())
    assert page.index('class="ok">before: 2.5') < page.index('class="bad">before: 0.75')


def test_trained_tokens_are_marked_and_answers_stand_side_by_side():
    page = render_training_report(
        report(
            sample=[("질문\n", False), ("답변<", True)],
            answers=[Answer("q", "wanted", "before!", "after!")],
            memory={"weights": 4_000_000, "activations": 1_000_000},
            predicted=5_000_000,
            measured=4_900_000,
        )
    )
    assert "<mark>답변&lt;</mark>" in page
    assert page.index("before!") < page.index("after!")
    assert "5 MB" in page
    assert "measured: 4.9 MB" in page


def test_memory_along_the_way_is_in_gigabytes():
    page = render_training_report(
        report(metrics=[{"step": n, "memory_bytes": 4e8 + n * 1e6} for n in range(1, 4)])
    )
    assert "Memory in GB" in page
    assert "e+0" not in page


def test_series_take_only_numbers():
    assert series(METRICS, "loss") == [(10, 3.0), (20, 2.0)]
    assert series(METRICS, "held_out_loss") == [(20, 2.5), (30, 2.25)]


def test_curves_of_several_runs_have_a_legend_and_a_single_one_has_none():
    points = [(1, 2.0), (2, 1.0)]
    both = curves({"a<b": points, "c": points, "empty": []}, "Loss")
    assert "a&lt;b" in both
    assert both.count("<polyline") == 2
    assert "legend" not in curves({"a": points}, "Loss")
    assert "fewer than two" in curves({"a": points[:1]}, "Loss")


def test_a_damaged_line_is_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps(METRICS[0]) + "\n{oops\n")
    with pytest.raises(DataError, match="line 2"):
        read_metrics(file)


def test_a_comparison_shows_each_run_and_what_differs(tmp_path):
    write_comparison(
        tmp_path / "c.html",
        {"runs/a": METRICS, "runs/b": METRICS},
        {"runs/a": {"accuracy": 0.5}, "runs/b": {}},
        {"train.learning_rate": [0.1, None]},
    )
    page = (tmp_path / "c.html").read_text()
    assert page.count("runs/b") >= 3
    assert "learning_<wbr>rate" in page
