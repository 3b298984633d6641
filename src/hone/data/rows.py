"""Reading training data row by row, whatever kind of file holds it.

| suffix (and ``.gz`` or ``.zst`` behind it) | a row is |
|---|---|
| ``.jsonl``, ``.ndjson`` | an object on a line |
| ``.json`` | an object of the one list in the file, or as ``.jsonl`` |
| ``.parquet`` | a row |
| ``.csv``, ``.tsv`` | a record under the header's names, all its values texts |
| ``.txt``, ``.md``, ``.text`` | the whole file, under ``text`` |

and ``hf://org/name[/config][@revision][:split]``, a data set on the hub.
"""

import codecs
import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from hone.core.errors import DataError, RequestError
from hone.data.files import kind_of, open_bytes
from hone.data.read import iterate_jsonl

Row = tuple[int, dict[str, Any]]
SCHEME = "hf://"
PLAIN_TEXT = (".txt", ".md", ".text")
_LINES = (".jsonl", ".ndjson")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a file or a data set; iterating reads them, each time from the beginning.

    Attributes:
        source: a path, or ``hf://…``.
        columns: new names for some columns, by those; then only these columns are kept.
    """

    source: str
    columns: Mapping[str, str] | None = None

    def __iter__(self) -> Iterator[Row]:
        """``(number, values)``: the line that a row begins in, or its place in a table, from 1.

        Raises:
            DataError: names the file, the line or row, and the reason; also where there is no row.
        """
        empty = True
        for number, values in self._read():
            empty = False
            yield number, self._renamed(number, values)
        if empty:
            raise DataError(f"{self.source} is empty: there is nothing to train on.")

    def __length_hint__(self) -> int:
        """About how many rows there are, for a progress bar; 0 for a data set on the hub."""
        if self.source.startswith(SCHEME):
            return 0
        if kind_of(self.source) not in _LINES:
            return sum(1 for _ in self._read())
        with open_bytes(Path(self.source).expanduser()) as file:
            chunks = iter(lambda: file.read(_CHUNK), b"")
            count, last = 0, b""
            for last in chunks:
                count += last.count(b"\n")
            return count + (not last.endswith(b"\n"))

    def where(self, number: int) -> str:
        """The place of a row for a message."""
        unit = "row" if self._is_table else "line"
        return f"{self.source}, {unit} {number}"

    @property
    def _is_table(self) -> bool:
        return self.source.startswith(SCHEME) or kind_of(self.source) == ".parquet"

    def _read(self) -> Iterator[Row]:
        if self.source.startswith(SCHEME):
            return _hub_rows(self.source)
        path, kind = Path(self.source).expanduser(), kind_of(self.source)
        if kind in _LINES:
            return iterate_jsonl(path)
        if kind == ".json":
            return _json_rows(path)
        if kind == ".parquet":
            return _parquet_rows(path)
        if kind in (".csv", ".tsv"):
            return _csv_rows(path, "\t" if kind == ".tsv" else ",")
        if kind in PLAIN_TEXT:
            return _text_rows(path)
        with open_bytes(path):  # that there is no such file is worth more than its suffix
            pass
        raise DataError(
            f"{path} ends in {kind or 'nothing'!r}; hone reads .jsonl, .json, .parquet, .csv, .tsv "
            "and .txt, each also with .gz or .zst behind it."
        )

    def _renamed(self, number: int, values: dict[str, Any]) -> dict[str, Any]:
        if not self.columns:
            return values
        for name in self.columns.values():
            if name not in values:
                raise DataError(
                    f"{self.where(number)}: there is no column {name!r}; the columns are "
                    f"{', '.join(map(str, values))}."
                )
        return {new: values[old] for new, old in self.columns.items()}


def _json_rows(path: Path) -> Iterator[Row]:
    with open_bytes(path) as file:
        stream = _Characters(file, path)
        stream.skip_space()
        if stream.next == "{":
            is_list = False
        elif stream.next == "[":
            is_list = True
            stream.take()
        elif not stream.next:
            return
        else:
            raise DataError(f"{path}: expected a JSON list of objects, found {stream.next!r}.")
        if is_list:
            yield from _list_items(stream, path)
            return
    rows = iterate_jsonl(path)
    try:
        first = next(rows)
    except DataError as error:
        raise DataError(
            f"{error} A .json file holds a list of objects, or an object on each line."
        ) from error
    yield first
    yield from rows


def _list_items(stream: "_Characters", path: Path) -> Iterator[Row]:
    stream.skip_space()
    while stream.next != "]":
        line = stream.line
        item = stream.value()
        if not isinstance(item, dict):
            raise DataError(f"{path}, line {line}: expected a JSON object, found {item!r:.60}.")
        yield line, item
        stream.skip_space()
        if stream.next == ",":
            stream.take()
            stream.skip_space()
            if stream.next == "]":
                raise DataError(f"{path}, line {stream.line}: a comma before the list's end.")
        elif stream.next != "]":
            found = repr(stream.next) if stream.next else "the file's end"
            raise DataError(
                f"{path}, line {stream.line}: expected a comma or the list's end, found {found}."
            )
    stream.take()
    stream.skip_space()
    if stream.next:
        raise DataError(f"{path}, line {stream.line}: there is more behind the list's end.")


class _Characters:
    """A JSON text read piece by piece, so that only one value of it is ever held."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._text, self._at, self._ended = "", 0, False
        self.line = 1

    @property
    def next(self) -> str:
        """The next character; empty at the end."""
        while self._at >= len(self._text) and not self._ended:
            self._more(_CHUNK)
        return self._text[self._at : self._at + 1]

    def take(self) -> None:
        """Go on behind the next character."""
        self._forward(self._at + 1)

    def skip_space(self) -> None:
        """Go on to the next character that is no white space."""
        while (character := self.next) and character in " \t\r\n":
            self.take()

    def value(self) -> Any:
        """The JSON value that begins here."""
        wanted = _CHUNK
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended:
                    line = self.line + self._text.count("\n", self._at, error.pos)
                    raise DataError(
                        f"{self._path}, line {line}: not valid JSON ({error.msg})."
                    ) from error
            except RecursionError as error:
                raise DataError(
                    f"{self._path}, line {self.line}: JSON nested too deeply to read."
                ) from error
            else:
                # A number may go on in what is not read yet; an object cannot.
                if end < len(self._text) or self._ended or self._text[end - 1] in '}]"':
                    self._forward(end)
                    return value
            self._more(wanted)
            wanted *= 2  # so that a value of many pieces is not decoded once for each

    def _forward(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _more(self, count: int) -> None:
        chunk = self._file.read(count)
        self._ended = not chunk
        try:
            new = self._decoder.decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self._path}: not UTF-8 near line {self.line}. Convert the file to UTF-8."
            ) from error
        self._text, self._at = self._text[self._at :] + new, 0


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    by_standard = delimiter == "\t" and not _is_quoted(path)
    quoting: Literal[0, 3] = csv.QUOTE_NONE if by_standard else csv.QUOTE_MINIMAL
    with open_bytes(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        reader = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)
        line = 1
        header: list[str] | None = None
        try:
            for record in reader:
                start, line = line, reader.line_num + 1
                if not record:
                    continue
                if header is None:
                    header = record
                    if len(set(header)) < len(header):
                        raise DataError(f"{path}: the header has a name twice: {header}.")
                    continue
                if len(record) != len(header):
                    raise DataError(
                        f"{path}, line {start}: {len(record)} cells, and the header has "
                        f"{len(header)}; is there a {delimiter!r} in a cell?"
                    )
                yield start, dict(zip(header, record, strict=True))
        except csv.Error as error:
            raise DataError(f"{path}, line {line}: not valid CSV ({error}).") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: not UTF-8 near line {line}. Convert the file to UTF-8."
            ) from error


