"""``hone plan``: what a job takes, before anything of it exists."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hone.models import ModelConfig
    from hone.plan import Device


class Mode(StrEnum):
    """What the model is used for."""

    TRAIN = "train"
    SERVE = "serve"


_TRAIN, _SERVE, _DEVICE, _LAYOUT = "Training", "Serving", "Device", "Several devices"


def plan(
    model: Annotated[
        str, typer.Argument(help="A checkpoint, a run, a config.json, or a name on the hub.")
    ],
    mode: Annotated[Mode, typer.Option(help="What it is for.")] = Mode.TRAIN,
    batch: Annotated[
        int, typer.Option(help="Sequences of a micro-batch.", rich_help_panel=_TRAIN)
    ] = 8,
    length: Annotated[
        int | None,
        typer.Option(
            help="Tokens of each sequence. \\[default: 1024, or the model's context if less]",
            rich_help_panel=_TRAIN,
        ),
    ] = None,
    source_length: Annotated[
        int,
        typer.Option(
            help="Tokens of each source, for an encoder-decoder; 0 for as many.",
            rich_help_panel=_TRAIN,
        ),
    ] = 0,
    micro_batches: Annotated[
        int, typer.Option(help="Micro-batches of a step.", rich_help_panel=_TRAIN)
    ] = 1,
    trained_share: Annotated[
        float,
        typer.Option(help="Share of the tokens that are scored.", rich_help_panel=_TRAIN),
    ] = 1.0,
    tokens: Annotated[
        str,
        typer.Option(
            help="Tokens of the whole run, such as 500M or 2G, for its time and cost.",
            rich_help_panel=_TRAIN,
        ),
    ] = "",
    method: Annotated[
        str, typer.Option(help="full, lora or qlora.", rich_help_panel=_TRAIN)
    ] = "full",
    optimizer: Annotated[
        str,
        typer.Option(
            help="adamw, muon, adamw_8bit, paged_adamw, paged_adamw_8bit or adafactor.",
            rich_help_panel=_TRAIN,
        ),
    ] = "adamw",
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, bf16 or fp16; auto is fp32 on a CPU and bf16 on a GPU.",
            rich_help_panel=_TRAIN,
        ),
    ] = "auto",
    checkpointing: Annotated[
        str,
        typer.Option(
            help="What the backward pass computes again: none, blocks or selective.",
            rich_help_panel=_TRAIN,
        ),
    ] = "none",
    every: Annotated[
        int, typer.Option(help="With blocks: how many are one piece.", rich_help_panel=_TRAIN)
    ] = 1,
    offload: Annotated[
        bool,
        typer.Option("--offload", help="Activations wait in host memory.", rich_help_panel=_TRAIN),
    ] = False,
    ema: Annotated[
        bool, typer.Option("--ema", help="A mean of the weights is kept.", rich_help_panel=_TRAIN)
    ] = False,
    rank: Annotated[int, typer.Option(help="Of LoRA.", rich_help_panel=_TRAIN)] = 16,
    targets: Annotated[
        str,
        typer.Option(help="Layers with an adapter, such as q_proj,v_proj.", rich_help_panel=_TRAIN),
    ] = "all-linear",
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a request, prompt and answer; 0 for the model's own context. "
            "\\[default: 2048, or that context if less]",
            rich_help_panel=_SERVE,
        ),
    ] = None,
    requests: Annotated[
        int, typer.Option(help="Requests at the same time.", rich_help_panel=_SERVE)
    ] = 1,
    weights: Annotated[
        str,
        typer.Option(
            help="float32, bfloat16, float16, int8 or nf4; auto is as stored.",
            rich_help_panel=_SERVE,
        ),
    ] = "auto",
    cache: Annotated[
        str,
        typer.Option(
            help="Keys and values: float32, bfloat16, float16 or int8; auto is the dtype of the "
            "arithmetic.",
            rich_help_panel=_SERVE,
        ),
    ] = "auto",
    prefill: Annotated[
        int,
        typer.Option(
            help="Tokens of prompts at a time; 0 for a whole context.", rich_help_panel=_SERVE
        ),
    ] = 0,
    device: Annotated[
        str,
        typer.Option(
            help="cpu, or b200, h200, h100, a100-80, a100-40, l40s, l4, rtx-4090, rtx-3090, t4.",
            rich_help_panel=_DEVICE,
        ),
    ] = "cpu",
    memory: Annotated[
        str, typer.Option(help="Its memory, such as 24GB.", rich_help_panel=_DEVICE)
    ] = "",
    bandwidth: Annotated[
        str, typer.Option(help="Of its memory, such as 40GB/s.", rich_help_panel=_DEVICE)
    ] = "",
    flops: Annotated[
        str,
        typer.Option(
            help="Operations per second in matrix products, such as 300G.", rich_help_panel=_DEVICE
        ),
    ] = "",
    efficiency: Annotated[
        float,
        typer.Option(
            help="Share of its rates that is reached; 0 for what hone usually reaches.",
            rich_help_panel=_DEVICE,
        ),
    ] = 0.0,
    price_per_hour: Annotated[
        float, typer.Option(help="Of one device.", rich_help_panel=_DEVICE)
    ] = 0.0,
    data: Annotated[int, typer.Option(help="Copies of the model.", rich_help_panel=_LAYOUT)] = 1,
    zero: Annotated[
        int,
        typer.Option(
            help="What copies share: 1 optimizer state, 2 gradients too, 3 weights too.",
            rich_help_panel=_LAYOUT,
        ),
    ] = 0,
    tensor: Annotated[
        int, typer.Option(help="Parts of every matrix.", rich_help_panel=_LAYOUT)
    ] = 1,
    pipeline: Annotated[
        int, typer.Option(help="Stages of consecutive blocks.", rich_help_panel=_LAYOUT)
    ] = 1,
    context_parallel: Annotated[
        int, typer.Option(help="Parts of every sequence.", rich_help_panel=_LAYOUT)
    ] = 1,
    picture: Annotated[
        Path | None, typer.Option(help="Draw it to this file: .svg, .png or .pdf.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a job takes: memory by parts, speed, cost, and what to change if it does not fit.

    Only config.json is read and nothing is computed with, so this is quick for a model of any size.
    Whether it fits is an answer and no failure: the exit code is 0 either way.
    Tensor, pipeline and context parallelism are planned only: hone does not train with them yet.
    """
    import json

    from hone.plan import Layout, Lora, ServeJob, TrainJob, customised, find_device
    from hone.plan import plan as make_plan
    from hone.plan.devices import read_size

    config, where = _config(model)
    chosen: Device = customised(
        find_device(device),
        read_size(memory, "--memory") if memory else None,
        read_size(bandwidth, "--bandwidth", "a rate such as 40GB/s") if bandwidth else None,
        read_size(flops, "--flops", "a rate such as 300G") if flops else None,
        _at_least_zero(price_per_hour, "--price-per-hour"),
    )
    job: TrainJob | ServeJob
    if mode is Mode.SERVE:
        kind = _stored(config) if weights == "auto" else weights
        context = _default(2048, config) if context is None else context
        job = ServeJob(
            context=context or config.max_position_embeddings,
            requests=requests,
            weights=kind,  # type: ignore[arg-type]
            cache=_cache(kind, chosen) if cache == "auto" else cache,  # type: ignore[arg-type]
            prefill=prefill,
            tensor=tensor,
        )
    else:
        length = _default(1024, config) if length is None else length
        chosen_precision = ("bf16" if chosen.cuda else "fp32") if precision == "auto" else precision
        job = TrainJob.of_batch(
            batch,
            length,
            source_lengths=(source_length,) * batch if source_length else (),
            trained=_scored(trained_share, batch * length),
            micro_batches=micro_batches,
            tokens=read_size(tokens, "--tokens", "a number such as 500M or 2G") if tokens else 0,
            method=method,
            optimizer=optimizer,
            precision=chosen_precision,
            activation_checkpointing=checkpointing,
            checkpointed_blocks=every,
            offload_activations=offload,
            ema=0.999 if ema else 0.0,
            lora=Lora(rank=rank, targets=tuple(t.strip() for t in targets.split(",") if t.strip())),
            layout=Layout(
                data=data, zero=zero, tensor=tensor, pipeline=pipeline, context=context_parallel
            ),
        )
    made = make_plan(config, job, chosen, efficiency=_share(efficiency))
    if picture is not None:
        from hone.plan.picture import draw

        draw(made, picture, f"{config.model_type}, {mode.value}")
    if as_json:
        typer.echo(json.dumps({"model": where} | made.to_dict(), ensure_ascii=False))
        return
    from rich.console import Console
    from rich.markup import escape

    from hone.plan.show import render

    console = Console()
    title = f"[bold]{escape(where)}[/]: {config.model_type}, {mode.value} on {chosen.name}"
    console.print(title, highlight=False, soft_wrap=True)
    console.print(render(made), highlight=False, soft_wrap=True)
    if picture is not None:
        console.print(f"The picture is {picture}.", highlight=False, soft_wrap=True)


