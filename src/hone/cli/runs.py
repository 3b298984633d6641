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
        typer.Argument(help="Runs to compare, or one folder of runs to list. [default: runs]"),
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
    if as_json:
        records = [run.to_dict() for run in found]
        typer.echo(json.dumps(records, ensure_ascii=False))
    else:
        console = Console()
        if not found:
            console.print(f"No runs in {chosen[0]}.", highlight=False, markup=False)
            return
        console.print(_table(found))
        if comparing:
            console.print(_differences(found, differences(found)))
    if report is not None:
        from hone.evals.comparison_report import write_comparison

        if not found:
            raise RequestError(f"There are no runs in {chosen[0]} to draw.")
        write_comparison(
            report,
            {str(run.path): run.metrics for run in found},
            {str(run.path): run.scores for run in found},
            differences(found),
        )


def _table(found: "list[PastRun]") -> "RenderableType":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from hone.evals.formatting import duration

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    table.add_column("run", overflow="fold")
    for name in ("kind", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("steps", "loss", "held out", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("score", overflow="fold")
    for run in found:
        seconds = run.last("seconds")
        first = next(iter(run.scores.items()), None)
        table.add_row(
            Text(str(run.path)),
            run.kind,
            run.state,
            f"{run.steps:,}",
            _number(run.last("loss")),
            _number(run.last("held_out_loss")),
            "-" if seconds is None else duration(seconds),
            Text("" if first is None else f"{first[1]:.3g} {first[0]}"),
        )
    return table


def _differences(found: "list[PastRun]", values: dict[str, list[object]]) -> "RenderableType":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not values:
        return Text("Their settings are the same.")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="What differs", title_justify="left")
    table.add_column("setting", overflow="fold")
    for run in found:
        table.add_column(Text(run.path.name), overflow="fold")
    for name, each in values.items():
        table.add_row(Text(name), *(Text("-" if value is None else str(value)) for value in each))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
