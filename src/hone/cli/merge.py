"""``hone merge``: an adapter put into the weights of its base."""

import json
from pathlib import Path
from typing import Annotated

import typer


def merge(
    adapter: Annotated[Path, typer.Argument(help="An adapter, or a name on the hub.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write.")],
    base: Annotated[
        Path | None, typer.Option(help="The model to merge into; else the one that it names.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write the model that an adapter and its base make together, as a whole checkpoint.

    A quantized base is dequantized first.
    """
    import warnings

    from rich.console import Console

    from hone.core.errors import ConfigError
    from hone.engine.adapted import merge_checkpoint

    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, which would be replaced. Choose another -o.")
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise ConfigError(
            f"{out} holds other files and no checkpoint; it would be replaced. Choose another -o."
        )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        source = merge_checkpoint(adapter, out, base)
    notes = [str(each.message) for each in said if each.category is UserWarning]
    if as_json:
        record = {"path": str(out), "adapter": str(adapter), "base": str(source), "notes": notes}
        typer.echo(json.dumps(record, ensure_ascii=False))
        return
    for line in (*notes, f"{out}: {adapter} merged into {source}"):
        Console().print(line, highlight=False, markup=False, soft_wrap=True)
