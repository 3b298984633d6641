"""Offline generation: prompts in, continuations out, in the same order."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from hone.core.errors import CheckpointError, RequestError
from hone.engine.collect import Collector
from hone.engine.engine import Engine
from hone.engine.invariance import RowCounts
from hone.engine.params import SamplingParams
from hone.engine.request import Request, TokenLogprobs
from hone.engine.sources import AnswerTokens
from hone.models import CausalLM, Seq2SeqLM
from hone.text.tokenizer import Tokenizer

# What can generate.
Generator = CausalLM | Seq2SeqLM

Stream = Callable[[int, str], None]
Finished = Callable[[int, "GenerationResult"], None]


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """One continuation.

    Attributes:
        text: the continuation without special tokens, up to the first stop string.
        token_ids: every generated token, the one that ended the output included.
        finish_reason: "stop" (end of sequence, stop token or stop string) or "length".
        prompt_token_ids: the prompt as the model read it.
        seconds: from when it was asked for until it was finished.
        logprobs: of each token, when asked for.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_token_ids: list[int]
    seconds: float
    logprobs: list[TokenLogprobs] = field(default_factory=list)


def generate(
    model: Generator,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    end_ids: Collection[int],
    stream: Stream | None = None,
    finished: Finished | None = None,
    row_counts: RowCounts = (),
    answer: AnswerTokens | None = None,
) -> list[GenerationResult]:
    """Continue each prompt with an engine of its own; or with an encoder, answer it.

    Args:
        prompts: token ids, one sequence per request.
        params: one per prompt.
        end_ids: the model's own end-of-sequence tokens.
        stream, finished, row_counts, answer: see :func:`run` and :class:`hone.engine.Engine`.

    Raises:
        RequestError: a prompt is empty, too long for the model, or holds an unknown id.
        CapacityError: no memory for the cache.
        CheckpointError: the model's scores are not numbers.
    """
    if not prompts:
        return []
    engine = Engine(model, tokenizer, end_ids, answer, row_counts)
    opening = None if answer is None else (answer.start,)
    return run(engine, tokenizer, prompts, params, frozenset(end_ids), opening, stream, finished)


def run(
    engine: Engine,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    end_ids: frozenset[int],
    opening: Sequence[int] | None = None,
    stream: Stream | None = None,
    finished: Finished | None = None,
    adapter: str | None = None,
) -> list[GenerationResult]:
    """Let ``engine`` continue each prompt; it has nothing else to do.

    Args:
        opening: what an answer begins with, of a model with an encoder.
        stream: called with the index of a result and the next piece of its text.
        finished: called with the index of a result and the result, in the order of finishing.
        adapter: the LoRA adapter of all prompts.

    Returns:
        One result for each prompt; ``n`` neighbouring ones where ``params.n`` asks for them.
    """
    start = time.perf_counter()
    collectors: dict[str, tuple[int, int, Collector]] = {}  # first result, prompt, outputs
    first = 0
    results: list[GenerationResult | None] = []
    try:
        for number, (prompt, p) in enumerate(zip(prompts, params, strict=True)):
            request = Request(f"{number}", tuple(prompt), p, adapter=adapter)
            try:
                engine.add(request)
            except RequestError as error:
                where = f"Prompt {number + 1}: " if len(prompts) > 1 else ""
                raise RequestError(f"{where}{error}") from error
            begin = prompt if opening is None else opening
            collector = Collector(tokenizer, p, begin, end_ids, stream is not None)
            collectors[request.id] = first, number, collector
            first += p.n
        results = [None] * first
        while engine.busy:
            time.sleep(max(0.0, engine.delay()))
            for delta in engine.step():
                if delta.finish_reason == "error":
                    raise CheckpointError(delta.error)
                base, number, collector = collectors[delta.request]
                piece = collector.take(delta)
                index = base + piece.index
                if piece.text and stream is not None:
                    stream(index, piece.text)
                if piece.stop:
                    engine.abort(delta.request, piece.index)
                if piece.finish_reason is not None:
                    results[index] = result = GenerationResult(
                        collector.text(piece.index),
                        collector.tokens(piece.index),
                        piece.finish_reason,
                        list(prompts[number]),
                        time.perf_counter() - start,
                        collector.logprobs(piece.index),
                    )
                    if finished is not None:
                        finished(index, result)
    finally:
        for name in collectors:
            engine.abort(name)
    return [result for result in results if result is not None]
