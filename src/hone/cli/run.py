"""``hone run``: a recipe, start to finish."""

from pathlib import Path
from typing import Annotated

import typer

from hone.cli import run_options


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in one.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The run's folder. \\[default: runs/NAME]")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting: --set train.steps=500. May be repeated."),
    ] = None,
    fresh: run_options.Fresh = False,
    as_json: run_options.AsJson = False,
) -> None:
    """Run a recipe: data, tokenizer, training, evaluation, compression, report.

    A recipe with a database makes a Text2SQL specialist; one with `\\[data] text` trains a model on
    text, to continue it, to fill it in, or to repair it.

    A run that was stopped, even killed, goes on where it was with the same command. Stages whose
    settings and inputs did not change are not done again.
    """
    from hone.cli.summary import print_plan, print_run, print_text_run
    from hone.core import progress
    from hone.parallel import join_processes
    from hone.recipes.settings import find_recipe, load_recipe
    from hone.recipes.text_settings import is_text_recipe, load_text_recipe

    path = find_recipe(recipe)
    with join_processes() as processes:
        if not processes.first:
            progress.show(None)
        if is_text_recipe(path):
            from hone.recipes.text_stages import run_text_recipe

            text_recipe = load_text_recipe(path, assignments or ())
            folder = out if out is not None else Path("runs") / text_recipe.name
            run_text_recipe(text_recipe, folder, fresh, processes, print_plan)
            show = print_text_run
        else:
            from hone.recipes.run import run_recipe

            loaded = load_recipe(path, assignments or ())
            folder = out if out is not None else Path("runs") / loaded.name
            run_recipe(loaded, folder, fresh, processes, print_plan)
            show = print_run
        if processes.first:
            show(folder, as_json=as_json)
