"""The Text2SQL prompt: the one renderer that training, evaluation and serving share.

Values do not pass through the model. A number, a date, a quoted text, and any value of the database
that the question mentions become slots; the model writes the query with the slots, and the values
are put back. A value can so never be misspelt, whether training saw it or not:

    서울에서 50000원 넘게 산 고객은?      {1}에서 {2}원 넘게 산 고객은?
                                    {1} customers.city stores.city
                                    SQL: SELECT ... WHERE city = {1} AND amount > {2}

Only the number of a month stays (7월), because SQL writes it in another way ('2024-07').

The schema is not in the prompt. A specialist is trained on one database, whose schema would be the
same text in every prompt: it costs time and tells the model nothing.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

MOST_SLOTS = 9
NUMBER = "number"
_MOST_COLUMNS = 8
_LITERAL = re.compile(
    r"(?P<date>(?<![\w-])\d{4}-\d\d(?:-\d\d(?:[ T]\d\d:\d\d(?::\d\d)?)?)?(?![\d-]))"
    r"|(?P<number>(?<![A-Za-z0-9_.,])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\d월]|\d월)"
    r"(?:(?P<unit>천만|백만|십만|만|천|억)(?![가-힣])|(?P<unit_of>천만|백만|십만|만|천|억)"
    r"(?=[원명개점건대권장회이을를은는보에와과로부]))?)"
    r"|(?P<text>(?<!\w)'[^']{1,80}'(?![A-Za-z])|\"[^\"]{1,80}\"|“[^”]{1,80}”|‘[^’]{1,80}’)"
)
_UNITS = {"천": 10**3, "만": 10**4, "십만": 10**5, "백만": 10**6, "천만": 10**7, "억": 10**8}
_PLAIN_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_YEAR_DIGITS = 4
_SLOT = re.compile(r"\{(\d)\}")
# The pieces of SQL in which a value may stand: a string, a number, or a slot of a template.
_SQL_VALUE = re.compile(r"'(?:[^']|'')*'|(?<![\w.])-?\d+(?:\.\d+)?(?!\w)|\{\d\}|\"[^\"]*\"|\w+")


class ValueLink(Protocol):
    """A value of the database that occurs in a question, as the database spells it."""

    @property
    def table(self) -> str: ...  # noqa: D102
    @property
    def column(self) -> str: ...  # noqa: D102
    @property
    def value(self) -> str: ...  # noqa: D102
    @property
    def start(self) -> int: ...  # noqa: D102
    @property
    def end(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Slot:
    """A value of a question. ``kind`` is ``number``, ``date``, ``text`` or where it stands."""

    value: str
    kind: str

    @property
    def literal(self) -> str:
        """The value in SQL."""
        return self.value if self.kind == NUMBER else sql_string(self.value)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads, and the values that its slots stand for."""

    text: str
    slots: tuple[Slot, ...]

    def template(self, sql: str) -> str:
        """``sql`` with this question's values as slots: what the model is trained to write."""
        order = sorted(enumerate(self.slots, 1), key=lambda item: -len(item[1].value))

        def replaced(match: re.Match[str]) -> str:
            piece = match[0]
            if piece.startswith("'"):
                inner = piece[1:-1]
                for number, slot in order:
                    value = slot.value.replace("'", "''")
                    if inner == value and slot.kind != NUMBER:
                        return f"{{{number}}}"
                    # Of numbers, only a year is a part of a string: '2024-07'.
                    if slot.kind != NUMBER or inner == value or len(value) == _YEAR_DIGITS:
                        inner = re.sub(
                            rf"(?<![\w{{]){re.escape(value)}(?![\w}}])", f"{{{number}}}", inner
                        )
                return f"'{inner}'"
            if piece == "1" and sql[: match.start()].endswith("LIMIT "):
                return piece  # "the most", not the question's number
            for number, slot in order:
                if piece == slot.value and slot.kind == NUMBER:
                    return f"{{{number}}}"
            return piece

        return _SQL_VALUE.sub(replaced, sql)

    def fill(self, template: str) -> str:
        """The query that the model meant: ``template`` with the values in its slots.

        A slot that the question does not have stays as it is, and the query will not run.
        """

        def value(number: str) -> Slot | None:
            index = int(number) - 1
            return self.slots[index] if 0 <= index < len(self.slots) else None

        def replaced(match: re.Match[str]) -> str:
            piece = match[0]
            if piece.startswith("'"):
                return _SLOT.sub(
                    lambda m: s.value.replace("'", "''") if (s := value(m[1])) else m[0], piece
                )
            found = _SLOT.fullmatch(piece)
            slot = value(found[1]) if found else None
            return slot.literal if slot else piece

        return _SQL_VALUE.sub(replaced, template)


