"""``hone runs``: past runs, listed and side by side."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hone.recipes.history import PastRun


def runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Runs to compare, or one folder of runs to list. \\[default: runs]"),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a page with the curves of all of them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the runs in a folder, or compare several: what differs, how the losses fell, the scores.

    A run under way is shown with what it has logged so far.
    """
    from rich.console import Console

    from hone.core.errors import RequestError
    from hone.recipes.history import differences, find_runs, read_run

    chosen = folders or [Path("runs")]
    comparing = len(chosen) > 1
    found = [read_run(folder) for folder in chosen] if comparing else find_runs(chosen[0])
    names = _names(found)
    if as_json:
        records = [run.to_dict() for run in found]
        typer.echo(json.dumps(records, ensure_ascii=False))
    else:
        console = Console()
        if not found:
            console.print(f"No runs in {chosen[0]}.", highlight=False, markup=False)
            return
        console.print(_table(found, names))
        if comparing:
            console.print(_differences(names, differences(found)))
        for run in found:
            if run.unreadable_lines:
                typer.echo(
                    f"{run.path}: {run.unreadable_lines} unreadable lines of its metrics are left "
                    "out.",
                    err=True,
                )
    if report is not None:
        from hone.evals.comparison_report import write_comparison

        if not found:
            raise RequestError(f"There are no runs in {chosen[0]} to draw.")
        write_comparison(
            report,
            {name: run.metrics for name, run in zip(names, found, strict=True)},
            {name: run.scores for name, run in zip(names, found, strict=True)},
            differences(found),
        )


def _names(found: "list[PastRun]") -> list[str]:
    """The folders' own names where these tell the runs apart, else the paths."""
    names = [run.path.resolve().name for run in found]
    return names if len(set(names)) == len(names) else [str(run.path) for run in found]


def _table(found: "list[PastRun]", names: list[str]) -> "RenderableType":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold", min_width=16)
    for name in ("kind", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("steps", "loss", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("held out", no_wrap=True, overflow="ellipsis")
    for run, name in zip(found, names, strict=True):
        loss, seconds = run.last("loss"), run.last("seconds")
        table.add_row(
            Text(name),
            run.kind,
            run.state,
            f"{run.steps:,}",
            "-" if loss is None else f"{loss:.3g}",
            "-" if seconds is None else _clock(seconds),
            Text(_held_out(run)),
        )
    return table


def _held_out(run: "PastRun") -> str:
    """The score that says most, or the last held-out loss of a run that has none yet."""
    scores = dict(run.scores)
    loss = run.last("held_out_loss")
    if not scores and loss is not None:
        scores["loss"] = loss
    telling = [name for name in scores if name not in ("loss", "perplexity")] or list(scores)
    return f"{scores[telling[0]]:.3g} {telling[0].partition(',')[0]}" if telling else "-"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _differences(names: list[str], values: dict[str, list[object]]) -> "RenderableType":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not values:
        return Text("Their settings are the same.")
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title="What differs",
        title_justify="left",
    )
    table.add_column("setting", no_wrap=True)
    for name in names:
        table.add_column(Text(name), overflow="fold")
    for name, each in values.items():
        table.add_row(Text(name), *(Text(_setting(value)) for value in each))
    return table


def _setting(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "-" if value is None else str(value)
