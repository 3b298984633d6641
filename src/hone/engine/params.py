"""The parameters of a request; nothing here needs torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hone.core.errors import RequestError

# Below this, logits / temperature could overflow; the result is the most likely token anyway.
_GREEDY_BELOW = 1e-5
MOST_LOGPROBS = 20
MOST_SAMPLES = 128

GrammarKind = Literal["json", "regex", "choice", "lark"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an output must be, token by token.

    Attributes:
        kind: "json" (a JSON schema), "regex", "choice" (a JSON list of texts) or "lark" (a grammar
            in the notation of llguidance).
        source: its text.
    """

    kind: GrammarKind
    source: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request is continued. Names and meanings are vLLM's; the default is greedy.

    The filters apply in transformers' order: repetition penalty, temperature, top-k, top-p, min-p.

    Attributes:
        max_tokens: most tokens to generate; None means up to the model's context length.
        min_tokens: no end of sequence, stop token or stop string before so many tokens.
        temperature: 0 takes the most likely token; above, logits are divided by it.
        top_k: sample among the k most likely tokens; 0 (or -1) means all.
        top_p: sample among the fewest tokens whose probability reaches p (Holtzman et al. 2019).
        min_p: drop tokens less likely than min_p times the likeliest (Nguyen et al. 2024).
        repetition_penalty: above 1, tokens of the prompt and the output become less likely
            (Keskar et al. 2019, section 4.1).
        stop: text that ends the output; neither it nor what follows is part of ``.text``.
        stop_token_ids: tokens that end the output, beside the model's own end of sequence.
        ignore_eos: go on after the model's end of sequence.
        seed: makes sampling repeatable, whatever else is in the batch; None draws a new one.
        n: how many outputs are drawn; they share the memory of the prompt.
        presence_penalty: taken from the logits of tokens that the output has, -2 to 2.
        frequency_penalty: taken from them once for each time that the output has them, -2 to 2.
        logit_bias: added to the logits of these tokens, -100 to 100.
        logprobs: also tell the log-probability of each token, and those of so many of the most
            likely ones (0 to 20), of the model's own distribution; None tells none.
        grammar: what the output must be; None leaves it free.

    Raises:
        RequestError: a value out of range; the message names it.
    """

    max_tokens: int | None = 256
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    seed: int | None = None
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        set_field(self, "stop", _tuple_of("stop", stop, str, "texts"))
        ids = _tuple_of("stop_token_ids", self.stop_token_ids, int, "token ids")
        set_field(self, "stop_token_ids", ids)
        if "" in self.stop:
            raise RequestError("stop holds an empty text, which would stop at once; remove it.")
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1)
        _whole("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, more than max_tokens ({self.max_tokens})."
            )
        _whole("top_k", self.top_k, -1)
        _number("temperature", self.temperature, 0.0, math.inf)
        _number("top_p", self.top_p, 0.0, 1.0, above=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, above=True)
        if self.seed is not None:
            _whole("seed", self.seed, 0)
        _whole("n", self.n, 1, MOST_SAMPLES)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(f"logit_bias is {self.logit_bias!r}; give a number for each token.")
        for token, bias in self.logit_bias.items():
            _whole("a token of logit_bias", token, 0)
            _number(f"logit_bias of token {token}", bias, -100.0, 100.0)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0, MOST_LOGPROBS)

    @property
    def stops(self) -> tuple[str, ...]:
        """``stop`` as a tuple, always."""
        return tuple(self.stop)

    @property
    def greedy(self) -> bool:
        """True when the most likely token is always taken."""
        return self.temperature < _GREEDY_BELOW or self.top_k == 1


def _tuple_of(name: str, values: object, kind: type, what: str) -> tuple:
    if isinstance(values, Sequence | set | frozenset):
        found = tuple(values)
        if all(isinstance(value, kind) and not isinstance(value, bool) for value in found):
            return found
    raise RequestError(f"{name} is {values!r}; give a list of {what}.")


def _whole(name: str, value: object, low: int, high: int | None = None) -> None:
    if isinstance(value, int) and not isinstance(value, bool) and value >= low:
        if high is None or value <= high:
            return
        raise RequestError(f"{name} is {value!r}; give a whole number of at most {high}.")
    raise RequestError(f"{name} is {value!r}; give a whole number of {low} or more.")


def _number(name: str, value: Any, low: float, high: float, above: bool = False) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and low <= value <= high and math.isfinite(value) and not (above and value == low):
        return
    start = f"above {low:g}" if above else f"of {low:g} or more"
    end = "" if high == math.inf else f", at most {high:g}"
    raise RequestError(f"{name} is {value!r}; give a number {start}{end}.")
