"""``hone quantize``: a smaller form of a checkpoint."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Method(StrEnum):
    """Number formats that weights can be stored in."""

    INT8 = "int8"
    NF4 = "nf4"


def quantize(
    model: Annotated[Path, typer.Argument(help="A checkpoint, a run, or a name on the hub.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write.")],
    method: Annotated[Method, typer.Option(help="The number format of the weights.")] = Method.INT8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Store a model's linear layers in a smaller number format.

    Experts, embeddings and the last layer become bfloat16.

    int8 has one scale per output, in the compressed-tensors format. nf4 has four bits and a
    constant per 64 weights, quantized in turn, in the format of bitsandbytes: what QLoRA trains on.
    Every command reads the result.
    """
    from rich.console import Console

    from hone.core.errors import ConfigError
    from hone.core.hub import find_checkpoint
    from hone.quant import quantize_checkpoint

    source = find_checkpoint(model)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, which would be replaced. Choose another -o.")
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise ConfigError(
            f"{out} holds other files and no checkpoint; it would be replaced. Choose another -o."
        )
    quantize_checkpoint(source, out, method.value)
    before, after = (
        sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        for folder in (source, out)
    )
    if as_json:
        record = {"path": str(out), "method": method.value, "bytes": after, "bytes_before": before}
        typer.echo(json.dumps(record, ensure_ascii=False))
    else:
        Console().print(
            f"{out}: {method.value}, {after:,} bytes of weights, {after / before:.0%} of {source}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
