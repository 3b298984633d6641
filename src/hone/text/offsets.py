"""Encoding many texts with the place of each token: from spans of characters to tokens."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers

from hone.text.tokenizer import Span, Tokenizer, encodable

# What may stand before a text so that the tokenizer takes it for one that goes on.
_BEFORE = ("\n", "a", "1", ".")
_MOST_PIECES = 1000


@dataclass(frozen=True, slots=True)
class Encoded:
    """The ids of a text; token i is characters ``starts[i]`` up to ``ends[i]`` of it.

    A character of several tokens belongs to each of them; both lists never decrease.
    """

    ids: list[int]
    starts: list[int]
    ends: list[int]

    def tokens_of(self, span: Span) -> range:
        """The tokens that hold any character of ``span``."""
        return range(bisect_right(self.ends, span[0]), bisect_left(self.starts, span[1]))

    def cuts(self, place: int) -> bool:
        """Whether a token holds characters on both sides of ``place``."""
        first = bisect_right(self.ends, place)
        return first < len(self.starts) and self.starts[first] < place


class OffsetEncoder:
    """A tokenizer's own ids, and places that leave no character out.

    Byte-level tokenizers usually do not count a token's leading space to its place, so that the
    place of a run of spaces is empty. Here it is counted.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._added = frozenset(tokenizer.backend.get_added_tokens_decoder())
        self._pieces: dict[str, list[int]] = {}
        self._backend = tokenizer.backend
        processor = self._backend.post_processor
        if processor is not None and b'"trim_offsets":true' in processor.__getstate__():
            # It has no other use here, where no special tokens are added.
            self._backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
            self._backend.encode_special_tokens = tokenizer.backend.encode_special_tokens
            self._backend.post_processor = None

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """Each text, in parallel; no special tokens are added."""
        found = []
        for item in self._backend.encode_batch(
            list(map(encodable, texts)), add_special_tokens=False
        ):
            offsets = item.offsets
            found.append(Encoded(item.ids, [a for a, _ in offsets], [b for _, b in offsets]))
        return found

    def begins_with(self, encoded: Encoded, text: str, place: int) -> bool:
        """Whether the ids of ``text`` begin with those of ``text[:place]`` encoded by itself.

        Not so where a token holds characters of both sides, nor where white space before ``place``
        is split according to what follows. Only the piece since the last token that always stands
        for itself is encoded again, which mostly is the same one each time.
        """
        if encoded.cuts(place):
            return False
        end = bisect_right(encoded.ends, place)
        start = next((at for at in range(end - 1, 0, -1) if encoded.ids[at] in self._added), 0)
        piece = text[encoded.starts[start] if start else 0 : place]
        if piece not in self._pieces:
            if len(self._pieces) > _MOST_PIECES:
                self._pieces.clear()
            self._pieces[piece] = self.tokenizer.encode(piece)
        return encoded.ids[start:end] == self._pieces[piece]

    def encode_continuation(self, text: str) -> list[int]:
        """The ids of ``text`` where another stands before it: without what only a beginning gets.

        Sentencepiece-like tokenizers put a space before every text, which would stand between a
        prompt and its answer.
        """
        for before in _BEFORE:
            (encoded,) = self.encode_batch([before + text])
            if not encoded.cuts(len(before)):
                return encoded.ids[bisect_right(encoded.ends, len(before)) :]
        return self.tokenizer.encode(text)
