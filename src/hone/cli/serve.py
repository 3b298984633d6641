"""``hone serve``: a model behind the API that OpenAI's clients speak."""

import asyncio
import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hone.cli import sampling_options

if TYPE_CHECKING:
    from hone.serve.info import ModelInfo

_ENGINE, _LIMITS = "Engine", "Limits"
_LOCAL = ("127.0.0.1", "localhost", "::1")


class Batching(StrEnum):
    """When requests that wait may join those that run."""

    CONTINUOUS = "continuous"
    DYNAMIC = "dynamic"
    STATIC = "static"


class Choice(StrEnum):
    """Whether a way of computing is taken; auto measures whether it is the faster one."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


def serve(
    model: Annotated[str, typer.Argument(help="A checkpoint, a run, or a name on the hub.")],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any that is free.", min=0, max=65535)] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model. \\[default: its folder's name]")
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help="A file with a key per line, as `name: key` or alone. HONE_API_KEYS has more."
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(help="An origin whose pages may ask, or *; may be given several times."),
    ] = None,
    db: Annotated[
        Path | None,
        typer.Option("--db", help="A SQLite file, for the database pane of a Text2SQL model."),
    ] = None,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Log what is asked and answered.")
    ] = False,
    drain: Annotated[
        float,
        typer.Option(help="Seconds for running requests to end when the server is stopped.", min=0),
    ] = 30.0,
    hang: Annotated[
        float,
        typer.Option(
            help="Seconds without a sign of life after which a working engine is started again.",
            min=1,
        ),
    ] = 300.0,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=PATH of a LoRA adapter that requests may choose; may be given several "
            "times.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    policy: Annotated[
        Batching, typer.Option(help="When requests may join.", rich_help_panel=_ENGINE)
    ] = Batching.CONTINUOUS,
    max_running: Annotated[
        int, typer.Option(help="Outputs that are computed together.", rich_help_panel=_ENGINE)
    ] = 64,
    max_batch_tokens: Annotated[
        int, typer.Option(help="Tokens of one step.", rich_help_panel=_ENGINE)
    ] = 2048,
    cache_memory: Annotated[
        str | None,
        typer.Option(
            help="Memory for keys and values, such as 2GB. \\[default: what is needed, at most a "
            "third of what is free]",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    cache_dtype: Annotated[
        str,
        typer.Option(
            help="auto, float32, bfloat16, float16 or int8: keys and values.",
            rich_help_panel=_ENGINE,
        ),
    ] = "auto",
    block_size: Annotated[
        int, typer.Option(help="Tokens of a block of the cache.", rich_help_panel=_ENGINE)
    ] = 16,
    speculation: Annotated[
        str | None,
        typer.Option(
            help="ngram, draft:PATH or medusa:PATH: guess tokens ahead.", rich_help_panel=_ENGINE
        ),
    ] = None,
    compile_: Annotated[
        Choice,
        typer.Option(
            "--compile",
            help="Compile the step that brings one token of each output; never in exact engines.",
            rich_help_panel=_ENGINE,
        ),
    ] = Choice.OFF,
    int8_activations: Annotated[
        Choice,
        typer.Option(help="Int8 layers round what they read to int8 too.", rich_help_panel=_ENGINE),
    ] = Choice.OFF,
    dtype: sampling_options.DType = "auto",
    device: Annotated[
        str, typer.Option(help="cpu or cuda: where to compute.", rich_help_panel=_ENGINE)
    ] = "cpu",
    exact: Annotated[
        bool | None,
        typer.Option(
            help="No output depends on what else is computed; slower. \\[default: for small "
            "models]",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Of the computation. \\[default: as torch chooses]",
            min=1,
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    max_requests: Annotated[
        int, typer.Option(help="At once, those that wait included.", rich_help_panel=_LIMITS)
    ] = 1024,
    max_requests_per_key: Annotated[
        int | None, typer.Option(help="At once, of one key.", rich_help_panel=_LIMITS)
    ] = None,
    max_requests_per_minute: Annotated[
        int | None, typer.Option(help="Of one key.", rich_help_panel=_LIMITS)
    ] = None,
    max_tokens_per_minute: Annotated[
        int | None,
        typer.Option(help="Of one key, read and written.", rich_help_panel=_LIMITS),
    ] = None,
    max_prompt: Annotated[
        int | None, typer.Option(help="Tokens of a prompt.", rich_help_panel=_LIMITS)
    ] = None,
    max_output: Annotated[
        int | None, typer.Option(help="Tokens of an output.", rich_help_panel=_LIMITS)
    ] = None,
    max_samples: Annotated[
        int, typer.Option(help="Outputs of one request.", rich_help_panel=_LIMITS)
    ] = 128,
    max_seconds: Annotated[
        float, typer.Option(help="For one request.", rich_help_panel=_LIMITS)
    ] = 600.0,
    max_body: Annotated[
        str, typer.Option(help="Size of one request, such as 8MB.", rich_help_panel=_LIMITS)
    ] = "8MB",
) -> None:
    """Serve a model to OpenAI's clients, with a page to try it at /.

    Ctrl-C or SIGTERM ends what runs, then stops; a second one stops at once.
    """
    from hone.core.errors import ConfigError, HoneError

    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise HoneError('The server needs more packages: pip install "hone-llm[serve]".') from error
    from hone.engine.options import EngineOptions
    from hone.plan.devices import read_size
    from hone.recipes.pane import AskedDatabase
    from hone.recipes.run_data import run_glossary, run_questions
    from hone.serve import lifecycle
    from hone.serve.app import AppSettings, create_app
    from hone.serve.client import EngineClient, Patience
    from hone.serve.keys import KeyRing
    from hone.serve.limits import Bounds
    from hone.serve.places import text_directory
    from hone.serve.wire import Settings
    from hone.text.conversation import Conversations
    from hone.text.tokenizer import Tokenizer

    options = EngineOptions(
        max_running=max_running,
        max_batch_tokens=max_batch_tokens,
        cache_bytes=None if cache_memory is None else read_size(cache_memory, "--cache-memory"),
        cache_dtype=cache_dtype,
        block_size=block_size,
        policy=policy.value,
        speculation=speculation,
        compile=compile_.value,
    )
    bounds = Bounds(
        requests=max_requests,
        requests_per_key=max_requests_per_key,
        requests_per_minute=max_requests_per_minute,
        tokens_per_minute=max_tokens_per_minute,
        prompt_tokens=max_prompt,
        output_tokens=max_output,
        samples=max_samples,
        seconds=max_seconds,
        body_bytes=read_size(max_body, "--max-body"),
    )
    keys = KeyRing.load(api_keys)
    if db is not None and not db.is_file():
        raise ConfigError(f"--db is {db}, and there is no such file; give a SQLite file.")
    directory = text_directory(model)
    tokenizer = Tokenizer.load(directory)
    listener = lifecycle.listen(host, port)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("hone").setLevel(logging.INFO)
    if host not in _LOCAL and not keys:
        logging.getLogger("hone.serve").warning(
            "Whoever reaches %s may use the model; --api-keys FILE asks for a key.", host
        )
    engine = {
        "model": model,
        "name": name or _name(model),
        "options": options,
        "dtype": dtype,
        "device": device,
        "exact": exact,
        "adapters": _adapters(adapter or []),
        "int8_activations": "auto" if int8_activations == "auto" else int8_activations == "on",
    }
    client = EngineClient(Settings(arguments=engine, threads=threads), Patience(hang=hang))
    app = create_app(
        AppSettings(keys, bounds, tuple(cors or ()), log_requests, _sampling(directory)),
        client,
        tokenizer,
        Conversations(tokenizer),
        None
        if db is None
        else AskedDatabase(db, run_glossary(Path(model)), run_questions(Path(model))),
    )
    typer.echo(f"Loading {model} …", err=True)

    def ready(info: "ModelInfo") -> None:
        typer.echo(f"Serving {_described(info)} at {lifecycle.url(listener)}")

    asyncio.run(lifecycle.serve(app, client, listener, drain, ready, bounds.body_bytes))


def _name(model: str) -> str:
    """The last part of a path; of a name on the hub all but the revision."""
    if model.startswith("hf://"):
        return model.removeprefix("hf://").partition("@")[0]
    return Path(model).expanduser().resolve().name


def _sampling(directory: Path) -> dict[str, Any]:
    """What holds where a request says nothing."""
    from hone.core.errors import CheckpointError
    from hone.core.files import read_json
    from hone.serve.openai.service import sampling_defaults

    file = directory / "generation_config.json"
    values = read_json(file) if file.is_file() else {}
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} is not a JSON object.")
    return sampling_defaults(values)


def _adapters(given: list[str]) -> dict[str, str]:
    from hone.core.errors import ConfigError

    found: dict[str, str] = {}
    for item in given:
        name, equals, path = item.partition("=")
        if not equals or not name or not path:
            raise ConfigError(f"--adapter is {item!r}; write it as NAME=PATH.")
        if name in found:
            raise ConfigError(f"--adapter names {name!r} twice; give each its own name.")
        found[name] = path
    return found


def _described(info: "ModelInfo") -> str:
    about = [info.dtype if info.quantization is None else f"{info.quantization}, {info.dtype}"]
    if info.cache_bytes:
        about.append(f"cache {info.cache_bytes / 1e9:.2f} GB = {info.cache_tokens:,} tokens")
    if info.adapters:
        about.append(f"adapters {', '.join(info.adapters)}")
    if info.speculation is not None:
        about.append(f"speculation {info.speculation}")
    return f"{info.name} ({' · '.join(about)})"
