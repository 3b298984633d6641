"""The options that commands which fill a run's folder have in common."""

from typing import Annotated

import typer

Fresh = Annotated[
    bool, typer.Option("--fresh", help="Start over: delete what an earlier run left in --out.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print results.json at the end.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        help="A column by its name: prompt=question. Repeatable; others are then not read.",
    ),
]
