"""Log-probabilities in the two shapes of OpenAI's: chat's, and that of plain completions."""

from collections.abc import Sequence
from typing import Any

from hone.engine.request import TokenLogprobs
from hone.engine.token_bytes import token_bytes
from hone.text.tokenizer import Tokenizer

# JSON has no infinity; this is what OpenAI writes for a token that cannot come.
_LEAST = -9999.0


class TokenTexts:
    """The bytes and the text of each token of a vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes: list[bytes] | None = None

    def read(self) -> None:
        """Read the vocabulary, which takes up to a second; any thread may."""
        if self._bytes is None:
            self._bytes = token_bytes(self._tokenizer)

    def bytes(self, token: int) -> bytes:
        """What ``token`` adds to a text; a special token's spelling."""
        self.read()
        assert self._bytes is not None
        found = self._bytes[token] if token < len(self._bytes) else b""
        return found or (self._tokenizer.id_to_token(token) or "").encode()

    def text(self, token: int) -> str:
        """Its text; a part of a character is named by its bytes, as OpenAI does."""
        found = self.bytes(token)
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)


def chat_logprobs(texts: TokenTexts, entries: Sequence[TokenLogprobs], top: int) -> dict[str, Any]:
    """``choices[].logprobs`` of chat, of some tokens."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": texts.text(token),
            "logprob": max(logprob, _LEAST),
            "bytes": list(texts.bytes(token)),
        }

    content = [
        one(entry.token, entry.logprob)
        | {"top_logprobs": [one(token, logprob) for token, logprob in entry.top[:top]]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    texts: TokenTexts, entries: Sequence[TokenLogprobs], top: int, offset: int
) -> dict[str, Any]:
    """``choices[].logprobs`` of plain completions, of some tokens.

    Args:
        top: how many of the likeliest are told; the chosen one is always among them.
        offset: characters of the text before these tokens.
    """
    tokens, offsets, tops = [], [], []
    before = b""
    for entry in entries:
        tokens.append(texts.text(entry.token))
        offsets.append(offset + len(before.decode(errors="ignore")))
        before += texts.bytes(entry.token)
        listed = [*entry.top[:top], (entry.token, entry.logprob)]
        tops.append({texts.text(token): max(logprob, _LEAST) for token, logprob in listed})
    return {
        "tokens": tokens,
        "token_logprobs": [max(entry.logprob, _LEAST) for entry in entries],
        "top_logprobs": tops if top else None,
        "text_offset": offsets,
    }
