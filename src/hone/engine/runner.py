"""One step of the model: tokens of many sequences in, the tokens that come next out.

Shapes: N tokens of the pass, M tokens of the sources, R places that are scored, E hidden size,
V vocabulary, W words of a bitmask over the vocabulary.
"""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hone.engine.grammar import Matcher
from hone.engine.invariance import RowCounts, pad_rows
from hone.engine.paged import PagedCache, Row
from hone.engine.request import TokenLogprobs
from hone.engine.sampler import Place, Sampler
from hone.engine.scheduler import Schedule, Work
from hone.engine.sequence import Sequence
from hone.engine.sources import read_sources
from hone.models import CausalLM, Seq2SeqLM

if TYPE_CHECKING:
    from hone.engine.adapters import AdapterBank
    from hone.engine.compiled import CompiledDecoder
    from hone.engine.embeddings import Pooler


class Chosen(NamedTuple):
    """What the sampler chose for one sequence.

    Attributes:
        tokens: after its last token and after each guess; -1 where no token can follow.
        logprobs: of each, when asked for.
        row: of the first of these places among all that the pass scored.
    """

    sequence: Sequence
    tokens: list[int]
    logprobs: list[TokenLogprobs | None]
    row: int


@dataclass(slots=True)
class Runner:
    """A model and its cache.

    Attributes:
        exact: few rows are padded, so that no row depends on how many there are.
        matchers: of the sequences whose output follows a grammar, by key.
        poolers: of the sequences whose embedding is wanted, by key.
        bank: the adapters, if there are any.
        compiled: for passes in which every sequence reads one token.
        aside: computes what the pass does not wait for.
        hidden_RE: the hidden states of the places that the last pass scored.
    """

    model: CausalLM | Seq2SeqLM
    cache: PagedCache
    sampler: Sampler
    row_counts: RowCounts
    matchers: dict[int, Matcher]
    poolers: dict[int, "Pooler"]
    bank: "AdapterBank | None" = None
    compiled: "CompiledDecoder | None" = None
    aside: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    hidden_RE: Tensor = field(default_factory=lambda: torch.empty(0))  # noqa: N815

    _masks: "Future[Tensor | None] | None" = None

    def settle(self) -> None:
        """After a pass that failed: when this returns, no matcher is in use any more."""
        if self._masks is not None:
            wait([self._masks])

    @torch.inference_mode()
    def __call__(self, step: Schedule) -> list[Chosen]:
        """Compute a step; the result has an entry for every sequence that all is known of."""
        if step.copies:
            self.cache.copy(step.copies)
        for slot in step.fresh_slots:
            self.cache.clear_slot(slot)
        works, device = step.works, self.model.device
        sources = [number for number, work in enumerate(works) if work.reads_source]
        adapted = self._use_adapters(works, sources)
        source_ME = None
        if sources:
            assert isinstance(self.model, Seq2SeqLM)
            texts = [works[number].sequence.source for number in sources]
            source_ME = read_sources(self.model, texts, self.row_counts)
        ids_N = torch.tensor([token for work in works for token in _tokens(work)], device=device)
        self.cache.begin([_row(work) for work in works], sources)
        positions_N = self.cache.positions().to(device)
        scored = [work for work in works if work.new == work.sequence.pending]
        places, rows = self._places(works)
        # What the grammars allow is known before the scores are, and found out beside them.
        masks = self.aside.submit(self._allowed, scored, len(places)) if self.matchers else None
        self._masks = masks
        embeds = any(work.sequence.request.embed for work in works)
        hidden_NE = None
        if self.compiled is not None and not adapted and len(ids_N) == len(works):
            hidden_NE = self.compiled(ids_N, positions_N)
        whole = bool(self.row_counts) or embeds or adapted or hidden_NE is not None
        if hidden_NE is None:
            hidden_NE = self.model.decoder(
                pad_rows(ids_N, self.row_counts),
                pad_rows(positions_N, self.row_counts),
                self.cache,
                None if whole else torch.tensor(rows, dtype=torch.int64, device=device),
                source_ME=source_ME,
            )
        if embeds:
            self._pool(works, hidden_NE)
        if not places:
            return []
        hidden_RE = hidden_NE[torch.tensor(rows, device=device)] if whole else hidden_NE
        if adapted and self.bank is not None:
            adapters_N = [work.sequence.adapter for work in works for _ in range(work.new)]
            self.bank.use([(adapters_N[row], 1) for row in rows])
        logits_RV = self.model.logits(pad_rows(hidden_RE, self.row_counts))[: len(rows)]
        sampled = self.sampler(logits_RV, places, None if masks is None else masks.result())
        self.hidden_RE = hidden_RE
        return _split(scored, sampled.ids, sampled.logprobs)

    def _use_adapters(self, works: list[Work], sources: list[int]) -> bool:
        """Tell the bank whose rows come; whether some of them have an adapter."""
        if self.bank is None:
            return False
        self.row_counts = self.bank.row_counts or self.row_counts
        texts = [works[number].sequence for number in sources]
        return self.bank.use(
            [(work.sequence.adapter, work.new) for work in works],
            [(sequence.adapter, len(sequence.source)) for sequence in texts],
        )

    def _places(self, works: list[Work]) -> tuple[list[Place], list[int]]:
        """Where tokens are chosen, and in which rows of the pass."""
        places, rows, start = [], [], 0
        for work in works:
            sequence, end = work.sequence, start + work.new
            if work.new == sequence.pending and not sequence.request.embed:
                draft = sequence.draft
                count = 1 + (0 if draft is None else len(draft.tokens))
                for number in range(count):
                    drafted = () if draft is None else _path(draft.tokens, draft.parents, number)
                    index = sequence.written + len(drafted)
                    places.append(Place(sequence.sampler_key, index, drafted))
                    rows.append(end - count + number)
                for sibling in sequence.siblings:
                    places.append(Place(sibling.sampler_key, 0))
                    rows.append(end - 1)
            start = end
        return places, rows

    def _allowed(self, scored: list[Work], count: int) -> Tensor | None:
        """The tokens that the grammars allow at each place, int32 ``[R, W]``; None where all may
        come.
        """
        words = -(-self.model.config.vocab_size // 32)
        allowed_RW = np.full((count, words), -1, dtype=np.int32)
        row, any_bound = 0, False
        for work in scored:
            for sequence in (work.sequence, *work.sequence.siblings):
                drafted = [] if sequence.draft is None else sequence.draft.tokens
                matcher = self.matchers.get(sequence.key)
                if matcher is not None:
                    any_bound = True
                    # Guesses follow the grammar as far as they were let in (see Engine).
                    matcher.fill(allowed_RW[row])
                    for number, token in enumerate(drafted, 1):
                        matcher.accept(token)
                        matcher.fill(allowed_RW[row + number])
                    matcher.rollback(len(drafted))
                row += 1 + len(drafted)
        return torch.from_numpy(allowed_RW) if any_bound else None

    def _pool(self, works: list[Work], hidden_NE: Tensor) -> None:
        start = 0
        for work in works:
            end = start + work.new
            if pooler := self.poolers.get(work.sequence.key):
                if not work.sequence.computed:  # also where its blocks were lost half way
                    pooler.reset()
                pooler.add(hidden_NE[start:end])
            start = end


def _split(
    scored: list[Work], ids: list[int], logprobs: list[TokenLogprobs | None]
) -> list[Chosen]:
    """What was chosen at all places, by sequence."""
    chosen, start = [], 0
    for work in scored:
        if work.sequence.request.embed:
            continue
        for sequence in (work.sequence, *work.sequence.siblings):
            end = start + 1 + (0 if sequence.draft is None else len(sequence.draft.tokens))
            chosen.append(Chosen(sequence, ids[start:end], logprobs[start:end], start))
            start = end
    return chosen


def _tokens(work: Work) -> list[int]:
    sequence = work.sequence
    tokens = sequence.tokens[sequence.computed : sequence.computed + work.new]
    if sequence.draft is not None:
        tokens += sequence.draft.tokens
    return tokens[: work.new]


def _row(work: Work) -> Row:
    sequence, parents = work.sequence, None
    if sequence.draft is not None and sequence.draft.parents is not None:
        read = work.new - len(sequence.draft.tokens)
        parents = [*range(-1, read - 1), *(read + parent for parent in sequence.draft.parents)]
    return Row(
        table=sequence.blocks,
        held=sequence.computed,
        new=work.new,
        parents=parents,
        source_table=sequence.source_blocks,
        source_length=len(sequence.source),
        slot=sequence.slot,
        floor=sequence.floor,
    )


def _path(tokens: list[int], parents: list[int] | None, number: int) -> tuple[int, ...]:
    """The guesses on the way to place ``number``: 0 is the last known token, then the nodes."""
    if parents is None:
        return tuple(tokens[:number])
    path, node = [], number - 1
    while node >= 0:
        path.append(tokens[node])
        node = parents[node]
    return tuple(reversed(path))
