"""Reading JSONL files, with the place and the reason when one is wrong.

``.jsonl``, ``.jsonl.gz`` and ``.jsonl.zst`` are read alike. Nothing is skipped silently: a line
that cannot be used stops the reading with a sentence that names the file and the line.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone.core.errors import DataError
from hone.core.nearest import nearest
from hone.data.files import open_bytes

_KINDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class QuestionSql:
    """A question that a person wrote, and the SQL that answers it.

    Attributes:
        question: NFC, on one line.
        language: ``ko`` or ``en``; when the file does not say, ``ko`` if there is any Hangul.
        split: the file's own name for its part (``train``, ``dev``, ...), empty when it has none.
        line: where it stands in the file, from 1.
    """

    question: str
    sql: str
    language: str
    split: str
    line: int


def read_jsonl(
    path: str | Path,
    required: Mapping[str, type] | None = None,
    optional: Mapping[str, type] | None = None,
) -> list[dict[str, Any]]:
    """All objects of a JSONL file; blank lines do not count.

    Args:
        path: ``.jsonl``, ``.jsonl.gz`` or ``.jsonl.zst``.
        required: keys that every object must have, with the type of their value.
        optional: keys that an object may leave out or set to null, with their type.

    Raises:
        DataError: names the file, the line and the reason.
    """
    return [record for _, record in iterate_jsonl(path, required, optional)]


def iterate_jsonl(
    path: str | Path,
    required: Mapping[str, type] | None = None,
    optional: Mapping[str, type] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) for each line of a file; :func:`read_jsonl` without keeping them all.

    Raises:
        DataError: as :func:`read_jsonl`, when the bad line is reached; an empty file at its end.
    """
    path = Path(path)
    found = False
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            found = True
            yield number, _record(line, f"{path}, line {number}", required or {}, optional or {})
    if not found:
        raise DataError(f"{path} is empty: expected one JSON object per line.")


def read_examples(
    path: str | Path, split_key: str = "split", where: Mapping[str, str] | None = None
) -> list[QuestionSql]:
    """The question–SQL pairs of a JSONL file with the keys ``question`` and ``sql``.

    Args:
        path: the file; ``language`` and ``split`` are read where they are given.
        split_key: the key that holds the split, e.g. ``question_split``. When it is not the
            default, every line must have it.
        where: read only the lines whose keys have these values, e.g. ``{"db_id": "farm"}``.

    Raises:
        DataError: names the file, the line and the reason; an empty question or SQL is one, and
            ``where`` that fits no line another.
    """
    required: dict[str, type] = {"question": str, "sql": str}
    optional: dict[str, type] = {"language": str}
    (optional if split_key == "split" else required)[split_key] = str
    required |= dict.fromkeys(where or {}, str)
    examples = []
    for number, record in iterate_jsonl(path, required, optional):
        if any(record[key] != value for key, value in (where or {}).items()):
            continue
        question = " ".join(unicodedata.normalize("NFC", record["question"]).split())
        sql = record["sql"].strip()
        for key, text in (("question", question), ("sql", sql)):
            if not text:
                raise DataError(f'{path}, line {number}: "{key}" is empty.')
        language = record.get("language") or ("ko" if _HANGUL.search(question) else "en")
        examples.append(QuestionSql(question, sql, language, record.get(split_key) or "", number))
    if not examples:
        wanted = " and ".join(f'"{key}" = {value!r}' for key, value in (where or {}).items())
        raise DataError(f"{path} has no line with {wanted}.")
    return examples


def _record(
    line: bytes, where: str, required: Mapping[str, type], optional: Mapping[str, type]
) -> dict[str, Any]:
    try:
        # A byte order mark can only stand at the start of a file; Windows editors put it there.
        record = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 (byte {error.start + 1} of the line is "
            f"0x{line[error.start]:02x}). Convert the file to UTF-8."
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error.msg}, column {error.colno}).") from error
    except RecursionError as error:
        raise DataError(f"{where}: JSON nested too deeply to read.") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, found {_kind(record)}.")
    for key, kind in required.items():
        if key not in record:
            hint = nearest(key, record) if record else "The object has no keys."
            raise DataError(f'{where}: the key "{key}" is missing. {hint}')
        _check(record[key], kind, f'{where}: "{key}"')
    for key, kind in optional.items():
        if record.get(key) is not None:
            _check(record[key], kind, f'{where}: "{key}"')
    return record


def _check(value: Any, kind: type, what: str) -> None:
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise DataError(f"{what} must be {_KINDS.get(kind, kind.__name__)}, found {_kind(value)}.")
    if isinstance(value, str) and _SURROGATE.search(value):
        raise DataError(f"{what} has half of a surrogate pair (\\ud83d or the like) in it.")


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)
