"""``report.html``: one file, no network, no script, everything escaped.

The page's own content security policy forbids scripts and requests, so that even a mistake in a
template could not make a question or a value of the database act.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from hone.core.files import write_text
from hone.evals import formatting
from hone.evals.charts import Point, accuracy_bar, loss_curve
from hone.evals.highlight import highlight
from hone.evals.records import Scored
from hone.evals.selection import (
    FAILURE_KINDS,
    FailureKind,
    choose_failures,
    choose_samples,
    failure_kind,
)
from hone.evals.summary import (
    ALL,
    METRICS,
    Breakdown,
    Variant,
    by_pattern,
    changes,
    summarize,
)
from hone.sql.schema import Schema, Table

_WEAKEST_PATTERNS = 8
_MOST_TABLES = 40
_MOST_COLUMNS = 40


@dataclass(frozen=True, slots=True)
class ReportInputs:
    """Everything that the report shows.

    Attributes:
        title: what the model is for, e.g. the database's name.
        database: the database's file name.
        schema: its schema.
        variants: the model, then its compressed forms; all answered the same questions in the same
            order.
        losses: step and training loss, from :func:`hone.evals.charts.read_losses`.
        prompt, completion: one training sample as the model saw it; the loss is on the completion.
        decoding: settings under which the answers were generated.
        stage_seconds: working time of every stage, in order.
        parameters: how many the model has.
        manifest: recipe, seed, machine, versions, hashes: shown as it is, mappings as tables.
        goals: execution accuracy to reach, by held-out set.
        next_commands: what to type next.
        samples, failures: how many of each to show (samples for each language).
    """

    title: str
    database: str
    schema: Schema
    variants: tuple[Variant, ...]
    losses: tuple[Point, ...]
    prompt: str
    completion: str
    decoding: Mapping[str, object]
    stage_seconds: Mapping[str, float]
    parameters: int
    manifest: Mapping[str, object]
    goals: Mapping[str, float] = field(default_factory=dict)
    next_commands: tuple[str, ...] = ()
    samples: int = 4
    failures: int = 12


def write_report(path: str | Path, inputs: ReportInputs) -> None:
    """Write the report to ``path``, whole or not at all.

    Raises:
        CapacityError: the disk is full.
        HoneError: ``path`` cannot be written.
    """
    write_text(path, render_report(inputs))


def render_report(inputs: ReportInputs) -> str:
    """The report as HTML text."""
    assert inputs.variants, "a report needs at least one measured variant"
    model = inputs.variants[0]
    execution = summarize(model.records, "execution_accuracy")
    exact = summarize(model.records, "exact_match")
    failed = [record for record in model.records if not record.ok]
    patterns = [item for item in by_pattern(model.records).items() if item[1].value < 1]
    page = (
        page_environment()
        .get_template("report.html.jinja")
        .render(
            inputs=inputs,
            model=model,
            sets=[_held_out_set(split, inputs, execution, exact) for split in execution],
            curve=loss_curve(inputs.losses),
            comparison=_comparison(inputs.variants),
            cost=_cost(inputs.variants),
            kept=[(other.name, changes(model, other)) for other in inputs.variants[1:]],
            samples=choose_samples(model.records, inputs.samples),
            failed=len(failed),
            failures=choose_failures(model.records, inputs.failures),
            failure_rows=_failure_rows(failed, tuple(execution)),
            patterns=patterns[:_WEAKEST_PATTERNS],
            tables=[
                _table_view(table, inputs.schema) for table in inputs.schema.tables[:_MOST_TABLES]
            ],
            most_columns=_MOST_COLUMNS,
            settings=setting_sections({"decoding": inputs.decoding, **inputs.manifest}),
            slowest=max(inputs.stage_seconds.values(), default=0.0),
        )
    )
    return formatting.printable(page)


def _held_out_set(
    split: str,
    inputs: ReportInputs,
    execution: Mapping[str, Breakdown],
    exact: Mapping[str, Breakdown],
) -> dict[str, object]:
    goal = inputs.goals.get(split)
    groups = []
    for by, ours, theirs in (
        ("language", execution[split].language, exact[split].language),
        ("hardness", execution[split].hardness, exact[split].hardness),
    ):
        for name, score in ours.items():
            if by == "hardness" and name == ALL:
                continue
            bar = accuracy_bar(score, goal if name == ALL else None)
            groups.append(
                {"by": by, "name": name, "score": score, "exact": theirs[name], "bar": bar}
            )
    return {
        "key": split,
        "name": formatting.name_of(split, formatting.SPLIT_NAMES),
        "note": formatting.SPLIT_NOTES.get(split, ""),
        "score": execution[split].all,
        "goal": goal,
        "groups": groups,
    }


def _comparison(variants: Sequence[Variant]) -> list[dict[str, object]]:
    """For each held-out set the rows of its side-by-side table, in a group for each metric.

    A row has, for each variant, the share and a remark.
    """
    by_metric = [
        (title, [summarize(variant.records, metric) for variant in variants])
        for metric, title in zip(METRICS, ("Execution", "Exact match"), strict=True)
    ]
    sets: list[dict[str, object]] = []
    for split in by_metric[0][1][0]:
        groups = []
        for title, summaries in by_metric:
            first = summaries[0][split].language
            rows = []
            for name, base in first.items():
                scores = [summary[split].language[name] for summary in summaries]
                cells = [(base, formatting.interval(base), "")]
                cells += [
                    (score, formatting.interval(score), formatting.points(score.value - base.value))
                    for score in scores[1:]
                ]
                rows.append({"label": formatting.name_of(name), "n": base.n, "cells": cells})
            groups.append({"title": title, "rows": rows})
        sets.append({"title": _split_name(split), "groups": groups})
    return sets


def _cost(variants: Sequence[Variant]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Size and speed of every variant, each with a remark on how it differs from the first."""
    first, *others = variants
    weights = [(formatting.size(first.bytes), "")]
    speeds = [(f"{first.tokens_per_second:,.0f}", "")]
    for other in others:
        smaller = formatting.times(first.bytes / max(other.bytes, 1), "smaller", "larger")
        weights.append((formatting.size(other.bytes), smaller))
        ratio = other.tokens_per_second / max(first.tokens_per_second, 1e-9)
        faster = formatting.times(ratio, "faster", "slower")
        speeds.append((f"{other.tokens_per_second:,.0f}", faster))
    return [("Weights on disk", weights), ("Tokens per second", speeds)]


