"""``hone chat``: a conversation on the terminal."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hone.cli import sampling_options as options

if TYPE_CHECKING:
    from hone.engine import LM, SamplingParams

_HELP = "/reset forgets the conversation · /exit or Ctrl-D ends · Ctrl-C stops an answer"


def chat(
    model: Annotated[Path, typer.Argument(help="A checkpoint with a chat template, or a run.")],
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    max_tokens: options.MaxTokens = 1024,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    stop: options.Stop = None,
    seed: options.Seed = None,
    speculation: options.Speculation = None,
    dtype: options.DType = "auto",
) -> None:
    """Talk with a model that has a chat template.

    /reset forgets the conversation, /exit or Ctrl-D ends it.

    Ctrl-C stops an answer half way.
    """
    import hone
    from hone.core.errors import RequestError
    from hone.engine import EngineOptions

    params = hone.SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stop or (),
        seed=seed,
    )
    lm = hone.load(model, dtype, options=EngineOptions(speculation=speculation))
    start = [] if system is None else [{"role": "system", "content": system}]
    # A model without a template, or one that refuses a system message, says so now.
    lm.chat_prompt([*start, {"role": "user", "content": "?"}])
    if sys.stdin.isatty():
        # Imported for its effect: input() gets line editing and a history.
        import readline  # noqa: F401

        typer.echo(_HELP, err=True)
    history = list(start)
    while (line := _read_line()) is not None:
        if line == "/exit":
            return
        if line == "/reset":
            history = list(start)
            typer.echo("The conversation is forgotten.", err=True)
        elif line.startswith("/"):
            typer.echo(f"There is no command {line.split()[0]}. {_HELP}", err=True)
        elif line:
            history.append({"role": "user", "content": line})
            try:
                answer = _answer(lm, history, params)
            except RequestError as error:
                history.pop()
                typer.echo(f"{error} /reset starts over.", err=True)
            else:
                history.append({"role": "assistant", "content": answer})


def _read_line() -> str | None:
    """What the user typed; None at the end of input."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            typer.echo(f"\n{_HELP}", err=True)


def _answer(lm: "LM", history: list[dict[str, str]], params: "SamplingParams") -> str:
    """Print the answer as it is written; what was written before Ctrl-C counts as the answer."""
    pieces: list[str] = []

    def show(_: int, piece: str) -> None:
        pieces.append(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()

    try:
        lm.generate(lm.chat_prompt(history), params, stream=show)
    except KeyboardInterrupt:
        typer.echo(" [stopped]", err=True)
    sys.stdout.write("\n")
    return "".join(pieces)