def _is_quoted(path: Path) -> bool:
    """Whether quotes hold the cells of a tab-separated file together, and all of it reads so.

    By the standard (IANA, text/tab-separated-values) quotes are text, and many files of natural
    language follow it; programs that write tables quote as in CSV.
    """
    with open_bytes(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            reader = csv.reader(text, delimiter="\t", strict=True)
            return len({len(record) for record in reader if record}) < 2
        except (csv.Error, UnicodeDecodeError):
            return False


def _text_rows(path: Path) -> Iterator[Row]:
    with open_bytes(path) as file:
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise DataError(
                f"{path}, line {line}: not UTF-8. Convert the file to UTF-8."
            ) from error
    if text.strip():
        yield 1, {"text": text}


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path} is a Parquet file: pip install pyarrow.") from error
    with open_bytes(path) as file:
        # A compressed one cannot be read from its end, where a Parquet file says what is in it.
        content = file if path.suffix.lower() == ".parquet" else io.BytesIO(file.read())
        try:
            number = 0
            for batch in parquet.ParquetFile(content).iter_batches(1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {name: _without_nulls(value) for name, value in row.items()}
        except (pyarrow.ArrowException, ValueError) as error:
            raise DataError(f"{path} is not a whole Parquet file: {error}.") from error


def _hub_rows(source: str) -> Iterator[Row]:
    from hone.core.hub import parse_name

    name, _, split = source.removeprefix(SCHEME).partition(":")
    name, sign, revision = name.partition("@")
    organisation, _, rest = name.partition("/")
    repository, _, config = rest.partition("/")
    try:
        found = parse_name(f"{organisation}/{repository}{sign}{revision}")
    except RequestError as error:
        raise DataError(
            f"{source!r} cannot be a data set: write hf://org/name[/config][@revision][:split]."
        ) from error
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{source} is a data set on the hub: pip install datasets, or download its files."
        ) from error
    try:
        rows = datasets.load_dataset(
            found.repository,
            config or None,
            split=split or "train",
            revision=found.revision,
            streaming=True,
        )
        for number, row in enumerate(rows, 1):
            yield number, {key: _without_nulls(value) for key, value in row.items()}
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"Cannot read {source}: {reason:.300}") from error


def _without_nulls(value: Any) -> Any:
    """A table's objects have every key of the column, null where the row has none: drop those."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
