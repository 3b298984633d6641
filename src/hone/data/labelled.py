"""Rows with a class, a number, classes of words or a partner, to samples for heads that read.

What kind of label a file has is told by all of its labels:

| label | target |
|---|---|
| numbers, of which some are not whole | that number (a table of texts writes them as text) |
| a list | several classes, or none |
| anything else: text, whole numbers, true and false | one class |

Which classes there are is told by the data, unless the model knows them already.
"""

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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
# Computed similarities miss their bounds by rounding.
_ROUNDING = 1e-3
# Fewer degrees of similarity than these are rather the classes of an inference (0 to 2).
_FEW = 4
_ROWS_AT_ONCE = 1000


@dataclass(slots=True)
class Labelled:
    """Samples of one file.

    Attributes:
        samples: in the order of the file.
        lines: the line, or row of a table, of each.
        labels: names of the classes; one for a number, none for pairs.
        problem: what kind of target a text has.
        scale: what similarities of pairs were divided by; None where pairs have none, and a pair's
            partner is to be told from all others.
        notes: sentences about what was not read.
    """

    samples: list[Sample]
    lines: Sequence[int]
    labels: tuple[str, ...] = ()
    problem: Problem = "single_label"
    scale: float | None = None
    notes: tuple[str, ...] = ()


def read_labelled(
    form: Format,
    source: str | Path,
    tokenizer: Tokenizer,
    max_length: int,
    columns: dict[str, str] | None = None,
    known_labels: Sequence[str] = (),
    like: Labelled | None = None,
) -> Labelled:
    """The samples of a classification, token-classification or pairs file.

    Args:
        form: what :func:`hone.data.formats.detect_format` found.
        max_length: longest text in tokens; longer ones lose their end, and are counted.
        known_labels: the names of the model's classes: used where all of the file's are among them.
            A single one stands for a number.
        like: the file that is trained on, where this one is only scored: labels mean the same.

    Raises:
        DataError: names the file, the line or row, and what is wrong.
    """
    rows = Rows(str(source), columns)
    work = _Work(rows, tokenizer, max_length, known_labels, like)
    _, first = next(iter(rows))
    if form is Format.PAIRS:
        anchored = "anchor" in first
        return work.pairs(*(("anchor", "positive") if anchored else ("sentence1", "sentence2")))
    if form is Format.CLASSIFICATION:
        return work.texts("text" if "text" in first else "sentence")
    if form is Format.TOKEN_CLASSIFICATION:
        return work.words("tags" if "tags" in first else "ner_tags")
    raise DataError(f"{source} is {form} data, which has no labels to learn.")


