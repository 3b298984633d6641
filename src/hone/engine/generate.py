"""Batched generation: prompts of any lengths in, continuations in the same order out.

Prompts are sorted by length and cut into batches under a token budget. In a batch the tokens of all
rows lie behind one another, with no padding between them, and rows that are done leave it.

A model with an encoder reads prompts there, as sources, and continues the token that every answer
starts with.

Shapes: N tokens of a pass, M tokens of the sources, B rows, E hidden size, V vocabulary.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hone.core.errors import CheckpointError, RequestError
from hone.engine.cache import RowCache
from hone.engine.invariance import RowCounts, pad_rows
from hone.engine.params import SamplingParams
from hone.engine.sampler import Sampler
from hone.engine.sources import AnswerTokens, read_sources
from hone.engine.text_stream import TextStream
from hone.models import CausalLM, Rotary, Seq2SeqLM
from hone.text.tokenizer import Tokenizer

_MAX_ROWS = 64
# Tokens of a batch: prompts together, and the cache at its fullest.
_PROMPT_TOKENS = 16_384
_CACHE_TOKENS = 131_072
# A batch is made smaller when no more than this share of its rows still runs, or when one that is
# done would go on beyond the positions that the model knows.
_COMPACT_BELOW = 0.8

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
        seconds: from the start of its batch until it was finished.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_token_ids: list[int]
    seconds: float


class _Row:
    """One request while it runs."""

    __slots__ = (
        "budget",
        "ends",
        "ids",
        "index",
        "last",
        "opening",
        "params",
        "prompt",
        "reason",
        "stream",
        "text",
    )

    def __init__(
        self,
        index: int,
        prompt: list[int],
        params: SamplingParams,
        ends: Collection[int],
        room: int,
        answer: AnswerTokens | None = None,
    ) -> None:
        self.index, self.prompt, self.params, self.ends = index, prompt, params, ends
        self.budget = room if params.max_tokens is None else min(params.max_tokens, room)
        # What is continued, and what is put at the end of the budget.
        self.opening = prompt if answer is None else [answer.start]
        self.last = None if answer is None or params.ignore_eos else answer.last
        self.ids: list[int] = []
        self.reason = ""
        self.text: TextStream
        self.stream: Stream | None = None

    def open(self, tokenizer: Tokenizer, stream: Stream | None) -> None:
        self.text = TextStream(tokenizer, self.opening, self.params.stops)
        self.stream = stream

    def accept(self, token: int) -> bool:
        """Take a token; True when the row is finished."""
        self.ids.append(token)
        if token in self.ends:
            # Below min_tokens the sampler never offers one of these, unless it must.
            forced = token == self.last and len(self.ids) == self.budget
            self.reason = "length" if forced else "stop"
        elif self.stream is not None or self.params.stop:
            self._show(self.text.push((token,), len(self.ids) > self.params.min_tokens))
            if self.text.stopped:
                self.reason = "stop"
        if not self.reason and len(self.ids) >= self.budget:
            self.reason = "length"
        return bool(self.reason)

    def result(self, seconds: float) -> GenerationResult:
        if self.stream is None and not self.params.stop:  # nothing was decoded on the way
            self.text.push(self.ids[:-1] if self.ids[-1] in self.ends else self.ids)
        self._show(self.text.finish(len(self.ids) > self.params.min_tokens))
        return GenerationResult(self.text.text, self.ids, self.reason, self.prompt, seconds)

    def _show(self, piece: str) -> None:
        if piece and self.stream is not None:
            self.stream(self.index, piece)


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
    """Continue each prompt; or with an encoder, answer it.

    Args:
        prompts: token ids, one sequence per request.
        params: one per prompt.
        end_ids: the model's own end-of-sequence tokens.
        stream: called with a prompt's index and the next piece of its text.
        finished: called with a prompt's index and its result, in the order of finishing.
        row_counts: pad passes of few rows so that no row's result depends on the others; see
            :func:`hone.engine.invariance.safe_row_counts`. Empty means as they come.
        answer: what a model with an encoder begins and ends with.

    Raises:
        RequestError: a prompt is empty, too long for the model, or holds an unknown id.
        CapacityError: no memory for the cache of a batch.
        CheckpointError: the model's scores are not numbers.
    """
    rows = [
        _row(model, index, list(prompt), p, end_ids, answer)
        for index, (prompt, p) in enumerate(zip(prompts, params, strict=True))
    ]
    results: list[GenerationResult | None] = [None] * len(rows)
    for batch in _batches(rows):
        for row in batch:
            row.open(tokenizer, stream)
        for row, seconds in _run(model, batch, row_counts, answer):
            result = row.result(seconds)
            results[row.index] = result
            if finished is not None:
                finished(row.index, result)
    return [result for result in results if result is not None]


def _row(
    model: Generator,
    index: int,
    prompt: list[int],
    params: SamplingParams,
    end_ids: Collection[int],
    answer: AnswerTokens | None,
) -> _Row:
    config = model.config
    vocabulary, context = config.vocab_size, config.max_position_embeddings
    if not prompt:
        raise RequestError(f"Prompt {index + 1} is empty; give at least one token.")
    reader = config.encoder or config
    longest, included = context - 1, ", the answer included"
    if config.encoder is not None:
        longest, included = config.encoder.max_position_embeddings, ""
    if len(prompt) > longest and not reader.extrapolates:
        raise RequestError(
            f"Prompt {index + 1} has {len(prompt):,} tokens; this model reads "
            f"{reader.max_position_embeddings:,}{included}. Shorten it."
        )
    if not all(isinstance(i, int) and 0 <= i < vocabulary for i in prompt):
        raise RequestError(
            f"Prompt {index + 1} holds a token id outside 0..{vocabulary - 1}, the vocabulary."
        )
    ends = set(params.stop_token_ids) | (set() if params.ignore_eos else set(end_ids))
    room = context - (1 if config.encoder is not None else len(prompt))
    if config.extrapolates:
        room = max(room, params.max_tokens or 1)
    return _Row(index, prompt, params, ends, room, answer)


def _batches(rows: list[_Row]) -> Iterator[list[_Row]]:
    """Rows of similar length together, the longest first (so that memory runs out early)."""
    batch: list[_Row] = []
    budget = 0
    for row in sorted(rows, key=lambda row: (-len(row.prompt), -row.budget)):
        count, longest = len(batch) + 1, len((batch or [row])[0].prompt)
        budget = max(budget, row.budget)
        if batch and (
            count > _MAX_ROWS
            or count * longest > _PROMPT_TOKENS
            or count * (longest + budget) > _CACHE_TOKENS
        ):
            yield batch
            batch, budget = [], row.budget
        batch.append(row)
    if batch:
        yield batch


@torch.inference_mode()
def _run(
    model: Generator, rows: list[_Row], row_counts: RowCounts, answer: AnswerTokens | None
) -> Iterator[tuple[_Row, float]]:
    """Run one batch; yields each row with its seconds when it is finished."""
    start = time.perf_counter()
    device = model.device
    cache = RowCache(model.config, len(rows), model.dtype, device)
    sampler = Sampler(
        [row.params for row in rows],
        [row.opening for row in rows],
        [row.ends for row in rows],
        [row.budget for row in rows],
        model.config.vocab_size,
        device,
        None if answer is None else answer.first,
        [row.last for row in rows],
    )
    # For the first pass; the cache remembers what layers make of the sources.
    source_ME, source_lengths = None, None
    if isinstance(model, Seq2SeqLM):
        source_ME = read_sources(model, [row.prompt for row in rows], row_counts)
        source_lengths = [len(row.prompt) for row in rows]
    ids_N = torch.tensor([i for row in rows for i in row.opening], device=device)
    last_B = torch.tensor([len(row.opening) for row in rows], device=device).cumsum(0) - 1
    running: list[_Row | None] = list(rows)
    lengths = [len(row.opening) for row in rows]
    for step in range(max(row.budget for row in rows)):
        cache.begin(lengths, source_lengths)
        positions_N = cache.positions().to(device)
        hidden_NE = model.decoder(
            pad_rows(ids_N, row_counts),
            pad_rows(positions_N, row_counts),
            cache,
            source_ME=source_ME,
        )
        cache.advance()
        source_ME, source_lengths = None, None
        hidden_BE = pad_rows(hidden_NE[last_B], row_counts)
        logits_BV = model.logits(hidden_BE)[: len(running)]
        if step == 0 and not bool(torch.isfinite(logits_BV).all()):
            raise CheckpointError(
                "The model's scores are not numbers (NaN or infinity): its weights are damaged, or "
                'too large for their dtype. Load it with dtype="float32", or save it again.'
            )
        ids_N = sampler(logits_BV, step)
        for place, token in enumerate(ids_N.tolist()):
            row = running[place]
            if row is not None and row.accept(token):
                running[place] = None
                yield row, time.perf_counter() - start
        left = [place for place, row in enumerate(running) if row is not None]
        if not left:
            return
        context = model.config.max_position_embeddings
        done = (cache.held(place) for place, row in enumerate(running) if row is None)
        if len(left) <= _COMPACT_BELOW * len(running) or any(held >= context for held in done):
            keep_R = torch.tensor(left, device=device)
            cache.select_rows(left)
            sampler.select_rows(keep_R)
            ids_N = ids_N[keep_R]
            running = [running[place] for place in left]
        ids_N, lengths = _next_pass(model, cache, running, ids_N)
        last_B = torch.tensor(lengths, device=device).cumsum(0) - 1


def _next_pass(
    model: Generator, cache: RowCache, running: list[_Row | None], ids_B: Tensor
) -> tuple[Tensor, list[int]]:
    """The tokens that the model reads next, and how many of each row: its new one, or all of a row
    that has just outgrown its rotary positions.
    """
    positions, lengths = model.config.positions, [1] * len(running)
    point = positions.turning_point if isinstance(positions, Rotary) else None
    if point is None:
        return ids_B, lengths
    parts = list(ids_B.split(1))
    for place, row in enumerate(running):
        if row is not None and len(row.opening) + len(row.ids) == point + 1:
            cache.forget(place)
            parts[place] = torch.tensor(row.opening + row.ids, device=ids_B.device)
            lengths[place] = point + 1
    return torch.cat(parts), lengths
