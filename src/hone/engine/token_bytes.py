"""The bytes that each token adds to a text, whatever kind of tokenizer it belongs to."""

import json
from collections.abc import Mapping
from typing import Any

from hone.text.tokenizer import Tokenizer

_UNREADABLE = "�"  # what a decoder writes for bytes that are no character by themselves


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """What each id adds to a text that it continues, in bytes of UTF-8.

    Special tokens and ids without a token add nothing: ``b""``. A token of which no text can be
    known, such as a part of a character in a vocabulary that is not of bytes, is empty too.
    """
    backend = tokenizer.backend
    spellings: Mapping[str, int] = backend.get_vocab(with_added_tokens=True)
    added = {index: token.content for index, token in backend.get_added_tokens_decoder().items()}
    decoders = _decoders(json.loads(backend.to_str()).get("decoder"))
    table = _byte_table() if "ByteLevel" in decoders else None
    fallback = "ByteFallback" in decoders
    found = [b""] * (max(spellings.values(), default=-1) + 1)
    unknown: list[int] = []
    for token, index in spellings.items():
        if index in tokenizer.special_ids or index == tokenizer.unk_id:
            continue
        if index in added:
            found[index] = added[index].encode()
        elif table is not None and all(sign in table for sign in token):
            found[index] = bytes(table[sign] for sign in token)
        elif fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            found[index] = bytes([int(token[3:5], 16)])
        else:
            unknown.append(index)
    _ask_the_decoder(tokenizer, unknown, found)
    return found


def _ask_the_decoder(tokenizer: Tokenizer, unknown: list[int], found: list[bytes]) -> None:
    """Fill in what the decoder writes for each token behind another one."""
    # A word's first token loses its space where it begins a text, so something must stand before.
    first = next((i for i in unknown if _plain(tokenizer.backend.decode([i]))), None)
    if first is None:
        return
    before = str(tokenizer.backend.decode([first]))
    for index in unknown:
        text = str(tokenizer.backend.decode([first, index]))
        if text.startswith(before) and _UNREADABLE not in text:
            found[index] = text[len(before) :].encode()


def _plain(text: str) -> bool:
    return text.isalnum()


def _decoders(config: Any) -> set[str]:
    """The kinds of a decoder and of those within it."""
    if not isinstance(config, dict):
        return set()
    inner = [_decoders(part) for part in config.get("decoders", ())]
    return {str(config.get("type"))}.union(*inner)


def _byte_table() -> dict[str, int]:
    """How byte-level vocabularies spell bytes: printable ones as they are, the others from U+0100.

    Source: GPT-2's ``bytes_to_unicode``.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}
