"""``hone ask``: a question in, SQL and rows out."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def ask(
    model: Annotated[Path, typer.Argument(help="A run, or a checkpoint trained for the database.")],
    question: Annotated[str, typer.Argument(help="The question, in Korean or English.")],
    db: Annotated[
        Path | None,
        typer.Option(help="The SQLite database; by default the one that the run was made for."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Show at most so many rows.")] = 20,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds a query may take.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask a database a question.

    The database is opened for reading only: whatever the model writes, nothing can change. A query
    is stopped after --timeout seconds, and at most --rows rows are read.
    """
    from rich.console import Console

    import hone
    from hone.core.errors import HoneError
    from hone.evals.tables import rows_table, sql_text
    from hone.recipes.assistant import Assistant
    from hone.recipes.run_data import run_database, run_glossary
    from hone.sql import open_database, read_schema

    path = db if db is not None else run_database(model)
    with open_database(path) as database:
        assistant = Assistant(hone.load(model), database, read_schema(path, run_glossary(model)))
        answer = assistant.ask(question, row_cap=rows, timeout_s=timeout)
    if as_json:
        fields: dict[str, Any] = {"question": question, "sql": answer.sql, "error": answer.error}
        if answer.result is not None:
            fields |= {
                "columns": answer.result.columns,
                "rows": answer.result.rows,
                "truncated": answer.result.truncated,
            }
        typer.echo(json.dumps(fields, ensure_ascii=False, default=repr))
    else:
        console = Console()
        console.print(sql_text(answer.sql))
        if answer.result is not None:
            console.print(rows_table(answer.result, most_rows=rows))
    if answer.error is not None:
        raise HoneError(answer.error)
