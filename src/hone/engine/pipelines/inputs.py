"""Texts as the tokens that a model reads, cut to a length when that is asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hone.core.errors import RequestError
from hone.text.tokenizer import Span, Tokenizer

Words = Sequence[str]
# A text, a pair of texts, or the words of a text.
Text = str | tuple[str, str] | Words


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of a text or a pair of texts; all lists have one entry per token.

    Attributes:
        ids: of the vocabulary.
        kinds: of segment, 0 or 1.
        spans: where each stands in its text, in characters; of its word if the text is words.
        sides: which of the texts it is of, 0 or 1; None for a token that was added.
        words: the number of its word; None for a token that was added.
    """

    ids: list[int]
    kinds: list[int]
    spans: list[Span]
    sides: list[int | None]
    words: list[int | None]

    def take(self, places: Iterable[int]) -> "Encoded":
        """The tokens at ``places``."""
        chosen = list(places)
        return Encoded(
            [self.ids[i] for i in chosen],
            [self.kinds[i] for i in chosen],
            [self.spans[i] for i in chosen],
            [self.sides[i] for i in chosen],
            [self.words[i] for i in chosen],
        )


def encode(
    tokenizer: Tokenizer, texts: Sequence[Text], *, special: bool = True, words: bool = False
) -> list[Encoded]:
    """The tokens of each text.

    Args:
        special: add the tokens that the tokenizer puts around a text.
        words: each text is a list of its words.
    """
    encodings = tokenizer.backend.encode_batch(
        [_encodable(text) for text in texts], is_pretokenized=words, add_special_tokens=special
    )
    found = []
    for text, encoding in zip(texts, encodings, strict=True):
        added = encoding.special_tokens_mask
        sides = zip(encoding.sequence_ids, added, strict=True)
        encoded = Encoded(
            list(encoding.ids),
            list(encoding.type_ids),
            list(encoding.offsets),
            [None if extra else (side or 0) for side, extra in sides],
            list(encoding.word_ids),
        )
        if isinstance(text, str) and encoded.ids[:1] == encoded.ids[1:2]:
            # Perhaps a second BOS, which the tokenizer leaves out.
            surplus = len(encoded.ids) - len(tokenizer.encode(text, special))
            encoded = encoded.take(range(surplus, len(encoded.ids)))
        found.append(encoded)
    return found


def _encodable(text: Text) -> Text:
    # A lone surrogate has no UTF-8; "?" keeps the offsets right, as in the tokenizer.
    if isinstance(text, str):
        return text.encode("utf-8", "replace").decode("utf-8")
    return type(text)(_encodable(part) for part in text)  # type: ignore[call-arg]


def cut(encoded: Encoded, length: int, left: bool = False) -> Encoded:
    """At most ``length`` tokens; of two texts the longer loses first. Added tokens stay.

    Args:
        left: cut the beginning and not the end.

    Raises:
        RequestError: ``length`` has no room for the added tokens.
    """
    if len(encoded.ids) <= length:
        return encoded
    room = _room(encoded, length)
    places = [[i for i, side in enumerate(encoded.sides) if side == n] for n in (0, 1)]
    short, long = sorted(places, key=len)
    keep_short = min(len(short), room // 2)
    dropped: set[int] = set()
    for part, keep in ((short, keep_short), (long, room - keep_short)):
        dropped |= set(part[: len(part) - keep] if left else part[keep:])
    return encoded.take(i for i in range(len(encoded.ids)) if i not in dropped)


def windows(encoded: Encoded, length: int, overlap: int) -> list[Encoded]:
    """A text in pieces of at most ``length`` tokens, each with the added ones.

    Args:
        overlap: tokens that a piece shares with the one before it.

    Raises:
        RequestError: ``overlap`` leaves no room for new tokens.
    """
    if len(encoded.ids) <= length:
        return [encoded]
    own = [i for i, side in enumerate(encoded.sides) if side is not None]
    room = _room(encoded, length)
    if not 0 <= overlap < room:
        raise RequestError(f"stride is {overlap}; it must be from 0 to {room - 1} here.")
    pieces = []
    for start in range(0, len(own) - overlap, room - overlap):
        kept = set(own[start : start + room])
        pieces.append(
            encoded.take(i for i, side in enumerate(encoded.sides) if side is None or i in kept)
        )
    return pieces


def _room(encoded: Encoded, length: int) -> int:
    added = encoded.sides.count(None)
    if length <= added:
        raise RequestError(f"max_length is {length}, and {added} of a text's tokens are added.")
    return length - added
