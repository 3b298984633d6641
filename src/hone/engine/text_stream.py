"""Tokens to text, piece by piece: no piece ends inside a character, none shows a stop string."""

from collections.abc import Sequence

from hone.text.tokenizer import Tokenizer

_UNREADABLE = "�"  # what a decoder writes for bytes that are not (yet) a character
_CONTEXT = 8


class TextStream:
    """The text of one output.

    A piece is held back while it ends in an incomplete character, or in what may become a stop
    string. Joined, the pieces are the text of the tokens up to the first stop string.

    Attributes:
        stopped: a stop string was met; nothing more is accepted.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int] = (), stop: Sequence[str] = ()
    ) -> None:
        """Start after ``prompt``.

        The end of the prompt is decoded along, because some tokenizers (SentencePiece) drop the
        space before the first word of what they decode.
        """
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids = list(prompt[-_CONTEXT:])
        # Decoded again each time: from the last boundary but one, so that a word has its context.
        # At a boundary no character is cut.
        self._start, self._boundary = 0, len(self._ids)
        self._shown = len(self._decode().rstrip(_UNREADABLE))  # of the window's characters
        self._pieces: list[str] = []
        self._held = ""
        self.stopped = False

    @property
    def text(self) -> str:
        """What was released so far."""
        return "".join(self._pieces)

    def push(self, ids: Sequence[int], may_stop: bool = True) -> str:
        """Append tokens; returns the text that can be shown now.

        Args:
            may_stop: False passes the text on without looking for stop strings in it.
        """
        self._ids.extend(ids)
        window = self._decode()
        ready = window.rstrip(_UNREADABLE)
        new = ready[self._shown :]
        self._shown += len(new)
        if new and len(ready) == len(window):
            self._start, self._boundary = self._boundary, len(self._ids)
            self._shown = len(self._decode())
        return self._release(new, may_stop)

    def finish(self, may_stop: bool = True) -> str:
        """No more tokens: returns the rest, held-back parts included."""
        rest = "" if self.stopped else self._decode()[self._shown :]
        released = self._release(rest, may_stop)
        if self.stopped:
            return released
        tail, self._held = self._held, ""
        if tail:
            self._pieces.append(tail)
        return released + tail

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids[self._start :])

    def _release(self, new: str, may_stop: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        keep = 0
        if may_stop and self._stop:
            found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
            if found:
                self.stopped = True
                text = text[: min(found)]
            else:
                keep = max(_overlap(text, stop) for stop in self._stop)
        released = text[: len(text) - keep]
        self._held = text[len(text) - keep :]
        if released:
            self._pieces.append(released)
        return released


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that a stop string may begin with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
