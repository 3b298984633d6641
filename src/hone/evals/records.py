"""What is kept of every evaluated question, in memory and as one JSON line."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hone.core.errors import DataError
from hone.core.files import write_text

Value = str | int | float | None
_LONGEST_VALUE = 200


@dataclass(frozen=True, slots=True)
class Preview:
    """The first rows of a result, as values that JSON and a reader can take.

    ``total`` counts all rows; when ``more`` is true the query was cut off there and has more.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    total: int
    more: bool = False

    @classmethod
    def of(
        cls,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        count: int,
        more: bool = False,
    ) -> "Preview":
        """The first ``count`` of ``rows``."""
        kept = tuple(tuple(_readable(value) for value in row) for row in rows[:count])
        return cls(tuple(columns), kept, len(rows), more)


def _readable(value: object) -> Value:
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, str) and len(value) > _LONGEST_VALUE:
        return value[: _LONGEST_VALUE - 1] + "…"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)


@dataclass(frozen=True, slots=True)
class Scored:
    """One question with its gold query, the predicted one and how they compare.

    Attributes:
        ok: both queries ran and returned the same rows.
        exact: the queries have the same clauses (values ignored).
        error: why the prediction did not run; None if it did.
        gold_error: why the gold query could not serve as a reference (the item then counts as
            wrong); None if it could.
        result, gold_result: the rows of either query, None where it did not run.
    """

    question: str
    language: str
    hardness: str
    split: str
    pattern: str
    gold: str
    predicted: str
    ok: bool
    exact: bool
    error: str | None = None
    gold_error: str | None = None
    result: Preview | None = None
    gold_result: Preview | None = None


def write_records(path: str | Path, records: Iterable[Scored]) -> None:
    """Write ``records`` as JSON lines, whole or not at all."""
    lines = (json.dumps(asdict(record), ensure_ascii=False) for record in records)
    write_text(path, "".join(f"{line}\n" for line in lines))


def json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of every line of a JSONL file that is not blank.

    Raises:
        DataError: the file is missing or a line is not JSON; the sentence names the line.
    """
    try:
        # Not splitlines(): a value may hold U+2028, which is no line end in JSON lines.
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not valid JSON ({error.msg}).") from error


def read_records(path: str | Path) -> list[Scored]:
    """Read what :func:`write_records` wrote.

    Raises:
        DataError: the file is missing or a line is not a record; the sentence names the line.
    """
    records = []
    for number, fields in json_lines(path):
        try:
            records.append(_record(fields))
        except (TypeError, KeyError) as error:
            raise DataError(
                f"{path}, line {number}: not a scored question ({error}). Evaluate again."
            ) from error
    return records


def _record(fields: dict[str, Any]) -> Scored:
    for name in ("result", "gold_result"):
        if fields[name] is not None:
            preview = dict(fields[name])
            preview["columns"] = tuple(preview["columns"])
            preview["rows"] = tuple(tuple(row) for row in preview["rows"])
            fields[name] = Preview(**preview)
    return Scored(**fields)
