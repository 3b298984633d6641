"""Where words and sentences begin among tokens, told from what the tokens spell.

A word is what stands between white space (in Korean an 어절), with the space before it; WordPiece
has lost the space, so there a word is what has no ``##``. Sentences are found by simple rules.
"""

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hone.text.tokenizer import Tokenizer

_SPACE = b" \t\n\r\x0b\x0c"
# Stops before white space, with what closes a quotation; stops of Chinese and Japanese; lines.
_STOPS = r"(?:[.!?]|…)+(?:[\"')\]]|”|’|»|」|』)*(?=\s)|(?:。|！|？)+(?:」|』|”)?|\n+"
# Polite Korean ends a sentence without a stop too, as people type. The pattern reads bytes, so that
# letters in brackets would be one of their bytes.
_POLITE = (
    "(?:니다|니까|어요|아요|해요|세요|예요|에요|네요|군요|지요|까요|거든요|잖아요|는데요|죠)"
    r"(?=\s)"
)
_SENTENCE_END = re.compile(f"{_STOPS}|{_POLITE}".encode())
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")

Flags = npt.NDArray[np.bool_]


class TokenTexts:
    """What each token of a vocabulary spells."""

    def __init__(self, spellings: Sequence[bytes], special: Collection[int] = ()) -> None:
        """Note how each token begins and ends.

        Args:
            spellings: UTF-8 of each token, with the white space before a word, as it stands in a
                text.
            special: tokens that are no text; each is a word, and one begins after it.
        """
        self._spellings = tuple(spellings)
        self._special = np.zeros(len(spellings), dtype=bool)
        self._special[sorted(special)] = True
        stripped = [spelling.strip(_SPACE) for spelling in spellings]
        self._begins_with_space = np.array([s[:1] in _SPACE and s != b"" for s in spellings])
        self._ends_with_space = np.array([s[-1:] in _SPACE and s != b"" for s in spellings])
        self._only_space = np.array(
            [s != b"" and not rest for s, rest in zip(spellings, stripped, strict=True)]
        )

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "TokenTexts":
        """What the tokens of ``tokenizer`` spell: WordPiece, SentencePiece or byte-level."""
        settings = json.loads(tokenizer.backend.to_str())
        tokens = [tokenizer.id_to_token(index) or "" for index in range(tokenizer.vocab_size)]
        pipeline = json.dumps([settings.get("decoder"), settings.get("pre_tokenizer")])
        if settings["model"]["type"] == "WordPiece":
            prefix = settings["model"].get("continuing_subword_prefix", "##")
            texts = [
                token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
                for token in tokens
            ]
            spellings = [text.encode() for text in texts]
        elif '"ByteLevel"' in pipeline:
            table = _byte_level()
            spellings = [
                bytes(table[letter] for letter in token)
                if all(letter in table for letter in token)
                else token.encode()
                for token in tokens
            ]
        else:
            spellings = [_plain(token) for token in tokens]
        return cls(spellings, tokenizer.special_ids)

    def __repr__(self) -> str:
        return f"TokenTexts({self._digest})"

    @cached_property
    def _digest(self) -> str:
        content = repr((self._spellings, self._special.tolist()))
        return hashlib.sha256(content.encode()).hexdigest()

    def word_starts(self, ids: npt.NDArray[np.integer]) -> Flags:
        """Which tokens ``[N]`` begin a word; the first of all does."""
        starts = self._begins_with_space[ids]
        before = ids[:-1]
        # White space belongs to the word after it, unless that ends a token which has a word.
        starts[1:] &= ~self._ends_with_space[before]
        starts[1:] |= self._ends_with_space[before] & ~self._only_space[before]
        special = self._special[ids]
        starts |= special
        starts[1:] |= special[:-1]
        starts[:1] = True
        return starts

    def sentence_starts(self, ids: npt.NDArray[np.integer]) -> Flags:
        """Which tokens ``[N]`` begin a sentence; the first of all does."""
        spelled = [b"" if self._special[index] else self._spellings[index] for index in ids]
        ends = np.cumsum([len(spelling) for spelling in spelled])
        stops = [match.end() for match in _SENTENCE_END.finditer(b"".join(spelled))]
        # A stop inside a token ends the sentence after it.
        first = np.searchsorted(ends, stops) + 1
        starts = np.zeros(len(ids), dtype=bool)
        starts[first[first < len(ids)]] = True
        starts[:1] = True
        return starts


def _byte_level() -> dict[str, int]:
    """The letter that byte-level BPE (Radford et al. 2019) writes for each byte, turned around:
    visible letters stand for themselves, the other bytes in order for U+0100 and on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {
        chr(0x100 + number): byte for number, byte in enumerate(hidden)
    }


def _plain(token: str) -> bytes:
    """SentencePiece: a low line of its own for the space, and bytes as ``<0x0A>``."""
    if byte := _BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace("▁", " ").encode()
