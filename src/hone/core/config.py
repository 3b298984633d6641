"""Reading TOML files into typed settings, with sentences for what is wrong in them."""

import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hone.core.errors import ConfigError
from hone.core.nearest import nearest

Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """Base of every settings table: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file; raises :class:`ConfigError` that names the file and the place."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error


def parse(
    model: type[Model],
    values: dict[str, Any],
    source: str | Path,
    assignments: Sequence[str] = (),
) -> Model:
    """Check ``values`` against ``model``.

    Args:
        source: their file, for error messages.
        assignments: those of :func:`override` that are among ``values``, likewise.

    Raises:
        ConfigError: a key is unknown (the nearest known one is named), missing or of a wrong kind.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(_sentence(model, first, source, assignments)) from error


def _sentence(
    model: type[BaseModel], found: Any, source: str | Path, assignments: Sequence[str]
) -> str:
    *parents, key = [str(part) for part in found["loc"]] or [""]
    where = _place(source, parents, key, assignments)
    name = ".".join([*parents, key])
    if found["type"] == "extra_forbidden":
        known = _fields(model, parents)
        return f'{where}: unknown key "{name}". {nearest(key, known)}'
    if found["type"] == "missing":
        return f'{where}: the key "{name}" is missing.'
    message = found["msg"].removeprefix("Value error, ")
    if isinstance(found["input"], dict):  # how the keys of a table go together
        return f'{where}: "{name}": {message[:1].lower()}{message[1:]}.'
    return f'{where}: "{name}" is {found["input"]!r}; {message[:1].lower()}{message[1:]}.'


def _fields(model: type[BaseModel], parents: list[str]) -> list[str]:
    for parent in parents:
        field = model.model_fields.get(parent)
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        inner = next(
            (c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None
        )
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _place(source: str | Path, parents: list[str], key: str, assignments: Sequence[str]) -> str:
    """Where a value comes from: the last assignment of it, or its line in a file. Of a table with
    assignments both, since how its keys go together depends on all of them.
    """
    wanted = tuple(part for part in (*parents, key) if part)
    within: list[str] = []
    for assignment in reversed(assignments):
        keys = _keys(assignment)
        if keys == wanted[: len(keys)]:
            return f"--set {assignment}"
        if wanted == keys[: len(wanted)]:
            within.insert(0, f"--set {assignment}")
    return " with ".join([f"{source}{_line(source, parents, key)}", *within])


def _keys(assignment: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in assignment.partition("=")[0].split("."))


def _line(source: str | Path, parents: list[str], key: str) -> str:
    """`` , line N`` where the key stands, when ``source`` is a file that has it."""
    path = Path(source)
    if not key or not path.is_file():
        return ""
    table = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        header = re.match(r"\s*\[([^\[\]]+)\]", line)
        if header:
            table = header.group(1).strip()
            if not parents and table == key:
                return f", line {number}"
        elif table == ".".join(parents) and re.match(rf"\s*\"?{re.escape(key)}\"?\s*=", line):
            return f", line {number}"
    return ""


def override(values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply ``table.key=value`` assignments (values in TOML, bare words as strings) to a copy.

    Raises:
        ConfigError: an assignment has no ``=`` or no key.
    """
    result = {key: dict(item) if isinstance(item, dict) else item for key, item in values.items()}
    for assignment in assignments:
        _, sign, text = assignment.partition("=")
        keys = _keys(assignment)
        if not sign or not all(keys):
            raise ConfigError(f'--set "{assignment}" is not of the form key=value.')
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        table = result
        for part in keys[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigError(f'--set "{assignment}": "{part}" is not a table.')
        table[keys[-1]] = value
    return result