def _config(model: str) -> "tuple[ModelConfig, str]":
    """The configuration that ``model`` means, and where it was read."""
    from hone.core.errors import CheckpointError, DataError
    from hone.core.files import read_json
    from hone.core.hub import CONFIG_FILES, find_checkpoint
    from hone.models import load_config, read_config

    file = Path(model).expanduser()
    if file.suffix != ".json" or not file.is_file():
        directory = find_checkpoint(model, files=CONFIG_FILES)
        return load_config(directory), str(directory)
    try:
        values = read_json(file)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(values).__name__}.")
    return read_config(values, str(file)), str(file)


def _default(usual: int, config: "ModelConfig") -> int:
    """``usual`` tokens, or as many as the model was made for where these are less."""
    from hone.plan.checks import longest_text

    return min(usual, longest_text(config) or usual)


def _stored(config: "ModelConfig") -> str:
    """The format that a checkpoint's weights are stored in."""
    quantization = config.quantization_config or {}
    if quantization.get("load_in_4bit") or quantization.get("_load_in_4bit"):
        return "nf4"
    if quantization:
        return "int8"
    return config.dtype if config.dtype in ("float32", "float16") else "bfloat16"


def _cache(weights: str, device: "Device") -> str:
    if not device.cuda or weights == "float32":
        return "float32"
    return "float16" if weights == "float16" else "bfloat16"


def _scored(share: float, tokens: int) -> int:
    from hone.core.errors import ConfigError

    if not 0 < share <= 1:
        raise ConfigError(f"--trained-share is {share:g}; it must be above 0 and at most 1.")
    return max(1, round(share * tokens))


def _share(efficiency: float) -> float | None:
    from hone.core.errors import ConfigError

    if not 0 <= efficiency <= 1:
        raise ConfigError(f"--efficiency is {efficiency:g}; it must be above 0 and at most 1.")
    return efficiency or None


def _at_least_zero(number: float, option: str) -> float:
    from hone.core.errors import ConfigError

    if not 0 <= number < float("inf"):
        raise ConfigError(f"{option} is {number:g}; it must be 0 or more.")
    return number
