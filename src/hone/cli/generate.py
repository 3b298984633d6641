"""``hone generate``: prompts in, continuations out."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hone.cli import sampling_options as options

if TYPE_CHECKING:
    from hone.engine import LM, GenerationResult, Grammar


def generate(
    model: Annotated[Path, typer.Argument(help="A checkpoint, a run, or a name on the hub.")],
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Texts to continue; - reads one from standard input.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="JSONL with a `prompt` or `messages` in every line; - reads standard input.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write JSONL here instead of printing.")
    ] = None,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    presence_penalty: options.PresencePenalty = 0.0,
    frequency_penalty: options.FrequencyPenalty = 0.0,
    stop: options.Stop = None,
    seed: options.Seed = None,
    n: Annotated[int, typer.Option("--n", help="Outputs for each prompt.")] = 1,
    json_schema: Annotated[
        Path | None, typer.Option(help="A file with a JSON schema that every output follows.")
    ] = None,
    regex: Annotated[
        str | None, typer.Option(help="A regular expression that every output matches.")
    ] = None,
    speculation: options.Speculation = None,
    dtype: options.DType = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSONL.")] = False,
) -> None:
    """Continue texts, or answer conversations.

    One prompt is printed as it is written; many are computed together.

    A line of JSONL holds the fields of its prompt, `text`, `finish_reason` and `tokens`.
    """
    import hone
    from hone.core.files import atomic_path
    from hone.core.progress import progress
    from hone.engine import EngineOptions

    params = hone.SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        stop=stop or (),
        seed=seed,
        n=n,
        grammar=_grammar(json_schema, regex),
    )
    records = _records(prompts or [], file)
    lm = hone.load(model, dtype, options=EngineOptions(speculation=speculation))
    requests = [_request(lm, record, where) for where, record in records]
    to_terminal = out is None and not as_json and len(requests) * n == 1
    if to_terminal:
        (result,) = lm.generate(requests, params, stream=lambda _, piece: _write(piece))
        _write("\n")
        _summary([result])
        return
    with progress("Generating", len(requests) * n, "outputs") as bar:
        results = lm.generate(requests, params, finished=lambda *_: bar.advance())
    records = [record for record in records for _ in range(n)]
    lines = [
        record | {"text": r.text, "finish_reason": r.finish_reason, "tokens": len(r.token_ids)}
        for (_, record), r in zip(records, results, strict=True)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if out is not None:
        with atomic_path(out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    elif as_json:
        _write(text)
    else:
        for (_, record), result in zip(records, results, strict=True):
            _write(f"> {record.get('prompt', '')}\n{result.text}\n\n")


def _grammar(json_schema: Path | None, regex: str | None) -> "Grammar | None":
    from hone.core.errors import RequestError
    from hone.core.files import explain_os_error
    from hone.engine import Grammar

    if json_schema is not None and regex is not None:
        raise RequestError("Give --json-schema or --regex, not both.")
    if regex is not None:
        return Grammar("regex", regex)
    if json_schema is None:
        return None
    try:
        return Grammar("json", json_schema.read_text(encoding="utf-8"))
    except OSError as error:
        raise explain_os_error(error, json_schema, "read") from error


def _records(prompts: list[str], file: Path | None) -> list[tuple[str, dict[str, Any]]]:
    """Where each request comes from, and its fields."""
    from hone.core.errors import RequestError

    if prompts and file is not None:
        raise RequestError("Give prompts on the command line or --file, not both.")
    if file is not None:
        return _read_jsonl(file)
    if not prompts:
        raise RequestError('Nothing to continue: give a "prompt", or --file prompts.jsonl.')
    if prompts.count("-") > 1:
        raise RequestError("Standard input can be read once; give - once.")
    texts = [_standard_input() if prompt == "-" else prompt for prompt in prompts]
    return [(f"prompt {number}", {"prompt": text}) for number, text in enumerate(texts, 1)]


def _read_jsonl(file: Path) -> list[tuple[str, dict[str, Any]]]:
    from hone.core.errors import DataError

    name = "standard input" if str(file) == "-" else str(file)
    if str(file) == "-":
        text = _standard_input()
    else:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name} is not UTF-8 text (byte {error.start}).") from error
        except OSError as error:
            raise DataError(f"Cannot read {name}: {error.strerror}.") from error
    records = []
    # Not splitlines: a text may hold U+2028, which JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not valid JSON ({error}).") from error
        _check(record, where)
        records.append((where, record))
    if not records:
        raise DataError(f"{name} holds no prompts.")
    return records


def _check(record: Any, where: str) -> None:
    from hone.core.errors import DataError

    if not isinstance(record, dict):
        raise DataError(f'{where}: expected an object like {{"prompt": "..."}}.')
    if ("prompt" in record) == ("messages" in record):
        found = "both" if "prompt" in record else ", ".join(map(repr, record)) or "no field"
        raise DataError(f"{where}: expected one of `prompt` and `messages`, found {found}.")
    if "prompt" in record and not isinstance(record["prompt"], str):
        raise DataError(f"{where}: `prompt` is {record['prompt']!r}; expected a text.")
    if "messages" in record and not isinstance(record["messages"], list):
        raise DataError(f"{where}: `messages` is {record['messages']!r}; expected a list.")


def _request(lm: "LM", record: dict[str, Any], where: str) -> str | list[int]:
    from hone.core.errors import RequestError

    if "prompt" in record:
        return str(record["prompt"])
    try:
        return lm.chat_prompt(record["messages"], record.get("tools"))
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from error


def _standard_input() -> str:
    from hone.core.errors import DataError

    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"Standard input is not UTF-8 text (byte {error.start}).") from error


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _summary(results: list["GenerationResult"]) -> None:
    tokens, seconds = sum(len(r.token_ids) for r in results), max(r.seconds for r in results)
    reasons = {"stop": "the model ended", "length": "--max-tokens or the context was reached"}
    rate = tokens / max(seconds, 1e-9)
    typer.echo(
        f"{tokens} tokens · {rate:.1f} tokens/s · {reasons[results[0].finish_reason]}", err=True
    )
