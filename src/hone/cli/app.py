"""``hone``: the application that holds the commands, and the way errors leave it."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import hone
from hone.cli.ask import ask
from hone.cli.bench import bench
from hone.cli.chat import chat
from hone.cli.data import data
from hone.cli.demo import demo
from hone.cli.finetune import finetune
from hone.cli.generate import generate
from hone.cli.medusa import medusa
from hone.cli.merge import merge
from hone.cli.plan import plan
from hone.cli.push import push
from hone.cli.quantize import quantize
from hone.cli.run import run
from hone.cli.runs import runs
from hone.cli.serve import serve
from hone.cli.show import show
from hone.core import progress
from hone.core.errors import ConfigError, HoneError, RequestError
from hone.core.files import explain_os_error

app = typer.Typer(
    name="hone",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Small, specialised language models: made, measured, compressed and used.",
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
app.command("merge")(merge)
app.command("show")(show)
app.command("plan")(plan)
app.command("push")(push)
app.command("runs")(runs)
app.command("finetune")(finetune)
app.command("serve")(serve)
app.command("medusa")(medusa)
app.add_typer(data, name="data")
app.add_typer(bench, name="bench")


def main() -> None:
    """Run the command line; exit code 0 done, 1 the job failed, 2 the request was wrong."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    errors = Console(stderr=True)
    progress.show(errors)
    sys.exit(_run(errors))


def _run(errors: Console) -> int:
    try:
        app(standalone_mode=True)
    except (HoneError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader of our output went away (`| head`): there is nobody to tell.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        if os.environ.get("HONE_DEBUG"):
            errors.print_exception()
        if isinstance(error, OSError):
            error = explain_os_error(error, Path(error.filename or "a file"), "use")
        errors.print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        return 2 if isinstance(error, (ConfigError, RequestError)) else 1
    except SystemExit as stop:
        if stop.code == 130:  # Ctrl-C: the library that parses the options has caught it
            errors.print("\nStopped. The same command goes on from what was finished.")
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
