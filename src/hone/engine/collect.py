"""From the engine's tokens to text: pieces as they come, stop strings, results. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hone.engine.params import SamplingParams
from hone.engine.request import Delta, FinishReason, TokenLogprobs
from hone.engine.text_stream import TextStream
from hone.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step brought to one output, as text.

    Attributes:
        index: which of the ``n`` outputs.
        text: what can be shown now; tokens whose text is held back are in ``tokens`` all the same.
        finish_reason: set with the last piece.
        stop: the engine still works on this output and need not: a stop string was met.
    """

    index: int
    text: str
    tokens: list[int]
    logprobs: list[TokenLogprobs]
    finish_reason: FinishReason | None = None
    stop: bool = False


@dataclass(slots=True)
class _Output:
    text: TextStream
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class Collector:
    """The outputs of one request."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        opening: Sequence[int],
        ends: frozenset[int] = frozenset(),
        shows: bool = True,
    ) -> None:
        """Nothing has come yet.

        Args:
            opening: what the outputs continue.
            ends: the model's own end-of-sequence tokens, which are no text.
            shows: text is wanted as it comes, not only at the end.
        """
        self._params = params
        self._shows = shows or bool(params.stop)
        self._ends = set(params.stop_token_ids) | (set() if params.ignore_eos else set(ends))
        self._outputs = [
            _Output(TextStream(tokenizer, opening, params.stops)) for _ in range(params.n)
        ]

    @property
    def done(self) -> bool:
        """Every output has ended."""
        return all(output.finish_reason is not None for output in self._outputs)

    def take(self, delta: Delta) -> Piece:
        """The text of ``delta``; tokens behind a stop string are dropped."""
        output = self._outputs[delta.index]
        if output.finish_reason is not None:  # it came while the engine was being told
            return Piece(delta.index, "", [], [], output.finish_reason)
        first, shown = len(output.tokens), [""]
        for token in delta.tokens:
            output.tokens.append(token)
            if token in self._ends and delta.finish_reason is not None:
                continue  # what ended the output is no text
            if self._shows:
                shown.append(output.text.push((token,), self._may_stop(output)))
            if output.text.stopped:
                output.finish_reason = "stop"
                break
        stop = output.finish_reason is not None and delta.finish_reason is None
        if output.finish_reason is None and delta.finish_reason is not None:
            output.finish_reason = delta.finish_reason
            if not self._shows:
                ended = output.tokens and output.tokens[-1] in self._ends
                output.text.push(output.tokens[:-1] if ended else output.tokens)
            shown.append(output.text.finish(self._may_stop(output)))
            if output.text.stopped:
                output.finish_reason = "stop"
        tokens = output.tokens[first:]
        logprobs = delta.logprobs[: len(tokens)]
        output.logprobs.extend(logprobs)
        return Piece(delta.index, "".join(shown), tokens, logprobs, output.finish_reason, stop)

    def _may_stop(self, output: _Output) -> bool:
        return len(output.tokens) > self._params.min_tokens

    def text(self, index: int = 0) -> str:
        """What was released of an output so far."""
        return self._outputs[index].text.text

    def tokens(self, index: int = 0) -> list[int]:
        """Every token of an output so far, the one that ended it included."""
        return self._outputs[index].tokens

    def logprobs(self, index: int = 0) -> list[TokenLogprobs]:
        """Those of the tokens, when they were asked for."""
        return self._outputs[index].logprobs

    def finish_reason(self, index: int = 0) -> FinishReason | None:
        """Why an output ended; None while it goes on."""
        return self._outputs[index].finish_reason