def sql_string(value: str) -> str:
    """``value`` as an SQL string literal."""
    return "'" + value.replace("'", "''") + "'"


def clean_question(question: str) -> str:
    """``question`` on one line, in NFC and without the braces that mark slots."""
    text = " ".join(unicodedata.normalize("NFC", question).split())
    return text.replace("{", "(").replace("}", ")")


def text2sql_prompt(question: str, links: Sequence[ValueLink] = ()) -> Prompt:
    """The prompt for ``question``, which :func:`clean_question` has cleaned.

    ``links`` are the database's values in it, with their places in that text; links to the same
    place are the columns that hold the value. The completion is :func:`text2sql_completion`.
    """
    spans: dict[tuple[int, int], Slot] = {}
    columns: dict[tuple[int, int], list[str]] = {}
    quoted = [m.span() for m in _LITERAL.finditer(question) if m.lastgroup == "text"]
    for link in links:
        if _PLAIN_NUMBER.fullmatch(link.value) or any(
            start + 1 <= link.start
            and link.end <= end - 1
            and link.end - link.start < end - start - 2
            for start, end in quoted
        ):
            continue  # a number is a number wherever it stands; a quoted text is meant whole
        columns.setdefault((link.start, link.end), []).append(f"{link.table}.{link.column}")
        spans.setdefault((link.start, link.end), Slot(link.value, ""))
    for span, names in columns.items():
        kind = " ".join(dict.fromkeys(names[:_MOST_COLUMNS]))
        spans[span] = Slot(spans[span].value, kind)
    for match in _LITERAL.finditer(question):
        start, end = match.span()
        text = match[0]
        if match.lastgroup == "text":
            start, end, text = start + 1, end - 1, text[1:-1]
        if any(start < other_end and other_start < end for other_start, other_end in spans):
            continue
        kind = NUMBER if match["number"] else match.lastgroup or ""
        spans[start, end] = Slot(_number(match) if kind == NUMBER else text, kind)

    numbers: dict[Slot, int] = {}
    pieces, place = [], 0
    for (start, end), slot in sorted(spans.items()):
        if slot not in numbers and len(numbers) == MOST_SLOTS:
            continue
        number = numbers.setdefault(slot, len(numbers) + 1)
        pieces += [question[place:start], f"{{{number}}}"]
        place = end
    pieces.append(question[place:])
    lines = ["".join(pieces)]
    # Most slots are numbers: they are the ones of which nothing is said.
    told = [f"{{{number}}} {slot.kind}" for slot, number in numbers.items() if slot.kind != NUMBER]
    if told:
        lines.append(" ".join(told))
    lines.append("SQL:")
    return Prompt("\n".join(lines), tuple(numbers))


def _number(match: re.Match[str]) -> str:
    """The number of a match in digits: 50,000 and 5만 are 50000."""
    unit = match["unit"] or match["unit_of"]
    digits = match["number"].removesuffix(unit or "").replace(",", "")
    if unit is None:
        return digits
    value = Decimal(digits) * _UNITS[unit]
    return str(int(value)) if value == int(value) else str(value)


def text2sql_completion(template: str) -> str:
    """What the model must write after the prompt."""
    return " " + template
