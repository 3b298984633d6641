"""``hone data``: looking at training data as the model will read it."""

import json
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hone.core.errors import ConfigError

if TYPE_CHECKING:
    from hone.data.samples import Sample
    from hone.text.tokenizer import Tokenizer

data = typer.Typer(no_args_is_help=True, help="Look at training data.")

# Where a terminal has no colours, what is trained stands between these.
_OPEN, _CLOSE = "⟦", "⟧"
_UNBOUNDED = 1 << 30
Run = tuple[str, bool, bool]  # a text, whether it is trained, whether it is a special token


@data.callback()
def _data() -> None:
    """Look at training data."""


@data.command("inspect")
def inspect(
    file: Annotated[
        str, typer.Argument(help="A data file, also .gz or .zst, or hf://org/name[:split].")
    ],
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="A checkpoint, a run, or a name on the hub."),
    ],
    sample: Annotated[
        int, typer.Option("--sample", "-n", min=0, help="Print this sample, from 1; 0 for none.")
    ] = 1,
    train_on: Annotated[
        str, typer.Option("--train-on", help="Answers to train in a conversation: all or last.")
    ] = "all",
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", min=2, help="Positions of a sample; else the model's."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column", help="A column under another name, e.g. prompt=question; repeatable."
        ),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option("--chat-template", help="A Jinja file instead of the model's template."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a file trains: its format, counts of tokens, what is cut or dropped and why.

    Of one sample every token is shown, with what is trained in colour. Only the model's tokenizer
    files are read.
    """
    from hone.core.hub import find_checkpoint
    from hone.core.hub.names import CONFIG_FILES, TOKENIZER_FILES
    from hone.data.conversations import Examples
    from hone.data.sft import choose_template, tokenise
    from hone.text.conversation import Conversations
    from hone.text.tokenizer import Tokenizer

    directory = Path(model).expanduser()
    if not (directory / "tokenizer.json").is_file():
        directory = find_checkpoint(model, files=(*CONFIG_FILES, *TOKENIZER_FILES))
    tokenizer = Tokenizer.load(directory)
    examples = Examples(file, _columns(columns))
    if template is not None:
        writer, why = Conversations(tokenizer, _read(template)), str(template)
    elif examples.use_template:
        writer, why = choose_template(tokenizer, examples.use_tools)
    else:
        writer, why = Conversations(tokenizer), "none: the texts are taken as they are"
    limit = max_length or _longest(directory, tokenizer)
    samples, report = tokenise(examples, writer, limit, train_on)
    if sample > len(samples):
        raise ConfigError(f"--sample is {sample}, and {file} has {len(samples)} samples.")
    found: dict[str, Any] = {
        "file": file,
        "format": str(examples.format),
        "template": why,
        "max_length": limit if limit < _UNBOUNDED else None,
        "train_on": train_on,
        **report.to_dict(),
    }
    runs = _runs(samples[sample - 1], tokenizer) if sample else []
    if as_json:
        if sample:
            found["sample"] = {
                "number": sample,
                "line": report.lines[sample - 1],
                "text": _bracketed(runs),
                "ids": list(samples[sample - 1].ids),
                "labels": list(samples[sample - 1].labels),
            }
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    _print(found, report.sentences())
    if sample:
        _print_sample(runs, sample, report.lines[sample - 1])


def _columns(given: list[str] | None) -> dict[str, str] | None:
    pairs = [item.partition("=") for item in given or ()]
    for name, _, old in pairs:
        if not name or not old:
            raise ConfigError(
                f"--column is {name + '=' + old!r}; write FORMAT=FILE, e.g. prompt=question."
            )
    return {name: old for name, _, old in pairs} or None


def _read(template: Path) -> str:
    try:
        return template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat-template {template} cannot be read: {error}.") from error


def _longest(directory: Path, tokenizer: "Tokenizer") -> int:
    """The positions that the model can read; without bound where its files do not say."""
    from hone.core.files import read_json

    file = directory / "config.json"
    config = read_json(file) if file.is_file() else {}
    length = config.get("max_position_embeddings") if isinstance(config, dict) else None
    lengths = [length] if isinstance(length, int) and length > 1 else []
    if tokenizer.model_max_length:
        lengths.append(tokenizer.model_max_length)
    return min(lengths, default=_UNBOUNDED)


def _print(found: dict[str, Any], reasons: list[str]) -> None:
    from rich.console import Console
    from rich.markup import escape

    share = found["trained_tokens"] / max(found["tokens"], 1)
    length, limit = found["length"], found["max_length"]
    lines = [
        ("format", found["format"]),
        ("template", found["template"]),
        ("examples", f"{found['examples']:,}"),
        ("samples", f"{found['samples']:,}"),
        ("tokens", f"{found['tokens']:,}"),
        ("trained tokens", f"{found['trained_tokens']:,} ({share:.1%})"),
        (
            "length",
            f"half up to {length['p50']:,}, 95% up to {length['p95']:,}, all up to "
            f"{length['max']:,}",
        ),
        ("max length", "unbounded" if limit is None else f"{limit:,}"),
        *((what, reason) for what, _, reason in (text.partition(" ") for text in reasons)),
    ]
    console = Console()
    console.print(f"[bold]{escape(found['file'])}[/]", highlight=False, soft_wrap=True)
    for name, value in lines:
        console.print(f"[bold]{name:<14}[/]  {escape(value)}", highlight=False, soft_wrap=True)


def _print_sample(runs: list[Run], number: int, line: int) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    if console.color_system is None:
        how, text = f"{_OPEN}in brackets{_CLOSE}", Text(_bracketed(runs))
    else:
        how, text = "green", Text()
        for piece, trained, special in runs:
            text.append(
                piece, ("bold green" if trained else "dim") + (" reverse" if special else "")
            )
    console.print(f"\n[bold]Sample {number}[/], line {line}; what is trained is {how}:\n")
    console.print(text, highlight=False, soft_wrap=True)


def _bracketed(runs: list[Run]) -> str:
    pieces = []
    for trained, group in groupby(runs, key=lambda run: run[1]):
        text = "".join(piece for piece, _, _ in group)
        pieces.append(f"{_OPEN}{text}{_CLOSE}" if trained else text)
    return "".join(pieces)


def _runs(sample: "Sample", tokenizer: "Tokenizer") -> list[Run]:
    """The sample's text in pieces."""
    ids = [*sample.ids, sample.labels[-1]]
    trained = [False, *(label >= 0 for label in sample.labels)]
    kinds = [
        (is_trained, index in tokenizer.special_ids)
        for index, is_trained in zip(ids, trained, strict=True)
    ]
    pieces: list[Run] = []
    before, start = "", 0
    for at in range(1, len(ids) + 1):
        if at < len(ids) and kinds[at] == kinds[start] and not kinds[at][1]:
            continue
        # The difference of two texts, because a piece's own lacks what its place adds to it.
        text = tokenizer.decode(ids[:at], False, False)
        pieces.append((text[len(before) :], *kinds[start]))
        before, start = text, at
    return pieces
