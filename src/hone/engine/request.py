"""What is asked of the engine and what it answers, step by step; nothing here needs torch."""

from dataclasses import dataclass, field
from typing import Literal

from hone.engine.params import SamplingParams

# "abort": taken back by whoever asked, or ended because it took too long. "error": it cannot go on.
FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt for the engine.

    Attributes:
        id: unique among the requests that are running.
        prompt: token ids; the source of a model with an encoder.
        params: how it is continued; ``params.n`` outputs.
        priority: of two that wait, the one with the lower number goes first.
        owner: requests of different owners (API keys) get equal shares of the machine.
        adapter: the name of a LoRA adapter of the engine; None for the bare model.
        embed: compute the prompt's embedding, and continue nothing.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    owner: str = ""
    adapter: str | None = None
    embed: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The log-probability of a chosen token, and of the most likely ones with the best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Delta:
    """What one step brought to one output of a request.

    Attributes:
        request: its id.
        index: which of the ``n`` outputs.
        tokens: the new ones; the one that ended the output included.
        logprobs: of each new token, when asked for.
        finish_reason: set with the last delta of the output.
        cached: tokens of the prompt that were found in the cache; known with the first delta.
        error: with the reason "error", what is wrong, in a sentence.
        embedding: of a request with ``embed``, unnormalised, with its only delta.
    """

    request: str
    index: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    cached: int = 0
    error: str = ""
    embedding: list[float] | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """How the engine stands.

    Attributes:
        running, waiting: sequences that hold blocks, and that wait for them.
        blocks, free_blocks: of the cache; blocks that only remember prefixes count as free.
        prefix_queries, prefix_hits: tokens of prompts so far, and those found in the cache.
        preemptions: sequences that lost their blocks and were computed again.
        drafted, accepted: speculated tokens so far.
        prompt_tokens, generated_tokens: computed so far.
        steps: so far.
    """

    running: int = 0
    waiting: int = 0
    blocks: int = 0
    free_blocks: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    drafted: int = 0
    accepted: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
