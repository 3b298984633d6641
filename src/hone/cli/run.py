"""``hone run``: a recipe, start to finish."""

from pathlib import Path
from typing import Annotated

import typer


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in one.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The run's folder. [default: runs/NAME]")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting: --set train.steps=500. May be repeated."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over: delete what an earlier run left in --out.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json at the end.")] = False,
) -> None:
    """Run a recipe: data, tokenizer, training, evaluation, compression, report.

    A run that was stopped, even killed, goes on where it was with the same command. Stages whose
    settings and inputs did not change are not done again.
    """
    from hone.cli.summary import print_run
    from hone.recipes import load_recipe
    from hone.recipes.run import run_recipe

    loaded = load_recipe(recipe, assignments or ())
    folder = out if out is not None else Path("runs") / loaded.name
    print_run(run_recipe(loaded, folder, fresh=fresh), as_json=as_json)
