"""New question–SQL pairs from a person's, by putting other values of the same column in.

"which states border texas" with ``state_name = 'texas'`` also teaches "which states border ohio".
A value is exchanged only where it is surely the same thing on both sides: the question names it,
the SQL compares a column with exactly it, wherever it occurs, and the new one is found again in the
new question the way the old one was.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from random import Random

from sqlglot import exp

from hone.core.errors import RequestError
from hone.core.seeds import rng
from hone.sql.linking import ValueIndex
from hone.sql.schema import Schema
from hone.sql.scopes import resolve
from hone.sql.sqltree import Node, parse
from hone.text.korean import PARTICLES, particle

Pair = tuple[str, str]
_TRIES = 12
_LONGEST = 60
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
_HANGUL_RUN = re.compile("[가-힣]+")
# (form, pair), longest first, so that 이라는 is not taken for 이.
_FORMS = sorted(
    ((form, f"{closed}/{open_}") for closed, open_ in PARTICLES for form in (closed, open_)),
    key=lambda item: -len(item[0]),
)


def vary_examples(
    examples: Sequence[Pair],
    schema: Schema,
    index: ValueIndex,
    *,
    copies: int,
    seed: int,
    accept: Callable[[str], bool] | None = None,
) -> list[list[Pair]]:
    """Variants of each (question, SQL) pair with other values of the same columns.

    Args:
        examples: the pairs.
        schema: of the database that they ask about; the values come from its samples.
        index: finds values in questions.
        copies: the most pairs to give for each, itself included.
        seed: the same seed gives the same variants.
        accept: called with a variant's SQL, says whether to keep it, e.g. whether it returns rows.

    Returns:
        For each example a list that begins with it; all pairs of a list differ.
    """
    values = {
        (table.name.lower(), column.name.lower()): tuple(
            dict.fromkeys(v for v in column.samples if isinstance(v, str) and _usable(v))
        )
        for table in schema.tables
        for column in table.columns
    }
    varied = []
    for number, (question, sql) in enumerate(examples):
        random = rng(seed, "vary", number)
        found = [(question, sql)]
        choices = _choices(question, sql, schema, index, values) if copies > 1 else {}
        for _ in range(_TRIES * (copies - 1) if choices else 0):
            variant = _variant(question, sql, choices, index, random)
            if variant and variant not in found and (accept is None or accept(variant[1])):
                found.append(variant)
                if len(found) == copies:
                    break
        varied.append(found)
    return varied


def _usable(value: str) -> bool:
    return 1 < len(value) <= _LONGEST and value.isprintable() and value == value.strip()


def _key(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _choices(
    question: str,
    sql: str,
    schema: Schema,
    index: ValueIndex,
    values: dict[tuple[str, str], tuple[str, ...]],
) -> dict[str, tuple[str, ...]]:
    """For each value of the SQL that may be exchanged, what it may be exchanged for."""
    linked = _links(question, index)
    choices = {}
    for value, columns in _compared(sql, schema).items():
        if _key(value) not in linked or not columns:
            continue
        shared = [values.get(column, ()) for column in columns]
        others = [v for v in shared[0] if all(v in rest for rest in shared[1:])]
        # Another case or spacing of a value that is there already would not be told apart.
        others = [v for v in others if _key(v) not in linked]
        if others and _mentions(question, value):
            choices[value] = tuple(others)
    return choices


def _links(question: str, index: ValueIndex) -> set[str]:
    return {_key(link.value) for link in index.link(question, limit=1000)}


def _compared(sql: str, schema: Schema) -> dict[str, set[tuple[str, str]]]:
    """The columns that each string of ``sql`` is compared with; none if it has another use too."""
    try:
        tree = parse(sql)
        scopes = resolve(tree, schema)
    except RequestError:
        return {}
    columns = {
        id(reference.column): (reference.source.table.lower(), reference.name.lower())
        for scope in scopes
        for reference in scope.references
        if reference.source is not None and reference.source.table is not None
    }
    found: dict[str, set[tuple[str, str]]] = {}
    unsure = set()
    counts: dict[str, int] = {}
    for literal in tree.find_all(exp.Literal):
        if not literal.is_string:
            continue
        value = str(literal.this)
        counts[value] = counts.get(value, 0) + 1
        column = columns.get(id(_other_side(literal)))
        if column is None:
            unsure.add(_key(value))
        else:
            found.setdefault(value, set()).add(column)
    # Part of another string ("%texas%"), or written in a way that the text does not show.
    written = [text for text in map(_unquote, _QUOTED.findall(sql)) if text in counts]
    return {
        value: places
        for value, places in found.items()
        if written.count(value) == counts[value]
        and _key(value) not in unsure
        and not any(_key(value) in _key(other) for other in counts if other != value)
    }


def _other_side(literal: Node) -> Node | None:
    """What ``literal`` is compared with by ``=``, ``!=`` or ``IN``."""
    parent = literal.parent
    if isinstance(parent, exp.EQ | exp.NEQ):
        return parent.expression if parent.this is literal else parent.this
    if isinstance(parent, exp.In):
        return parent.this
    return None


def _variant(
    question: str,
    sql: str,
    choices: dict[str, tuple[str, ...]],
    index: ValueIndex,
    random: Random,
) -> Pair | None:
    """One random exchange, or None when the new question does not say the new values clearly."""
    old = list(choices)
    # One at a time as well: independent values together (a city and its state) seldom fit.
    chosen = old if random.random() < 0.5 else [random.choice(old)]
    exchange = {value: random.choice(choices[value]) for value in chosen}
    if len(set(map(_key, exchange.values()))) < len(exchange):
        return None
    new_question = _exchange_in_question(question, exchange)
    expected = _links(question, index) - {_key(value) for value in exchange}
    if _links(new_question, index) != expected | {_key(value) for value in exchange.values()}:
        return None
    return new_question, _exchange_in_sql(sql, exchange)


def _pattern(value: str) -> str:
    words = r"\s+".join(map(re.escape, value.split()))
    # A Latin or numeric value is whole words, but a Korean particle may follow it.
    before = r"(?<!\w)"
    return before + words + (r"(?![^\W가-힣])" if not _HANGUL_RUN.match(value[-1]) else "")


def _mentions(question: str, value: str) -> bool:
    return re.search(_pattern(value), question, re.IGNORECASE) is not None


def _exchange_in_question(question: str, exchange: dict[str, str]) -> str:
    """All values at once, so that one that was put in is not taken for one to take out."""
    by_key = {_key(old): (old, new) for old, new in exchange.items()}
    longest_first = sorted(exchange, key=len, reverse=True)
    pattern = re.compile("|".join(map(_pattern, longest_first)), re.IGNORECASE)
    parts, end = [], 0
    for match in pattern.finditer(question):
        old, new = by_key[_key(match[0])]
        parts += [question[end : match.start()], _in_case_of(match[0], old, new)]
        end = match.end()
        run = _HANGUL_RUN.match(question, end)
        if run:
            parts.append(_fitting(run[0], old, new))
            end = run.end()
    return "".join([*parts, question[end:]])


def _in_case_of(written: str, old: str, new: str) -> str:
    """``new`` in the letters that the question used for ``old``."""
    if written != old and written == old.lower():
        return new.lower()
    if written != old and written == old.upper():
        return new.upper()
    return new


def _fitting(run: str, old: str, new: str) -> str:
    """The particles ``run`` that followed ``old``, as they follow ``new``."""
    for form, pair in _FORMS:
        if run.startswith(form) and particle(old, pair) == form:
            return particle(new, pair) + run[len(form) :]
    return run


def _unquote(text: str) -> str:
    return text[1:-1].replace(text[0] * 2, text[0])


def _exchange_in_sql(sql: str, exchange: dict[str, str]) -> str:
    def replace(match: re.Match[str]) -> str:
        new = exchange.get(_unquote(match[0]))
        if new is None:
            return match[0]
        quote = match[0][0]
        return quote + new.replace(quote, quote * 2) + quote

    return _QUOTED.sub(replace, sql)
