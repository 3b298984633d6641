"""Where a checkpoint keeps its chat templates: files of their own, or the tokenizer's config."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hone.core.errors import CheckpointError
from hone.core.files import write_text

_FILE, _FOLDER = "chat_template.jinja", "additional_chat_templates"


def read_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Jinja sources by name, ``default`` among them where there is one; files go before ``config``.

    Raises:
        CheckpointError: a file is not UTF-8, or ``config`` holds something else than templates.
    """
    files = {path.stem: path for path in sorted((directory / _FOLDER).glob("*.jinja"))}
    if (directory / _FILE).is_file():
        files["default"] = directory / _FILE
    if files:
        return {name: _read(path) for name, path in files.items()}
    found = config.get("chat_template")
    if found is None:
        return {}
    if isinstance(found, str):
        return {"default": found}
    if isinstance(found, Mapping):
        found = [{"name": name, "template": template} for name, template in found.items()]
    if not isinstance(found, list) or not all(map(_is_named, found)):
        raise CheckpointError(
            f"{directory}/tokenizer_config.json: chat_template is neither a text nor a list of "
            '{"name": text, "template": text}.'
        )
    return {item["name"]: item["template"] for item in found}


def write_templates(directory: Path, templates: Mapping[str, str]) -> None:
    """Write what :func:`read_templates` reads."""
    for name, source in templates.items():
        if name == "default":
            write_text(directory / _FILE, source)
            continue
        # Names come from a checkpoint: none may leave the folder.
        if not re.fullmatch(r"\w[\w .-]*", name):
            raise CheckpointError(f"{name!r} cannot be the name of a chat template's file.")
        write_text(directory / _FOLDER / f"{name}.jinja", source)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as UTF-8 text: {error}.") from error


def _is_named(item: Any) -> bool:
    return isinstance(item, Mapping) and all(
        isinstance(item.get(key), str) for key in ("name", "template")
    )
