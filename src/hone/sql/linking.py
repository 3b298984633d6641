"""Values of a database that a question mentions, found by looking them up in the question.

"서울에 사는 고객" mentions ``customers.city = '서울'``. The model is then told how the database
spells it and where it is.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from hone.sql.execute import Database
from hone.sql.identifiers import quote_always
from hone.sql.schema import Schema

_LONGEST = 60
# A column of a table of millions is read this far, in the order of its rows.
_ROWS_READ = 200_000
_SECONDS = 600.0
_IDENTIFIER = re.compile(r"[0-9a-f]{16,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NUMBER = re.compile(r"[-+]?\d{0,3}(\.\d*)?")
_WORD = re.compile(r"\w")
_HANGUL_RUN = re.compile(r"[가-힣]+")
# What may stand between a Korean noun and the end of its word: a title, particles, a copula.
_TAIL = re.compile(
    r"(?:씨|님)?"
    r"(?:(?:에게|에서|에|으로|로|부터|까지|의|만|도|은|는|이나|나|이랑|랑|이|가|을|를|와|과|하고|보다|처럼|같은"
    r"|마다|조차|밖에|한테|께서|께|별|산|출신|이라는|라는|이라고|라고|이란|란|인|이고|이며|이면|이거나|거나"
    r"|인데|인지|이자|이었던|였던|이다|입니다|이에요|예요|으로서|로서|들|쪽|뿐|요))*"
)
_STOP_WORD_LIST = (
    "a an and are as at be by do for from has have how in is it no not of on or that the this to "
    "was were what when where which who with yes all any none null other true false name "
    "것 수 등 및 그 이 저 중 때 더 안 못 예 아니오 없음 있음 기타 전체 모두"
)
_STOP_WORDS = frozenset(_STOP_WORD_LIST.split())


@dataclass(frozen=True, slots=True)
class Link:
    """``value``, as the database spells it, stands in ``table.column`` and in the question.

    ``start`` and ``end`` are its place in the question, after NFC and with single spaces.
    """

    table: str
    column: str
    value: str
    start: int = field(default=-1, compare=False)
    end: int = field(default=-1, compare=False)


class ValueIndex:
    """The text values of a database, ready to be looked up in questions."""

    def __init__(self, columns: Iterable[tuple[str, str, Iterable[str]]]) -> None:
        """``columns``: (table, column, values), in the order in which links are to be listed."""
        self._columns = [(table, column, list(values)) for table, column, values in columns]
        # Normalised value -> (column's number, spelling) pairs; then, by first two characters, the
        # lengths at which a value may end, longest first.
        self._values: dict[str, list[tuple[int, str]]] = {}
        lengths: dict[str, set[int]] = {}
        for number, (_, _, values) in enumerate(self._columns):
            for value in values:
                key = _normalise(value)
                self._values.setdefault(key, []).append((number, value))
                lengths.setdefault(key[:2], set()).add(len(key))
        self._lengths = {start: sorted(found, reverse=True) for start, found in lengths.items()}

    @classmethod
    def build(
        cls, database: Database, schema: Schema, max_values_per_column: int = 20_000
    ) -> "ValueIndex":
        """Read the text columns of every table of ``schema``.

        Left out: views, values over 60 characters or of one character, numbers below 1,000 kept as
        text, stop words, and columns that mostly hold identifiers such as UUIDs.

        Raises:
            RequestError: a table cannot be read.
        """
        columns = []
        for table in schema.tables:
            for column in table.columns:
                if table.is_view or column.kind != "text":
                    continue
                name = quote_always(column.name)
                result = database.execute(
                    f"SELECT DISTINCT v FROM (SELECT {name} AS v FROM {quote_always(table.name)} "
                    f"LIMIT {_ROWS_READ}) WHERE typeof(v) = 'text' AND length(v) <= {_LONGEST}",
                    row_cap=max_values_per_column,
                    timeout_s=_SECONDS,
                )
                values = [str(row[0]) for row in result.rows]
                identifiers = sum(
                    _IDENTIFIER.fullmatch(value.lower()) is not None for value in values
                )
                kept = [value for value in values if _is_telling(value)]
                if kept and identifiers * 2 < len(values):
                    columns.append((table.name, column.name, kept))
        return cls(columns)

    def link(self, question: str, limit: int = 6) -> tuple[Link, ...]:
        """The values in ``question``, at most ``limit`` of them: longest first, then from the left.

        Where two values overlap the longer one wins. A value found in several columns gives a link
        for each, in the order of the schema. Case does not matter. A Latin value must be whole
        words, a Korean one may be followed by particles.
        """
        text = _normalise(question)
        spelled = " ".join(unicodedata.normalize("NFC", question).split())
        links = []
        for start, length, key in _without_overlaps(self._spans(text))[:limit]:
            spellings: dict[int, list[str]] = {}
            for number, value in self._values[key]:
                spellings.setdefault(number, []).append(value)
            for number in sorted(spellings):
                values = spellings[number]
                value = next((value for value in values if value in spelled), values[0])
                table, column, _ = self._columns[number]
                links.append(Link(table, column, value, start, start + length))
        return tuple(links)

    def _spans(self, text: str) -> list[tuple[int, int, str]]:
        """(start, length, normalised value) of every value that stands in ``text`` as words."""
        spans = []
        for start in range(len(text) - 1):
            lengths = self._lengths.get(text[start : start + 2])
            if lengths is None or (start and not _breaks(text[start - 1], text[start])):
                continue
            for length in lengths:
                key = text[start : start + length]
                if len(key) == length and key in self._values and _ends(text, start + length):
                    spans.append((start, length, key))
        return spans


def _normalise(text: str) -> str:
    """``text`` without case, in NFC and with single spaces; every other character keeps its place.

    A character whose folded form is longer ("ß") stays, so that places in the result are places in
    the text.
    """
    spaced = " ".join(unicodedata.normalize("NFC", text).split())
    return "".join(low if len(low := char.casefold()) == 1 else char for char in spaced)


def _is_telling(value: str) -> bool:
    key = _normalise(value)
    if len(key) < 2 or _NUMBER.fullmatch(key) or not _WORD.search(key):
        return False
    return any(word not in _STOP_WORDS for word in key.split())


def _is_hangul(character: str) -> bool:
    return "가" <= character <= "힣"


def _breaks(left: str, right: str) -> bool:
    """Whether a word may end between two characters: at a sign, or where the script changes."""
    if not (left.isalnum() and right.isalnum()):
        return True
    return _is_hangul(left) != _is_hangul(right)


def _ends(text: str, end: int) -> bool:
    if end == len(text):
        return True
    if not _is_hangul(text[end - 1]) or not _is_hangul(text[end]):
        return _breaks(text[end - 1], text[end])
    run = _HANGUL_RUN.match(text, end)
    return run is not None and _TAIL.fullmatch(run.group()) is not None


def _without_overlaps(spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """The spans to keep, longest first and then from left to right."""
    kept: list[tuple[int, int, str]] = []
    for start, length, key in sorted(spans, key=lambda span: (-span[1], span[0])):
        if all(start + length <= begin or start >= begin + size for begin, size, _ in kept):
            kept.append((start, length, key))
    return kept
