"""Classes of tokens, and the names of people, places and so on that they make up.

Shapes: T tokens of a text, L labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hone.core.errors import RequestError
from hone.core.nearest import nearest
from hone.engine.pipelines.base import Reader, checked_texts
from hone.engine.pipelines.inputs import Encoded, Text, encode, windows

_BY_WORD = ("first", "average", "max")
_STRATEGIES = ("none", "simple", *_BY_WORD)


@dataclass(frozen=True, slots=True)
class _Token:
    """A token, or a word of several.

    Attributes:
        pieces: of the vocabulary.
        scores: of the labels, ``[L]``.
        start, end: where it stands in the text.
        index: the number of the token.
        continues: it belongs to the word of the token before it.
    """

    pieces: list[str]
    scores: Tensor
    start: int
    end: int
    index: int
    continues: bool = False


class TokenClassification(Reader):
    """The tokens of a text with a label: ``{"entity", "score", "index", "word", "start", "end"}``.

    With an ``aggregation_strategy``, names of several tokens: ``{"entity_group", "score", "word",
    "start", "end"}``.
    """

    head = "token-classification"

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """See :class:`Pipeline`; with ``is_split_into_words`` a list of words counts as a list of
        one text: as in transformers.
        """
        split = options.get("is_split_into_words", self.options.get("is_split_into_words"))
        if split and isinstance(inputs, list) and not all(isinstance(x, list) for x in inputs):
            inputs = [inputs]
        return super().__call__(inputs, **options)

    def run(  # type: ignore[override]
        self,
        items: list[Any],
        batch_size: int | None = None,
        *,
        aggregation_strategy: str = "none",
        ignore_labels: Sequence[str] = ("O",),
        stride: int | None = None,
        truncation: bool | str | None = None,
        is_split_into_words: bool = False,
        delimiter: str = " ",
    ) -> list[Any]:
        """See :class:`Pipeline`.

        Args:
            aggregation_strategy: "none"; "simple" joins neighbours of the same label; so do
                "first", "average" and "max", which give all tokens of a word one label: that of its
                first token, of the mean scores, of the highest score.
            ignore_labels: labels that are left out.
            stride: read a long text in pieces which overlap by so many tokens.
            truncation: see :meth:`Reader.encode`.
            is_split_into_words: each text is a list of words; ``delimiter`` stands between them.
        """
        strategy = _strategy(aggregation_strategy, stride)
        words = (
            [_words(item, n) for n, item in enumerate(items, 1)] if is_split_into_words else None
        )
        texts = checked_texts(items) if words is None else [delimiter.join(text) for text in words]
        pieces = self._pieces(texts if words is None else words, stride, truncation)
        rows = iter(self.outputs([piece for several in pieces for piece in several], batch_size))
        results = []
        for number, (text, several) in enumerate(zip(texts, pieces, strict=True)):
            starts = None if words is None else _starts(words[number], len(delimiter))
            entities = []
            for piece in several:
                scores_TL = next(rows)[: len(piece.ids)].softmax(dim=-1)
                tokens = self._tokens(text, piece, scores_TL, starts)
                entities += self._entities(tokens, strategy)
            key = "entity" if strategy == "none" else "entity_group"
            entities = [entity for entity in entities if entity[key] not in ignore_labels]
            results.append(_distinct(entities) if len(several) > 1 else entities)
        return results

    def _pieces(
        self, texts: Sequence[Text], stride: int | None, truncation: bool | str | None
    ) -> list[list[Encoded]]:
        """Each text in as many pieces as it is read in."""
        words = bool(texts) and not isinstance(texts[0], str)
        if stride is None:
            return [[text] for text in self.encode(texts, truncation=truncation, words=words)]
        whole, longest = encode(self.tokenizer, texts, words=words), self.longest
        pieces = [[text] if longest is None else windows(text, longest, stride) for text in whole]
        for number, (first, *_) in enumerate(pieces, 1):
            self.check_length(first, number)
        return pieces

    def _tokens(
        self, text: str, encoded: Encoded, scores_TL: Tensor, starts: list[int] | None
    ) -> list[_Token]:
        """Those of the text itself, with places in ``text``."""
        # Whether this vocabulary marks the tokens that continue a word.
        marked = bool(getattr(self.tokenizer.backend.model, "continuing_subword_prefix", None))
        tokens = []
        for index, side in enumerate(encoded.sides):
            if side is None:
                continue
            start, end = encoded.spans[index]
            word = encoded.words[index]
            if starts is not None and word is not None:
                start, end = start + starts[word], end + starts[word]
            token = encoded.ids[index]
            piece = self.tokenizer.id_to_token(token) or ""
            if token == self.tokenizer.unk_id:
                piece, continues = text[start:end], False
            elif marked:
                continues = len(piece) != end - start
            else:
                continues = start > 0 and " " not in text[start - 1 : start + 1]
            tokens.append(_Token([piece], scores_TL[index], start, end, index, continues))
        return tokens

    def _entities(self, tokens: list[_Token], strategy: str) -> list[dict[str, Any]]:
        if strategy == "none":
            return [
                {
                    "entity": self._label(token),
                    "score": float(token.scores.max()),
                    "index": token.index,
                    "word": token.pieces[0],
                    "start": token.start,
                    "end": token.end,
                }
                for token in tokens
            ]
        if strategy in _BY_WORD:
            tokens = [self._word(word, strategy) for word in _by_word(tokens)]
        groups: list[list[_Token]] = []
        tag = None
        for token in tokens:
            begins, name = _tag(self._label(token))
            if groups and name == tag and not begins:
                groups[-1].append(token)
            else:
                groups.append([token])
            tag = name
        return [self._group(group) for group in groups]

    def _word(self, tokens: list[_Token], strategy: str) -> _Token:
        if strategy == "average":
            scores = torch.stack([token.scores for token in tokens]).nanmean(dim=0)
        elif strategy == "max":
            scores = max(tokens, key=lambda token: float(token.scores.max())).scores
        else:
            scores = tokens[0].scores
        first = tokens[0]
        word = self._spelled([piece for token in tokens for piece in token.pieces])
        return _Token([word], scores, first.start, tokens[-1].end, first.index)

    def _group(self, tokens: list[_Token]) -> dict[str, Any]:
        return {
            "entity_group": self._label(tokens[0]).split("-", 1)[-1],
            "score": sum(float(token.scores.max()) for token in tokens) / len(tokens),
            "word": self._spelled([piece for token in tokens for piece in token.pieces]),
            "start": tokens[0].start,
            "end": tokens[-1].end,
        }

    def _label(self, token: _Token) -> str:
        return self.model.config.labels[int(token.scores.argmax())]

    def _spelled(self, pieces: list[str]) -> str:
        decoder = self.tokenizer.backend.decoder
        return " ".join(pieces) if decoder is None else str(decoder.decode(pieces))


def _strategy(name: Any, stride: int | None) -> str:
    strategy = str(name).lower()
    if strategy not in _STRATEGIES:
        raise RequestError(f"aggregation_strategy is {name!r}. {nearest(strategy, _STRATEGIES)}")
    if stride is not None and strategy == "none":
        raise RequestError('stride needs an aggregation_strategy such as "simple".')
    return strategy


def _words(item: Any, number: int) -> list[str]:
    if isinstance(item, list | tuple) and all(isinstance(word, str) for word in item):
        return list(item)
    raise RequestError(f"Input {number} is {item!r}; give a list of words.")


def _starts(words: Sequence[str], gap: int) -> list[int]:
    """Where each word begins in the text that they make up."""
    starts, place = [], 0
    for word in words:
        starts.append(place)
        place += len(word) + gap
    return starts


def _by_word(tokens: Sequence[_Token]) -> list[list[_Token]]:
    words: list[list[_Token]] = []
    for token in tokens:
        if words and token.continues:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _tag(label: str) -> tuple[bool, str]:
    """Whether ``label`` begins an entity, and its kind (Ramshaw and Marcus 1995)."""
    if label.startswith(("B-", "I-")):
        return label[0] == "B", label[2:]
    return False, label


def _distinct(entities: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Of entities that overlap, where two pieces of a text do, the longest and most certain."""
    kept: list[Any] = []
    for entity in sorted(entities, key=lambda entity: entity["start"]):
        if not kept or entity["start"] >= kept[-1]["end"]:
            kept.append(entity)
        elif _weight(entity) > _weight(kept[-1]):
            kept[-1] = entity
    return kept


def _weight(entity: Mapping[str, Any]) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]
