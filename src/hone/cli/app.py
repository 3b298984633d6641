"""``hone``: the application that holds the commands, and the way errors leave it."""

import os
import sys
from typing import Annotated

import typer
from rich.console import Console

import hone
from hone.cli.ask import ask
from hone.cli.chat import chat
from hone.cli.demo import demo
from hone.cli.generate import generate
from hone.cli.quantize import quantize
from hone.cli.run import run
from hone.core import progress
from hone.core.errors import ConfigError, HoneError, RequestError

app = typer.Typer(
    name="hone",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Small, specialised language models, from raw data to a served endpoint.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"hone {hone.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error too.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before the command."""
    del version
    if debug:
        os.environ["HONE_DEBUG"] = "1"


app.command("demo")(demo)
app.command("run")(run)
app.command("ask")(ask)
app.command("generate")(generate)
app.command("chat")(chat)
app.command("quantize")(quantize)


def main() -> None:
    """Run the command line; exit code 0 done, 1 the job failed, 2 the request was wrong."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    errors = Console(stderr=True)
    progress.show(errors)
    try:
        app(standalone_mode=True)
    except HoneError as error:
        if os.environ.get("HONE_DEBUG"):
            errors.print_exception()
        errors.print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, (ConfigError, RequestError)) else 1)
    except KeyboardInterrupt:
        errors.print("\nStopped. What was finished is kept: the same command goes on from there.")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing is wrong, and nothing can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