def _failure_rows(
    failed: list[Scored], sets: tuple[str, ...]
) -> list[tuple[FailureKind, list[int], int]]:
    """For every kind of failure that occurs: its count in each held-out set, and in all."""
    rows = []
    for kind in FAILURE_KINDS:
        found = [record for record in failed if failure_kind(record) == kind]
        if found:
            counts = [sum(r.split == split for r in found) for split in sets]
            rows.append((kind, counts, len(found)))
    return rows


def _table_view(table: Table, schema: Schema) -> dict[str, object]:
    targets = {}
    for key in schema.foreign_keys:
        if key.table.lower() == table.name.lower():
            for column, referred in zip(key.columns, key.ref_columns, strict=True):
                targets[column.lower()] = (f"{key.ref_table}.{referred}", key.inferred)
    keys = {column.lower() for column in table.primary_key}
    columns = [
        {
            "name": column.name,
            "labels": _label(column.labels.ko, column.labels.en),
            "kind": column.kind,
            "key": column.name.lower() in keys,
            "target": targets.get(column.name.lower()),
            "nullable": column.nullable and column.null_fraction > 0,
        }
        for column in table.columns
    ]
    return {
        "name": table.name,
        "labels": _label(table.labels.ko, table.labels.en),
        "rows": table.rows,
        "view": table.is_view,
        "columns": columns,
    }


def setting_sections(manifest: Mapping[str, object]) -> list[tuple[str, list[tuple[str, str]]]]:
    """A manifest as tables of a name and a value: one for each of its mappings, deeper ones dotted.

    What stands outside any mapping comes first.
    """
    loose = {key: value for key, value in manifest.items() if not isinstance(value, Mapping)}
    nested = {key: value for key, value in manifest.items() if isinstance(value, Mapping)}
    sections = [("run", list(_flat(loose)))] if loose else []
    sections += [(key, list(_flat(value))) for key, value in nested.items() if value]
    return sections


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _setting(value)


def _setting(value: object) -> str:
    if value is None or value == {} or value == "":
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_setting(item) for item in value) or "—"
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    # Of a hash the beginning is enough to compare; the manifest has it whole.
    return f"{text[:16]}…" if re.fullmatch("[0-9a-f]{64}", text) else text


def _label(korean: tuple[str, ...], english: tuple[str, ...]) -> str:
    """The main Korean and English names, once where they are the same."""
    return " · ".join(dict.fromkeys((*korean[:1], *english[:1])))


@cache
def page_environment() -> jinja2.Environment:
    """What renders the pages' templates, everything escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        breakable=_breakable,
        cell=formatting.cell,
        duration=formatting.duration,
        highlight=highlight,
        interval=formatting.interval,
        percent=formatting.percent,
        quantity=formatting.quantity,
        size=formatting.size,
        language_name=formatting.name_of,
        split_name=_split_name,
        visible_newlines=_visible_newlines,
    )
    environment.globals.update(row_count=formatting.row_count, failure_kind=failure_kind)
    return environment


def _split_name(split: str) -> str:
    return formatting.name_of(split, formatting.SPLIT_NAMES)


def _breakable(name: str) -> Markup:
    """``name`` with leave to break after every underscore and dot, rather than anywhere."""
    return Markup("<wbr>").join(
        Markup.escape(part) for part in re.split(r"(?<=[_.])(?=.)", name, flags=re.DOTALL)
    )


def _visible_newlines(text: str) -> Markup:
    """``text`` with a mark at the end of every line, for a prompt whose every character counts."""
    mark = Markup('<span class="newline" aria-hidden="true">⏎</span>\n')
    return mark.join(Markup.escape(line) for line in text.split("\n"))
