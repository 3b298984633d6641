"""What the terminal shows at the end of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from hone.plan import Plan


def print_plan(plan: "Plan") -> None:
    """Show what training is predicted to take."""
    from rich.console import Console

    from hone.evals.formatting import quantity, size

    Console(stderr=True).print(
        f"Plan: {quantity(plan.parameters)} weights; {size(plan.peak)} of "
        f"{size(plan.device.usable)} for this run.",
        highlight=False,
    )


def print_run(run: Path, as_json: bool = False) -> None:
    """Show the samples, the scores and the next commands of a finished run."""
    results = run / "results.json"
    if as_json:
        typer.echo(results.read_text(encoding="utf-8"), nl=False)
        return
    from rich.console import Console

    from hone.core.files import read_json
    from hone.evals.formatting import duration
    from hone.evals.tables import accuracy_table, compression_table, sample_answers
    from hone.recipes.run import run_variants
    from hone.recipes.stages import next_commands

    console = Console()
    variants = run_variants(run)
    console.print()
    if variants[0].records:
        console.print(sample_answers(variants[0].records))
        console.print(accuracy_table(variants[0].records))
        if len(variants) > 1:
            console.print(compression_table(variants))
    found = read_json(results)
    seconds = found["seconds"]
    line = f"Training took {duration(seconds['train'])}, the whole run {duration(seconds['total'])}"
    console.print(f"{line}{_memory(found)}.", highlight=False)
    console.print("\n[bold]Next[/]")
    for command in next_commands(run, variants[0].records):
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"The report is {run / 'report.html'}.", highlight=False, soft_wrap=True)


def print_text_run(run: Path, as_json: bool = False) -> None:
    """Show the scores of a model that was trained on text."""
    results = run / "results.json"
    if as_json:
        typer.echo(results.read_text(encoding="utf-8"), nl=False)
        return
    from rich.console import Console

    from hone.core.files import read_json
    from hone.evals.formatting import duration, quantity

    console, found = Console(), read_json(results)
    for name, pair in found["scores"].items():
        console.print(f"{name}, held out: [bold]{pair['after']:.4g}[/]", highlight=False)
    trained = found["train"]
    line = f"Trained {trained['steps']:,} steps, {quantity(trained['tokens'])} tokens, in "
    console.print(f"{line}{duration(trained['seconds'])}{_memory(found)}.", highlight=False)
    console.print(f"The report is {run / 'report.html'}.", highlight=False, soft_wrap=True)


def _memory(results: Mapping[str, Any]) -> str:
    """What training held beside what was predicted, as the end of a sentence."""
    from hone.evals.formatting import size

    memory = results.get("memory", {})
    predicted, measured = memory.get("predicted_bytes"), memory.get("measured_bytes")
    if not measured:
        return ""
    return f"; memory {size(measured)}" + (f", predicted {size(predicted)}" if predicted else "")
