"""Rows with a class, a number, classes of words or a partner, to samples for heads that read.

A label is text or a number in the file; which labels there are is told by the data, unless the
model knows them already.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hone.core.errors import DataError
from hone.data.formats import Format
from hone.data.rows import Rows
from hone.data.samples import IGNORED, Sample
from hone.text.tokenizer import Tokenizer

Problem = Literal["single_label", "multi_label", "regression"]
# Similarities are written from 0 to 1, or from 0 to 5 as in STS.
_STS_MOST = 5.0


@dataclass(slots=True)
class Labelled:
    """Samples of one file.

    Attributes:
        samples: in the order of the file.
        lines: the line, or row of a table, of each.
        labels: names of the classes; one for a number, none for pairs.
        problem: what kind of target a text has.
        scored: pairs have a similarity; else a pair's partner is to be told from all others.
        cut: texts that were longer than the model reads, and lost their end.
    """

    samples: list[Sample]
    lines: list[int]
    labels: tuple[str, ...] = ()
    problem: Problem = "single_label"
    scored: bool = False
    cut: int = field(default=0)


def read_labelled(
    form: Format,
    source: str | Path,
    tokenizer: Tokenizer,
    max_length: int,
    columns: dict[str, str] | None = None,
    known_labels: Sequence[str] = (),
) -> Labelled:
    """The samples of a classification, token-classification or pairs file.

    Args:
        form: what :func:`hone.data.formats.detect_format` found.
        max_length: longest text in tokens; longer ones lose their end, and are counted.
        known_labels: the names of the model's classes: used where all of the file's are among them.

    Raises:
        DataError: names the file, the line or row, and what is wrong.
    """
    rows = Rows(str(source), columns)
    numbers, values = zip(*rows, strict=True)
    work = _Work(rows, list(numbers), list(values), tokenizer, max_length)
    if form is Format.PAIRS:
        return work.pairs()
    if form is Format.CLASSIFICATION:
        return work.texts(known_labels)
    if form is Format.TOKEN_CLASSIFICATION:
        return work.words(known_labels)
    raise DataError(f"{source} is {form} data, which has no labels to learn.")


@dataclass(slots=True)
class _Work:
    rows: Rows
    lines: list[int]
    values: list[dict[str, Any]]
    tokenizer: Tokenizer
    max_length: int
    cut: int = 0

    def _where(self, index: int) -> str:
        return self.rows.where(self.lines[index])

    def texts(self, known: Sequence[str]) -> Labelled:
        name = "text" if "text" in self.values[0] else "sentence"
        ids = self._encode([self._text(n, name) for n in range(len(self.values))])
        raw = [row.get("label") for row in self.values]
        for index, label in enumerate(raw):
            if label is None or label == "" or isinstance(label, dict):
                raise DataError(
                    f'{self._where(index)}: "label" is {label!r}; every text needs one.'
                )
        if all(isinstance(label, list) for label in raw):
            return self._many(ids, raw, known)
        if any(isinstance(label, list) for label in raw):
            raise DataError(f"{self.rows.source}: some labels are lists and others are not.")
        if all(isinstance(label, float) and not label.is_integer() for label in raw[:100]):
            numbers = [self._number(index, label) for index, label in enumerate(raw)]
            samples = [Sample(i, target=n) for i, n in zip(ids, numbers, strict=True)]
            return Labelled(samples, self.lines, ("score",), "regression", cut=self.cut)
        names = [_name(label) for label in raw]
        labels = _labels(names, known)
        place = {label: index for index, label in enumerate(labels)}
        samples = [Sample(i, target=place[n]) for i, n in zip(ids, names, strict=True)]
        return Labelled(samples, self.lines, labels, cut=self.cut)

    def _many(self, ids: list[list[int]], raw: list[Any], known: Sequence[str]) -> Labelled:
        names = [[_name(label) for label in found] for found in raw]
        labels = _labels([name for found in names for name in found], known)
        samples = [
            Sample(i, target=tuple(float(label in found) for label in labels))
            for i, found in zip(ids, names, strict=True)
        ]
        return Labelled(samples, self.lines, labels, "multi_label", cut=self.cut)

    def words(self, known: Sequence[str]) -> Labelled:
        key = "tags" if "tags" in self.values[0] else "ner_tags"
        tagged: list[tuple[list[str], list[str]]] = []
        for index, row in enumerate(self.values):
            words, tags = row.get("tokens"), row.get(key)
            if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
                raise DataError(
                    f'{self._where(index)}: "tokens" and "{key}" must be lists of one length.'
                )
            if not words or not all(isinstance(word, str) and word.strip() for word in words):
                raise DataError(
                    f'{self._where(index)}: "tokens" must hold words, none of them empty.'
                )
            tagged.append((words, [_name(tag) for tag in tags]))
        labels = _labels([tag for _, tags in tagged for tag in tags], known)
        place = {label: index for index, label in enumerate(labels)}
        samples = [self._sample_of_words(words, tags, place) for words, tags in tagged]
        return Labelled(samples, self.lines, labels, cut=self.cut)

    def _sample_of_words(self, words: list[str], tags: list[str], place: dict[str, int]) -> Sample:
        """A word's first token has its class: what serving reads is the words with spaces."""
        starts: dict[int, str] = {}
        at = 0
        for word, tag in zip(words, tags, strict=True):
            starts[at] = tag
            at += len(word) + 1
        ids, spans = self.tokenizer.encode_with_offsets(" ".join(words), add_special_tokens=True)
        waiting = sorted(starts)
        labels = []
        for start, end in spans:
            label = IGNORED
            # A token may begin with the space before its word.
            if waiting and start < end and start <= waiting[0] < end:
                label = place[starts[waiting.pop(0)]]
                while waiting and waiting[0] < end:
                    waiting.pop(0)  # one token for several words
            labels.append(label)
        if len(ids) > self.max_length:
            self.cut += 1
        return Sample(ids[: self.max_length], labels[: self.max_length])

    def pairs(self) -> Labelled:
        first, second = (
            ("anchor", "positive") if "anchor" in self.values[0] else ("sentence1", "sentence2")
        )
        count = len(self.values)
        one = self._encode([self._text(n, first) for n in range(count)])
        two = self._encode([self._text(n, second) for n in range(count)])
        key = next((name for name in ("score", "label") if name in self.values[0]), None)
        if first == "anchor" or key is None:
            samples = [Sample(a, source=b) for a, b in zip(one, two, strict=True)]
            return Labelled(samples, self.lines, cut=self.cut)
        numbers = [self._number(n, self.values[n].get(key)) for n in range(count)]
        most = max(numbers)
        if min(numbers) < -1 or most > _STS_MOST or (min(numbers) < 0 and most > 1):
            raise DataError(
                f'{self.rows.source}: "{key}" runs from {min(numbers):g} to {most:g}; '
                "similarities must be from -1 to 1, or from 0 to 5."
            )
        scale = _STS_MOST if most > 1 else 1.0
        samples = [
            Sample(a, source=b, target=n / scale) for a, b, n in zip(one, two, numbers, strict=True)
        ]
        return Labelled(samples, self.lines, scored=True, cut=self.cut)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        encoded = self.tokenizer.encode_batch(texts, add_special_tokens=True)
        for index, ids in enumerate(encoded):
            if not ids:
                raise DataError(f"{self._where(index)}: the text is empty.")
            if len(ids) > self.max_length:
                self.cut += 1
                # What closes a text ([SEP], </s>) stays: models read it.
                closing = ids[-1:] if ids[-1] in self.tokenizer.special_ids else []
                encoded[index] = ids[: self.max_length - len(closing)] + closing
        return encoded

    def _text(self, index: int, key: str) -> str:
        value = self.values[index].get(key)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f'{self._where(index)}: "{key}" must be a text, found {value!r:.60}.')
        return value

    def _number(self, index: int, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"{self._where(index)}: expected a number, found {value!r:.60}.")
        return number


def _name(label: Any) -> str:
    """How a class is called: a whole number has no decimals."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _labels(names: Iterable[str], known: Sequence[str]) -> tuple[str, ...]:
    """The classes: the model's own if they cover the data's, numbers in order, else by name."""
    found = set(names)
    if known and found <= set(known):
        return tuple(known)
    if all(name.isdecimal() for name in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))