class _Work:
    def __init__(
        self,
        rows: Rows,
        tokenizer: Tokenizer,
        max_length: int,
        known: Sequence[str],
        like: Labelled | None,
    ) -> None:
        self._rows, self._tokenizer, self._max_length = rows, tokenizer, max_length
        self._known, self._like = tuple(known), like
        self._lines = array("q")
        self._cut = self._empty = self._first_empty = 0
        self._negatives = False

    def texts(self, column: str) -> Labelled:
        """Texts, each with its label."""
        ids: list[array] = []
        labels: list[Any] = []
        for values, lines in self._groups(column):
            ids += self._encode(values, lines, column)
            labels += [row.get("label") for row in values]
        for index, label in enumerate(labels):
            if label is None or label == "" or isinstance(label, dict):
                raise DataError(
                    f'{self._where(index)}: "label" is {label!r:.60}; every text needs one.'
                )
        if all(isinstance(label, list) for label in labels):
            return self._many(ids, labels)
        for index, label in enumerate(labels):
            if isinstance(label, list) or (isinstance(label, float) and not math.isfinite(label)):
                raise DataError(
                    f'{self._where(index)}: "label" is {label!r:.60}, and others are texts or '
                    "numbers."
                )
        if (numbers := self._targets(labels)) is not None:
            samples = [Sample(i, target=n) for i, n in zip(ids, numbers, strict=True)]
            return self._made(samples, ("score",), "regression")
        names = [_name(label) for label in labels]
        classes = self._classes(names)
        place = {label: index for index, label in enumerate(classes)}
        if len(classes) == 1:
            raise DataError(
                f"{self._rows.source}: all texts have the label {classes[0]!r}; there is nothing "
                "to tell apart."
            )
        samples = [Sample(i, target=place[n]) for i, n in zip(ids, names, strict=True)]
        return self._made(samples, classes)

    def _targets(self, labels: list[Any]) -> list[float] | None:
        """The labels as numbers to be told; None where they are names of classes."""
        numbers = [_number(label) for label in labels]
        if self._like is not None:
            told = self._like.problem == "regression"
            for index, number in enumerate(numbers if told else ()):
                if number is None:
                    raise DataError(
                        f"{self._where(index)}: expected a number, found {labels[index]!r:.60}."
                    )
        else:
            found = [number for number in numbers if number is not None]
            told = len(found) == len(numbers) and (
                len(self._known) == 1 or not all(number.is_integer() for number in found)
            )
            told = told and not {*map(_name, labels)} <= {*self._known}
        return [number for number in numbers if number is not None] if told else None

    def _many(self, ids: list[array], labels: list[list[Any]]) -> Labelled:
        names = []
        for index, found in enumerate(labels):
            if any(label is None or isinstance(label, list | dict) for label in found):
                raise DataError(f'{self._where(index)}: "label" must be a list of names.')
            names.append([_name(label) for label in found])
            if len(set(names[-1])) < len(found):
                raise DataError(
                    f'{self._where(index)}: "label" names a class twice ({found!r:.60}); list the '
                    "names of a text's classes, not a 0 or 1 for each that there is."
                )
        classes = self._classes([name for found in names for name in found])
        if not classes:
            raise DataError(f"{self._rows.source}: no text has a label.")
        samples = [
            Sample(i, target=tuple(float(label in found) for label in classes))
            for i, found in zip(ids, names, strict=True)
        ]
        return self._made(samples, classes, "multi_label")

    def words(self, key: str) -> Labelled:
        """Words, each with its tag."""
        found: list[tuple[array, array]] = []
        seen: dict[str, int] = {}  # tags, numbered as they come
        for values, numbers in self._groups():
            for row, number in zip(values, numbers, strict=True):
                words, tags = self._tagged(row, key, number)
                places = [seen.setdefault(tag, len(seen)) for tag in tags]
                found.append(self._sample_of_words(words, places, number))
        classes = self._classes(seen)
        place = {label: index for index, label in enumerate(classes)}
        renamed = {IGNORED: IGNORED} | {number: place[tag] for tag, number in seen.items()}
        samples = [Sample(ids, array("i", map(renamed.__getitem__, tags))) for ids, tags in found]
        return self._made(samples, classes)

    def _tagged(self, row: dict[str, Any], key: str, number: int) -> tuple[list[str], list[str]]:
        words, tags, where = row.get("tokens"), row.get(key), self._rows.where(number)
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
            raise DataError(f'{where}: "tokens" and "{key}" must be lists of one length.')
        if not words or not all(isinstance(word, str) and word.strip() for word in words):
            raise DataError(f'{where}: "tokens" must hold words, none of them empty.')
        for tag in tags:
            if not isinstance(tag, str | int | float) or tag == "":
                raise DataError(f'{where}: "{key}" holds {tag!r:.60}; every word needs a tag.')
        return words, [_name(tag) for tag in tags]

    def _sample_of_words(
        self, words: list[str], tags: list[int], number: int
    ) -> tuple[array, array]:
        """Ids and labels: a word's first token has its tag. What is read is the words with spaces
        between, as in serving.
        """
        bounds: list[tuple[int, int]] = []
        for word in words:
            first = bounds[-1][1] + 1 if bounds else 0
            bounds.append((first, first + len(word)))
        ids, spans = self._tokenizer.encode_with_offsets(" ".join(words), add_special_tokens=True)
        labels = array("i", [IGNORED]) * len(ids)
        at = 0
        for token, (start, end) in enumerate(spans):
            # Normalisation leaves some words without a token, and others without their beginning.
            while at < len(bounds) and bounds[at][1] <= start:
                at += 1
            if at < len(bounds) and start < end and bounds[at][0] < end:
                labels[token] = tags[at]
                while at < len(bounds) and bounds[at][0] < end:
                    at += 1  # one token for several words
        kept, closing = self._fitted(ids)
        labels = labels[:kept] + array("i", [IGNORED]) * len(closing)
        if not any(label != IGNORED for label in labels):
            raise DataError(
                f"{self._rows.where(number)}: no word has a token within the {self._max_length} "
                "that the model reads."
            )
        return array("i", ids[:kept] + closing), labels

    def pairs(self, first: str, second: str) -> Labelled:
        """Pairs of texts, with or without a similarity."""
        one: list[array] = []
        two: list[array] = []
        scores: list[float] = []
        key = ""
        for values, numbers in self._groups(first, second):
            if first == "anchor":
                self._negatives = self._negatives or "negative" in values[0]
            elif not one:
                key = next((name for name in ("score", "label") if name in values[0]), "")
            one += self._encode(values, numbers, first)
            two += self._encode(values, numbers, second)
            for row, number in zip(values, numbers, strict=True) if key else ():
                score = _number(row.get(key))
                if score is None:
                    raise DataError(
                        f'{self._rows.where(number)}: "{key}" is {row.get(key)!r:.60}; expected '
                        "how similar the two are, as a number."
                    )
                scores.append(score)
        scale = self._scale(scores, key) if key else None
        if self._like is not None and (scale is None) != (self._like.scale is None):
            raise DataError(
                f"{self._rows.source}: either both what is trained and what is scored must have "
                "similarities, or neither."
            )
        targets = [score / scale for score in scores] if scale else [None] * len(one)
        samples = [Sample(a, source=b, target=t) for a, b, t in zip(one, two, targets, strict=True)]
        found = self._made(samples, ())
        found.scale = scale
        return found

    def _scale(self, scores: list[float], key: str) -> float:
        least, most = min(scores), max(scores)
        wide = most > 1 + _ROUNDING
        if least < -1 - _ROUNDING or most > _STS_MOST + _ROUNDING or (wide and least < -_ROUNDING):
            raise DataError(
                f'{self._rows.source}: "{key}" runs from {least:g} to {most:g}; similarities must '
                "be from -1 to 1, or from 0 to 5."
            )
        if self._like is not None:
            return self._like.scale or 1.0
        if key == "label" and wide and most < _FEW and all(map(float.is_integer, scores)):
            raise DataError(
                f'{self._rows.source}: "label" is a whole number from {least:g} to {most:g} '
                "everywhere, which looks like classes and not like similarities; where it is a "
                "scale of 0 to 5, name all columns: --column sentence1=sentence1 "
                "--column sentence2=sentence2 --column score=label."
            )
        return _STS_MOST if wide else 1.0

    def _groups(self, *texts: str) -> Iterator[tuple[list[dict[str, Any]], list[int]]]:
        """Rows and their numbers, so many at a time that no file fills the memory.

        Args:
            texts: columns; rows where one of them is empty are left out, and counted.
        """
        values: list[dict[str, Any]] = []
        for number, row in self._rows:
            if any(_is_empty(row.get(name)) for name in texts):
                self._first_empty = self._first_empty or number
                self._empty += 1
                continue
            self._lines.append(number)
            values.append(row)
            if len(values) == _ROWS_AT_ONCE:
                yield values, self._lines[-len(values) :].tolist()
                values = []
        if values:
            yield values, self._lines[-len(values) :].tolist()
        if not self._lines:
            raise DataError(f"{self._rows.source}: no row has a text.")

    def _encode(self, values: list[dict[str, Any]], numbers: list[int], key: str) -> list[array]:
        texts = []
        for row, number in zip(values, numbers, strict=True):
            text = row.get(key)
            if not isinstance(text, str):
                raise DataError(
                    f'{self._rows.where(number)}: "{key}" must be a text, found {text!r:.60}.'
                )
            texts.append(text)
        found = []
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=True)
        for ids, number in zip(encoded, numbers, strict=True):
            if not ids:
                raise DataError(f'{self._rows.where(number)}: "{key}" has no token.')
            kept, closing = self._fitted(ids)
            found.append(array("i", ids[:kept] + closing))
        return found

    def _fitted(self, ids: list[int]) -> tuple[int, list[int]]:
        """How many of ``ids`` fit, and what to put behind them."""
        if len(ids) <= self._max_length:
            return len(ids), []
        self._cut += 1
        # What closes a text ([SEP], </s>) stays: models read it.
        closing = ids[-1:] if ids[-1] in self._tokenizer.special_ids else []
        return self._max_length - len(closing), closing

    def _classes(self, names: Iterable[str]) -> tuple[str, ...]:
        """The classes: the model's own if they cover the data's; numbers in order, else by name."""
        found = set(names)
        known = self._known if self._like is None else self._like.labels
        if known and found <= {*known}:
            return known
        if self._like is not None:
            raise DataError(
                f"{self._rows.source} has labels that are not trained: "
                f"{', '.join(sorted(found - {*known}))[:200]}."
            )
        try:
            return tuple(sorted(found, key=int))
        except ValueError:
            return tuple(sorted(found))

    def _made(
        self, samples: list[Sample], labels: tuple[str, ...], problem: Problem = "single_label"
    ) -> Labelled:
        if self._like is not None and problem != self._like.problem:
            raise DataError(
                f"{self._rows.source} has labels of the kind {problem}, and what is trained has "
                f"{self._like.problem}."
            )
        notes = []
        if self._cut:
            notes.append(
                f"{self._cut:,} texts are longer than the model reads, and lose their end."
            )
        if self._empty:
            notes.append(
                f"{self._empty:,} rows without a text are left out, the first is "
                f"{self._first_empty:,}."
            )
        if self._negatives:
            notes.append(
                'The column "negative" is not read: a pair is told from the others of its batch.'
            )
        return Labelled(samples, self._lines, labels, problem, notes=tuple(notes))

    def _where(self, index: int) -> str:
        return self._rows.where(self._lines[index])


def _is_empty(text: Any) -> bool:
    return text is None or (isinstance(text, str) and not text.strip())


def _number(label: Any) -> float | None:
    """A number, perhaps written as text; true and false are none."""
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        return None
    try:
        number = float(label)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _name(label: Any) -> str:
    """How a class is called: a whole number has no decimals."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
