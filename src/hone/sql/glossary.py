"""What people call tables and columns, in English and Korean.

A glossary is a small TOML file::

    [tables.orders]
    en = ["order", "purchase"]
    ko = ["주문"]

    [columns."orders.total_krw"]
    en = "total"
    ko = ["합계", "주문 금액"]
"""

import difflib
import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hone.core.errors import ConfigError
from hone.sql.identifiers import has_hangul, readable

# A longer comment is a sentence about the column, not a name for it.
_LONGEST_NAME = 32
_LANGUAGES = ("en", "ko")


@dataclass(frozen=True, slots=True)
class Labels:
    """Display names by language. The first is the main one, the others are synonyms."""

    en: tuple[str, ...]
    ko: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Glossary:
    """Names by lower-case table name, and by lower-case ``table.column``."""

    tables: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    columns: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    hash: str | None = None


def read_glossary(path: Path, tables: Mapping[str, Iterable[str]]) -> Glossary:
    """Read a glossary for a database whose ``tables`` map to their columns' names.

    Raises:
        ConfigError: the file is missing or no TOML, has an unknown key, or names a table or column
            that the database does not have.
    """
    try:
        raw = path.read_bytes()
        content = tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the glossary {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error
    _check_keys(path, "the glossary", content, ("tables", "columns"))
    known_tables = {name.lower(): name for name in tables}
    known_columns = {
        f"{table}.{column}".lower(): f"{table}.{column}"
        for table, columns in tables.items()
        for column in columns
    }
    return Glossary(
        _section(path, "table", content.get("tables", {}), known_tables),
        _section(path, "column", content.get("columns", {}), known_columns),
        hashlib.sha256(raw).hexdigest(),
    )


def labels_for(name: str, given: Mapping[str, tuple[str, ...]] | None, comment: str) -> Labels:
    """Names from the glossary's entry, else from a comment, else from the identifier itself."""
    names = dict(given or {})
    parts = [part.strip() for part in re.split(r"[,/|;·]", comment)]
    short = [part for part in parts if 0 < len(part) <= _LONGEST_NAME]
    if len(comment) <= 3 * _LONGEST_NAME:
        names.setdefault("en", tuple(part for part in short if not has_hangul(part)))
        names.setdefault("ko", tuple(part for part in short if has_hangul(part)))
    plain = readable(name)
    english = names.get("en") or (plain,)
    korean = names.get("ko") or ((plain,) if has_hangul(name) else english)
    return Labels(english, korean)


def _section(
    path: Path, kind: str, section: Any, known: Mapping[str, str]
) -> dict[str, dict[str, tuple[str, ...]]]:
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: {kind}s must be a table of names, found {section!r}.")
    entries = {}
    for name, entry in section.items():
        if name.lower() not in known:
            raise ConfigError(_unknown(path, kind, name, entry, known))
        where = f"{kind} {name!r}"
        if not isinstance(entry, dict):
            raise ConfigError(
                f'{path}: {where} must say en = "..." or ko = "...", found {entry!r}.'
            )
        _check_keys(path, where, entry, _LANGUAGES)
        entries[name.lower()] = {
            language: _names(path, f"{where}, {language}", value)
            for language, value in entry.items()
        }
    return entries


def _unknown(path: Path, kind: str, name: str, entry: Any, known: Mapping[str, str]) -> str:
    if (
        kind == "column"
        and isinstance(entry, dict)
        and any(isinstance(value, dict) for value in entry.values())
    ):
        column = next(key for key, value in entry.items() if isinstance(value, dict))
        return (
            f"{path}: a column is one quoted key: "
            f'write [columns."{name}.{column}"], not [columns.{name}.{column}].'
        )
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
    hint = f"did you mean {known[near[0]]!r}?" if near else f"it has {_some(known.values())}."
    return f"{path}: the database has no {kind} {name!r}; {hint}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") if names else "none at all"


def _check_keys(path: Path, where: str, found: Mapping[str, Any], known: Iterable[str]) -> None:
    known = tuple(known)
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise ConfigError(f"{path}: {where} has no key {key!r}; did you mean {near[0]!r}?")


def _names(path: Path, where: str, value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{path}: {where} must be a name or a list of names, found {value!r}.")
    for item in values:
        if not isinstance(item, str) or not item.strip():
            raise ConfigError(f"{path}: {where} holds {item!r}, which is no name.")
    return tuple(item.strip() for item in values)
