"""Figures and rows for the terminal, as things that ``rich`` prints.

Text from questions, models and databases is never read as markup and cannot move the cursor.
"""

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hone.evals import formatting
from hone.evals.highlight import tokens
from hone.evals.records import Preview, Scored
from hone.evals.selection import choose_samples, failure_kind
from hone.evals.summary import ALL, METRICS, Variant, changes, summarize
from hone.sql.execute import Result

_WIDEST_VALUE = 36
_MOST_COLUMNS = 8
_SQL_STYLES = {
    "keyword": "bold magenta",
    "function": "blue",
    "string": "green",
    "number": "cyan",
    "comment": "dim italic",
}


def rows_table(result: Result | Preview, most_rows: int = 20) -> RenderableType:
    """The rows of a query; long values end in an ellipsis, and what is left out is counted.

    Wide Hangul is measured as the terminal shows it: two cells for a syllable.
    """
    if isinstance(result, Result):
        preview = Preview.of(result.columns, result.rows, most_rows, result.truncated)
    else:
        preview = result
    counted = formatting.row_count(preview.total, preview.more)
    if not preview.rows:
        return Text("no rows", style="dim")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    shown = len(preview.columns)
    if shown > _MOST_COLUMNS:
        shown = _MOST_COLUMNS - 1
    for index, column in enumerate(preview.columns[:shown]):
        numeric = all(isinstance(row[index], int | float | None) for row in preview.rows)
        table.add_column(
            Text(formatting.cell(column)),
            justify="right" if numeric else "left",
            max_width=_WIDEST_VALUE,
            overflow="ellipsis",
            no_wrap=True,
        )
    if shown < len(preview.columns):
        table.add_column(Text(f"+{len(preview.columns) - shown} columns", style="dim"))
    for row in preview.rows[:most_rows]:
        cells = [
            Text(formatting.cell(value), style="dim italic" if value is None else "")
            for value in row[:shown]
        ]
        table.add_row(*cells)
    if preview.more or preview.total > len(preview.rows[:most_rows]):
        counted += f", first {len(preview.rows[:most_rows])} shown"
    return Group(table, Text(counted, style="dim"))


def accuracy_table(records: Sequence[Scored]) -> Table:
    """Execution accuracy with its 95% interval, exact match and the number of items.

    One row for each language and hardness, one group of columns for each held-out set.
    """
    execution, exact = (summarize(records, metric) for metric in METRICS)
    table = Table(
        title="Accuracy by execution, with 95% intervals",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    groups: list[tuple[str, str]] = []
    for split, breakdown in execution.items():
        # Broken over two lines, so that two sets fit into 80 columns.
        name = formatting.name_of(split, formatting.SPLIT_NAMES).replace(" ", "\n")
        table.add_column(Text(name), justify="right")
        table.add_column("95%", justify="right", style="dim")
        table.add_column("exact", justify="right")
        table.add_column("n", justify="right", style="dim")
        groups += [("language", name) for name in breakdown.language]
        groups += [("hardness", name) for name in breakdown.hardness if name != ALL]
    rows = sorted(dict.fromkeys(groups), key=lambda group: group[0] != "language")
    for index, (by, name) in enumerate(rows):
        cells = [Text(formatting.name_of(name), style="bold" if name == ALL else "")]
        for split in execution:
            score = getattr(execution[split], by).get(name)
            if score is None:
                cells += [Text("")] * 4
                continue
            cells += [
                Text(formatting.percent(score.value), style="bold"),
                Text(formatting.interval(score)),
                Text(formatting.percent(getattr(exact[split], by)[name].value)),
                Text(f"{score.n:,}"),
            ]
        last_of_group = index + 1 < len(rows) and rows[index + 1][0] != by
        table.add_row(*cells, end_section=last_of_group)
    return table


def compression_table(variants: Sequence[Variant]) -> Table:
    """Accuracy, bytes and tokens per second of a model and its compressed forms, side by side."""
    first, *others = variants
    table = Table(
        title="Compression",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    for variant in variants:
        table.add_column(Text(variant.name), justify="right")
    for _ in others:
        table.add_column("change", justify="right", style="dim")
    for metric, title in zip(METRICS, ("execution", "exact match"), strict=True):
        summaries = [summarize(variant.records, metric) for variant in variants]
        for split in summaries[0]:
            scores = [summary[split].all for summary in summaries]
            label = f"{formatting.name_of(split, formatting.SPLIT_NAMES)}, {title}"
            table.add_row(
                Text(f"{label} (n = {scores[0].n:,})"),
                *(formatting.percent(score.value) for score in scores),
                *(formatting.points(score.value - scores[0].value) for score in scores[1:]),
            )
    table.add_row(
        "Weights on disk",
        *(formatting.size(variant.bytes) for variant in variants),
        *(
            formatting.times(first.bytes / max(other.bytes, 1), "smaller", "larger")
            for other in others
        ),
    )
    table.add_row(
        "Tokens per second",
        *(f"{variant.tokens_per_second:,.0f}" for variant in variants),
        *(
            formatting.times(
                other.tokens_per_second / max(first.tokens_per_second, 1e-9), "faster", "slower"
            )
            for other in others
        ),
    )
    if others:
        found = [changes(first, other) for other in others]
        table.add_row(
            f"Same query as {first.name} (n = {len(first.records):,})",
            "",
            *(f"{change.same_sql:,}" for change in found),
            *(f"{change.gained} gained, {change.lost} lost" for change in found),
        )
    return table


def sample_answers(records: Sequence[Scored], per_language: int = 3, seed: int = 0) -> Group:
    """A few questions of each language with the model's SQL, its rows, and whether it is right."""
    parts: list[RenderableType] = []
    for record in choose_samples(records, per_language, seed):
        verdict = Text("✓ ", style="bold green") if record.ok else Text("✗ ", style="bold red")
        parts.append(verdict + Text(formatting.printable(record.question), style="bold"))
        body: list[RenderableType] = [sql_text(record.predicted)]
        if record.error is not None:
            body.append(Text(formatting.printable(record.error), style="red"))
        elif record.result is not None:
            body.append(rows_table(record.result, most_rows=3))
        kind = failure_kind(record)
        if kind is not None:
            body.append(Text(f"wrong ({kind}); gold:", style="red"))
            body.append(sql_text(record.gold))
        parts.append(Padding(Group(*body), (0, 0, 1, 2)))
    return Group(*parts)


def sql_text(sql: str) -> Text:
    """SQL in colours that both a dark and a light terminal can show."""
    return Text.assemble(
        *((piece, _SQL_STYLES.get(kind, "")) for piece, kind in tokens(formatting.printable(sql)))
    )
