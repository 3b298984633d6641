"""``hone medusa``: heads that let a model write several tokens at a time."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hone.cli import run_options


def medusa(
    model: Annotated[str, typer.Argument(help="A checkpoint, a run, or a name on the hub.")],
    data: Annotated[
        str, typer.Option("--data", "-d", help="Texts like those that the model will write.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The run's folder.")],
    heads: Annotated[
        int | None, typer.Option(min=1, max=16, help="Tokens to guess ahead. \\[default: 4]")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(min=0, help="Times that the data is seen.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, instead of epochs.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--lr", help="The peak learning rate.")
    ] = None,
    columns: run_options.Columns = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other choice: --set max_length=512. Repeatable."),
    ] = None,
    fresh: run_options.Fresh = False,
    as_json: run_options.AsJson = False,
) -> None:
    """Train Medusa heads: they guess the next few tokens, and the model checks them in one pass.

    The model stays as it is, and writes what it wrote before, sooner. How much sooner depends on
    how often the heads are right, which is measured on texts that they did not see. Then serve it
    with --speculation medusa:OUT.
    """
    from rich.console import Console

    from hone.cli.finetune import read_columns
    from hone.core.config import override, parse
    from hone.recipes.medusa import MedusaOptions, MedusaRun

    given: dict[str, Any] = {
        "model": model,
        "data": data,
        "heads": heads,
        "epochs": epochs,
        "steps": steps,
        "learning_rate": learning_rate,
        "columns": read_columns(columns or []),
    }
    given = override({k: v for k, v in given.items() if v is not None}, assignments or ())
    options = parse(MedusaOptions, given, "hone medusa", assignments or ())
    run = MedusaRun(options, out, fresh)
    for note in run.data.notes:
        Console(stderr=True).print(note, highlight=False, markup=False, soft_wrap=True)
    results = run.run()
    if as_json:
        typer.echo((out / "results.json").read_text(encoding="utf-8"), nl=False)
    else:
        _show(results, out, Console())


def _show(results: dict[str, Any], out: Path, console: Any) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("right on held-out texts")
    for name in ("first guess", "second", "third"):
        table.add_column(name, justify="right")
    for number, shares in enumerate(results["accuracies"], 1):
        table.add_row(f"head {number}", *(f"{share:.1%}" for share in shares[:3]))
    table.add_row("the commonest token", f"{results['commonest']:.1%}", "", "")
    console.print(table)
    expected = ", ".join(
        f"{tokens:.2f} with {nodes}" for nodes, tokens in results["expected_tokens"].items()
    )
    console.print(f"Tokens of a pass to expect, by guesses: {expected}.", highlight=False)
    console.print(f"The heads are in {out / results['result']}.", highlight=False, soft_wrap=True)
