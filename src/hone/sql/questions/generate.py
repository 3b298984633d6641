"""Question and SQL pairs for any database, in Korean and English."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Literal

from hone.core.errors import DataError
from hone.core.progress import progress
from hone.core.seeds import rng
from hone.sql.execute import Database
from hone.sql.hardness import hardness
from hone.sql.questions import kinds_grouped, kinds_linked, kinds_plain
from hone.sql.questions.english import English
from hone.sql.questions.fields import LANGUAGES, read_domain
from hone.sql.questions.intents import Intent
from hone.sql.questions.korean import Korean
from hone.sql.questions.patterns import Pattern, patterns
from hone.sql.questions.picking import Picker, Skip
from hone.sql.questions.probing import Probe
from hone.sql.schema import Schema

Split = Literal["train", "unseen_queries", "unseen_phrasings"]

# One in so many queries is never trained on, in any phrasing.
_BUCKETS = 10
# Names and values do not change how hard a query is; keywords are in capitals.
_VALUE = re.compile(r"'(?:[^']|'')*'|\b\d+(?:\.\d+)?\b")
_NAME = re.compile(r'"(?:[^"]|"")*"|\b\w*[a-z\uac00-\ud7a3]\w*\b')
# Draws of one kind in a turn, and turns without a new question before the kind is given up.
_PATIENCE = 30
_TRIES = 8
# A query of a kind that has few is asked again in other words, but not without end.
_REPEATS = 8

KINDS: dict[str, Callable[[Picker], Intent]] = (
    kinds_plain.KINDS | kinds_grouped.KINDS | kinds_linked.KINDS
)


@dataclass(frozen=True, slots=True)
class Example:
    """A question and the SQL that answers it. ``pattern`` is a :class:`Pattern`'s name."""

    question: str
    sql: str
    language: str
    pattern: str
    hardness: str
    split: str


def is_held_out(sql: str) -> bool:
    """Whether training must never see ``sql``: decided by its text alone."""
    return int.from_bytes(hashlib.sha256(sql.encode()).digest()[:4], "big") % _BUCKETS == 0


def generate(
    schema: Schema,
    database: Database,
    *,
    seed: int,
    count: int,
    split: Split,
    languages: Sequence[str] = LANGUAGES,
    exclude_sql: Collection[str] = (),
    phrasings: int = 2,
    synonyms: float = 0.2,
) -> list[Example]:
    """Write ``count`` questions about ``database``, or as many different ones as it is good for.

    Every kind of question that the schema allows has its share. ``train`` and ``unseen_queries``
    use the training patterns, ``unseen_phrasings`` those that training never sees; both unseen
    splits use only queries that training never sees (see :func:`is_held_out`).

    Args:
        schema: the schema of ``database``, with its display names.
        database: answers the queries; each is run once, for at most a second.
        seed: decides every draw.
        count: how many examples to return at most.
        split: ``"train"``, ``"unseen_queries"`` or ``"unseen_phrasings"``.
        languages: any of ``"ko"`` and ``"en"``; every query is asked in each.
        exclude_sql: queries to leave out.
        phrasings: how many sentences a training query gets per language when it is drawn.
        synonyms: how often a table or column with more than one display name goes by another one.

    Raises:
        DataError: there is nothing to ask about.
        ValueError: an unknown split or language, or a count below 1.
    """
    if split not in ("train", "unseen_queries", "unseen_phrasings"):
        raise ValueError(f"unknown split {split!r}")
    if not languages or not set(languages) <= set(LANGUAGES) or count < 1:
        raise ValueError(f"cannot write {count} questions in {languages!r}")
    random = rng(seed, "questions", split)
    probe = Probe(database)
    picker = Picker(read_domain(schema), probe, random)
    writer = _Writer(
        split, tuple(languages), random, phrasings if split == "train" else 1, synonyms
    )
    excluded = frozenset(exclude_sql)
    with progress("Writing questions", count, "questions") as bar:
        for intent in _intents(picker, split, excluded):
            found = writer.write(intent)
            writer.examples += found
            bar.advance(len(found))
            if len(writer.examples) >= count:
                break
    if not writer.examples:
        raise DataError(
            f"No question can be asked about {database.path}: its tables have no rows, or no "
            "columns that hold words, numbers or dates."
        )
    return writer.examples[:count]


def _intents(picker: Picker, split: Split, excluded: frozenset[str]) -> Iterator[Intent]:
    """Questions worth asking, the kinds in turn, until every kind has run dry."""
    drawn: Counter[str] = Counter()
    misses = dict.fromkeys(KINDS, 0)
    repeats = _REPEATS if split == "train" else 1
    # Of what is drawn for an unseen split, one in so many is held out: more draws, fewer turns.
    tries, patience = (
        (_TRIES, _PATIENCE) if split == "train" else (_TRIES * _BUCKETS, _PATIENCE // 5)
    )
    good: dict[str, bool] = {}
    while misses:
        for kind in list(misses):
            for _ in range(tries):
                intent = _draw(picker, kind)
                if intent is None or drawn[intent.sql] >= repeats or intent.sql in excluded:
                    continue
                if is_held_out(intent.sql) != (split != "train"):
                    continue
                if intent.sql not in good:
                    good[intent.sql] = picker.probe.is_good(intent)
                if good[intent.sql]:
                    drawn[intent.sql] += 1
                    misses[kind] = 0
                    yield intent
                    break
            else:
                misses[kind] += 1
                if misses[kind] > patience:
                    del misses[kind]


def _hardness(sql: str) -> str:
    """How hard a query is; each shape of query is taken apart once, because that is slow."""
    return _hardness_of_shape(_NAME.sub("x", _VALUE.sub("1", sql)))


@lru_cache(maxsize=50_000)
def _hardness_of_shape(sql: str) -> str:
    return hardness(sql)


def _draw(picker: Picker, kind: str) -> Intent | None:
    try:
        return KINDS[kind](picker)
    except Skip:
        return None


class _Writer:
    """Puts questions into words, each at most once and never with two meanings."""

    def __init__(
        self,
        split: Split,
        languages: tuple[str, ...],
        random: Random,
        phrasings: int,
        synonyms: float,
    ) -> None:
        self.examples: list[Example] = []
        self.split = split
        self.languages = languages
        self.random = random
        self.phrasings = phrasings
        self.synonyms = synonyms
        self._meaning: dict[str, str] = {}
        wanted = "held_out" if split == "unseen_phrasings" else "train"
        self._patterns: dict[tuple[str, str], list[Pattern]] = {}
        for pattern in patterns():
            if pattern.split == wanted:
                self._patterns.setdefault((pattern.kind, pattern.language), []).append(pattern)

    def write(self, intent: Intent) -> list[Example]:
        """The examples for ``intent``: in every language, in so many patterns."""
        found = []
        for language in self.languages:
            choice = self._patterns[intent.kind, language]
            for pattern in self.random.sample(choice, min(self.phrasings, len(choice))):
                question = self._question(pattern, intent)
                if self._meaning.setdefault(question, "") == "":
                    self._meaning[question] = intent.sql
                    found.append(
                        Example(
                            question,
                            intent.sql,
                            language,
                            pattern.name,
                            _hardness(intent.sql),
                            self.split,
                        )
                    )
        return found

    def _question(self, pattern: Pattern, intent: Intent) -> str:
        speller = (Korean if pattern.language == "ko" else English)(self.random, self.synonyms)
        question = speller.fill(pattern.frame, dict(intent.parts))
        return unicodedata.normalize("NFC", " ".join(question.split()))
