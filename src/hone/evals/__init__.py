"""Scoring models and showing the scores: tasks, intervals, tables for the terminal, the report.

Belongs here: whatever turns predictions and references into figures, and figures into pages.
Not here: generating the predictions (``engine``), and how one query compares to another (``sql``).
"""

from hone.evals.charts import read_losses
from hone.evals.intervals import Score, wilson
from hone.evals.records import Preview, Scored, read_records, write_records
from hone.evals.report import ReportInputs, render_report, write_report
from hone.evals.selection import choose_failures, choose_samples, failure_kind
from hone.evals.summary import (
    Breakdown,
    Variant,
    by_pattern,
    changes,
    results,
    splits,
    summarize,
)
from hone.evals.tables import (
    accuracy_table,
    compression_table,
    rows_table,
    sample_answers,
    sql_text,
)
from hone.evals.text2sql import Example, Scorer

__all__ = [
    "Breakdown",
    "Example",
    "Preview",
    "ReportInputs",
    "Score",
    "Scored",
    "Scorer",
    "Variant",
    "accuracy_table",
    "by_pattern",
    "changes",
    "choose_failures",
    "choose_samples",
    "compression_table",
    "failure_kind",
    "read_losses",
    "read_records",
    "render_report",
    "results",
    "rows_table",
    "sample_answers",
    "splits",
    "sql_text",
    "summarize",
    "wilson",
    "write_records",
    "write_report",
]
