"""``hone finetune``: a model, a file, and a tuned model."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hone.cli import run_options

if TYPE_CHECKING:
    from hone.recipes.finetune import Tuning


class Method(StrEnum):
    """What is trained."""

    FULL = "full"
    LORA = "lora"
    QLORA = "qlora"


def finetune(
    model: Annotated[str, typer.Argument(help="A checkpoint, a run, or a name on the hub.")],
    data: Annotated[
        str, typer.Option("--data", "-d", help="A data file, or hf://org/name[:split].")
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The run's folder. \\[default: runs/MODEL-DATA]"),
    ] = None,
    method: Annotated[
        Method | None,
        typer.Option(help="What is trained: all weights, or small updates. \\[default: what fits]"),
    ] = None,
    held_out_data: Annotated[
        str | None, typer.Option("--held-out-data", help="A file to score on only.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(min=0, help="Times that the data is seen.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, instead of epochs.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--lr", help="The peak learning rate.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=2, help="Positions of a sample.")
    ] = None,
    train_on: Annotated[
        str, typer.Option("--train-on", help="Answers of a conversation to train: all or last.")
    ] = "all",
    memory: Annotated[
        str | None, typer.Option(help="What the run may take, e.g. 8GB. \\[default: what is free]")
    ] = None,
    columns: run_options.Columns = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other choice: --set rank=32. Repeatable."),
    ] = None,
    fresh: run_options.Fresh = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Choose and plan, and stop before anything is run.")
    ] = False,
    as_json: run_options.AsJson = False,
) -> None:
    """Tune a model on a file: format, template, lengths, batch, learning rate and memory savers are
    chosen, each with its reason; then the model is scored, trained, and scored again.

    The task follows from the columns: conversations, prompts with completions, instructions, plain
    text, texts with labels, words with tags, or pairs of sentences. The same command goes on where
    a stopped run was.
    """
    from rich.console import Console

    from hone.core import progress
    from hone.core.config import override, parse
    from hone.parallel import join_processes
    from hone.plan.devices import read_size
    from hone.recipes.finetune import FinetuneOptions, Tuning

    given: dict[str, Any] = {
        "model": model,
        "data": data,
        "method": method.value if method else None,
        "held_out_data": held_out_data,
        "epochs": epochs,
        "steps": steps,
        "learning_rate": learning_rate,
        "max_length": max_length,
        "train_on": train_on,
        "memory": None if memory is None else read_size(memory, "--memory"),
        "columns": read_columns(columns or []),
    }
    given = override({k: v for k, v in given.items() if v is not None}, assignments or ())
    options = parse(FinetuneOptions, given, "hone finetune", assignments or ())
    folder = out if out is not None else Path("runs") / _name(model, data)
    with join_processes() as processes:
        if not processes.first:
            progress.show(None)
        tuning = Tuning(options, folder, fresh)
        if processes.first:
            _show_choices(tuning, Console(stderr=True))
        if dry_run:
            return
        tuning.run(processes)
        if not processes.first:
            return
    if as_json:
        typer.echo((folder / "results.json").read_text(encoding="utf-8"), nl=False)
    else:
        _show_results(tuning, Console())


def read_columns(pairs: list[str]) -> dict[str, str]:
    """What ``--column`` says; raises :class:`ConfigError` where that is not name=name."""
    from hone.core.errors import ConfigError

    found = {}
    for pair in pairs:
        name, sign, own = pair.partition("=")
        if not sign or not name or not own:
            raise ConfigError(f'--column "{pair}" is not of the form prompt=question.')
        found[name] = own
    return found


def _name(model: str, data: str) -> str:
    """A folder's name from what is tuned on what."""
    first, second = Path(model.rstrip("/")).name, Path(data).name.partition(".")[0]
    if first == "checkpoint":
        first = Path(model.rstrip("/")).parent.name
    return f"{first}-{second}".replace(":", "-")


def _show_choices(tuning: "Tuning", console: Any) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("choice", "value", "reason"):
        table.add_column(name, overflow="fold")
    for row in tuning.choices.rows():
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    for note in tuning.data.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def _show_results(tuning: "Tuning", console: Any) -> None:
    from rich import box
    from rich.table import Table

    from hone.core.files import read_json
    from hone.evals.formatting import duration, size
    from hone.recipes.finetune.report import next_commands

    results = read_json(tuning.out / "results.json")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("held out")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    for name, pair in results["scores"].items():
        cells = ("-" if pair[when] is None else f"{pair[when]:.4g}" for when in ("before", "after"))
        table.add_row(name, *cells)
    console.print()
    console.print(table)
    trained, memory = results["train"], results["memory"]
    predicted, measured = memory["predicted_bytes"], memory["measured_bytes"]
    line = f"Trained {trained['steps']:,} steps in {duration(trained['seconds'])}"
    if measured:
        line += f"; memory {size(measured)}, predicted {size(predicted)}"
    console.print(line + ".", highlight=False)
    skipped = {
        key.removeprefix("skipped_"): trained[key]
        for key in trained
        if key.startswith("skipped_") and trained[key]
    }
    if skipped:
        console.print("Skipped steps: " + json.dumps(skipped), highlight=False, markup=False)
    console.print("\n[bold]Next[/]")
    for command in next_commands(tuning):
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"The report is {tuning.out / 'report.html'}.", highlight=False, soft_wrap=True)
