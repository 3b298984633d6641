"""``hone demo``: the main job on built-in data."""

from pathlib import Path
from typing import Annotated

import typer

from hone.cli import run_options


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="The run's folder.")] = Path("runs/demo"),
    fresh: run_options.Fresh = False,
    as_json: run_options.AsJson = False,
) -> None:
    """From a database to a model that answers questions about it, in minutes, on a CPU.

    Makes a sample shop database, writes Korean and English questions about it, trains a tokenizer
    and a small model from scratch, scores it on questions that it has not seen, compresses it, and
    writes a report. Stopped half way, it goes on with the same command.
    """
    from hone.cli.run import run

    run("demo", out=out, assignments=None, fresh=fresh, as_json=as_json)
