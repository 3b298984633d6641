"""``hone show``: what a model is, from its configuration alone."""

import json
from typing import Annotated

import typer


def show(
    model: Annotated[str, typer.Argument(help="A checkpoint, a run, or a name on the hub.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a model's architecture: shape, weights per part, memory per dtype, cache per token.

    Only config.json is read, so this is quick for a model of any size.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from hone.core.hub import CONFIG_FILES, find_checkpoint
    from hone.models import load_config
    from hone.models.summary import summarise

    directory = find_checkpoint(model, files=CONFIG_FILES)
    config = load_config(directory)
    summary = summarise(config)
    if as_json:
        stored = {"dtype": config.dtype, "quantization": config.quantization_config}
        record = {"path": str(directory)} | stored | summary.to_dict()
        typer.echo(json.dumps(record, ensure_ascii=False))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in summary.shape.items():
        table.add_row(name, escape(value))
    table.add_row()
    for name, count in summary.parameters.items():
        table.add_row(name, f"{count:>15,}  {count / summary.total:6.1%}")
    table.add_row("weights", f"{summary.total:>15,}")
    if summary.active < summary.total:
        table.add_row("used by a token", f"{summary.active:>15,}")
    table.add_row()
    # float16 takes two bytes as well.
    kept = "bfloat16" if config.dtype == "float16" else config.dtype
    if config.quantization_config:
        in_four_bits = config.quantization_config.get("load_in_4bit")
        kept = "nf4" if in_four_bits else "int8"
    for name, size in summary.weight_bytes.items():
        mark = "  (as stored)" if name == kept else ""
        table.add_row(f"memory, {name}", f"{_size(size):>15}{mark}")
    for name, size in summary.cache_bytes.items():
        if size:
            note = f"  {_size(size * config.max_position_embeddings)} for the whole context"
            if config.extrapolates:
                note = "  at any length"
            if config.encoder is not None:
                note += "; as much per token of the source"
            table.add_row(f"cache per token, {name}", f"{_size(size):>15}{note}")
    if summary.state_bytes:
        table.add_row(
            "state per sequence", f"{_size(summary.state_bytes):>15}  at any length, float32"
        )
    table.add_row()
    table.add_row("uses", escape(", ".join(summary.features)))
    console = Console()
    console.print(
        f"[bold]{escape(str(directory))}[/]: {summary.model_type}, {summary.architecture}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table, highlight=False, soft_wrap=True)


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.2f} {unit}"
    return f"{count:,} B"
