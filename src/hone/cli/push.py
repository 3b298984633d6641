"""``hone push``: a run's model, or any checkpoint, put on the hub."""

import json
from pathlib import Path
from typing import Annotated

import typer


def push(
    source: Annotated[Path, typer.Argument(help="A run, or a checkpoint; RUN/int8 is one too.")],
    name: Annotated[str, typer.Argument(help="Where to: hf://org/name.")],
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody read it, not its owner alone.")
    ] = False,
    message: Annotated[
        str, typer.Option("--message", "-m", help="What the commit says.")
    ] = "Upload a checkpoint",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")
    ] = False,
    card_only: Annotated[
        bool, typer.Option("--card-only", help="Print the model card, and send nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Put a model on the hub, with a card that tells what its run has measured.

    The card is README.md, written from the run's own manifest and results.
    A README.md that lies in the checkpoint takes its place.

    Everything goes up in one commit, and only the files of the checkpoint go.

    The token is that of HF_TOKEN or `hf auth login`; HF_ENDPOINT names another hub.
    """
    from hone.core.errors import RequestError
    from hone.core.hub import checkpoint_files, destination, upload
    from hone.recipes.card import find_source, model_card

    wanted = destination(name)
    if not message.strip():
        raise RequestError("--message is empty; say what the upload is.")
    found = find_source(source)
    checkpoint = found.checkpoint
    own = checkpoint / "README.md"
    if own.is_file():
        card = own.read_text(encoding="utf-8", errors="replace")
    else:
        card = model_card(found, wanted.repository)
    if card_only:
        typer.echo(json.dumps({"card": card}, ensure_ascii=False) if as_json else card, nl=as_json)
        return
    sizes = {
        file.relative_to(checkpoint).as_posix(): file.stat().st_size
        for file in checkpoint_files(checkpoint)
    }
    sizes.setdefault("README.md", len(card.encode()))
    record = {
        "name": str(wanted),
        "public": public,
        "files": dict(sorted(sizes.items())),
        "bytes": sum(sizes.values()),
    }
    if dry_run:
        _show(record | {"sent": False}, as_json)
        if not as_json:
            typer.echo(f"\n{card}", nl=False)
        return
    address = upload(checkpoint, name, card=card, private=not public, message=message)
    _show(record | {"sent": True, "url": address}, as_json)


def _show(record: dict[str, object], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(record, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    files = record["files"]
    assert isinstance(files, dict)
    table = Table("File", "Bytes", title=None, box=None)
    table.columns[1].justify = "right"
    for name, size in files.items():
        table.add_row(name, f"{size:,}")
    console = Console()
    console.print(table)
    goal = record.get("url") or f"{record['name']}, {'public' if record['public'] else 'private'}"
    said = f"Sent to {goal}" if record["sent"] else f"Nothing is sent; it would go to {goal}"
    console.print(f"{said}: {record['bytes']:,} bytes.", highlight=False, markup=False)
