"""The engine: requests in, tokens out, step by step. One thread owns it; it knows no text."""

import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import torch

from hone.core.errors import ConfigError, RequestError
from hone.engine.admission import Admission
from hone.engine.grammar import Grammars, Matcher
from hone.engine.invariance import RowCounts, pad_experts
from hone.engine.memory import make_cache
from hone.engine.options import EngineOptions
from hone.engine.outcome import lawful, take
from hone.engine.policies import make_policy
from hone.engine.request import Delta, EngineStats, Request
from hone.engine.runner import Chosen, Runner
from hone.engine.sampler import Sampler
from hone.engine.scheduler import Schedule, Scheduler, Work
from hone.engine.sequence import Sequence
from hone.engine.sources import AnswerTokens
from hone.engine.speculation import Speculation
from hone.models import CausalLM, Seq2SeqLM
from hone.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from hone.engine.adapters import AdapterBank
    from hone.engine.embeddings import Pooler
    from hone.engine.timeline import Kind, StepRecord
    from hone.engine.timeline import Row as SeenRow

Clock = Callable[[], float]


class Engine:
    """Continues prompts with one model, many at a time.

    Attributes:
        observer: told of every step; for pictures.
    """

    def __init__(
        self,
        model: CausalLM | Seq2SeqLM,
        tokenizer: Tokenizer,
        end_ids: Collection[int] = (),
        answer: AnswerTokens | None = None,
        row_counts: RowCounts = (),
        options: EngineOptions | None = None,
        speculation: Speculation | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """Take the memory for the cache.

        Args:
            end_ids: the model's own end-of-sequence tokens.
            answer: what a model with an encoder begins and ends with.
            row_counts: pad passes of few rows so that no row's result depends on the others; see
                :func:`hone.engine.invariance.safe_row_counts`. Empty for speed.
            speculation: what guesses tokens; its guesses change no output.
            clock: seconds, for batching policies.

        Raises:
            CapacityError: there is no memory for the cache.
        """
        self.options = options = options or EngineOptions()
        self._model, self._clock, self._tokenizer = model, clock, tokenizer
        self._end_ids = frozenset(end_ids)
        self._answer, self._speculation = answer, speculation
        if speculation is not None and model.config.mixer != "attention":
            raise ConfigError(
                "Speculation takes tokens back, and the state of a recurrent model has no way "
                "back; leave it out."
            )
        pad_experts(model, row_counts)
        self._cache, self._pool = make_cache(model, options, exact=bool(row_counts))
        self._sampler = Sampler(model.config.vocab_size, model.device)
        self._admission = Admission(model.config, self._pool, end_ids, answer)
        self._scheduler = Scheduler(
            self._pool,
            make_policy(options.policy, options.max_running, options.wait_s),
            max(options.max_batch_tokens, self._cache.chunk_multiple + 1),
            options.max_running,
            self._cache.chunk_multiple,
            self._admission.long_from,
        )
        self._matchers: dict[int, Matcher] = {}
        self._poolers: dict[int, Pooler] = {}
        self._runner = Runner(
            model, self._cache, self._sampler, row_counts, self._matchers, self._poolers
        )
        if options.compile != "off":
            from hone.engine.compiled import compile_decoder

            self._runner.compiled = compile_decoder(
                model, self._cache, options.compile, options.max_running
            )
        self._grammars: Grammars | None = None
        self._requests: dict[str, list[Sequence]] = {}
        self._prompt_tokens = self._generated_tokens = self._steps = 0
        self.observer: Callable[[StepRecord], None] | None = None

    @property
    def adapters(self) -> "AdapterBank":
        """The LoRA adapters that requests may name; none at first."""
        from hone.engine.adapters import AdapterBank

        if self._runner.bank is None:
            exact = bool(self._runner.row_counts)
            self._runner.bank = AdapterBank(self._model, exact, self._leave)
        return self._runner.bank

    @property
    def busy(self) -> bool:
        """Some request is not done."""
        return bool(self._requests)

    def delay(self) -> float:
        """Seconds that may pass before the next step without loss, if nothing new comes."""
        return self._scheduler.delay(self._clock())

    def stats(self) -> EngineStats:
        """How the engine stands."""
        pool, speculation = self._pool, self._speculation
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            blocks=pool.count,
            free_blocks=pool.free,
            prefix_queries=pool.queries,
            prefix_hits=pool.hits,
            preemptions=self._scheduler.preemptions,
            drafted=0 if speculation is None else speculation.drafted,
            accepted=0 if speculation is None else speculation.accepted,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            steps=self._steps,
        )

    def forget_prefixes(self) -> None:
        """Nothing that was computed is used again, e.g. because the model's weights changed."""
        self._pool.forget_all()

    def prepare(self, request: Request) -> Callable[[], None] | None:
        """What takes long and may come before :meth:`add`: its grammar is compiled.

        To be called in any thread while the engine computes; it raises :class:`RequestError`.
        None where there is nothing to do.
        """
        grammar = request.params.grammar
        if grammar is None or request.embed:
            return None
        if self._grammars is not None and grammar in self._grammars:
            return None
        return lambda: self._compiler().compile(grammar)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestError: it cannot be served, and why.
        """
        if request.id in self._requests:
            raise RequestError(f"There is a request {request.id!r} already; ids must differ.")
        if request.adapter is not None and request.adapter not in self.adapters.names:
            raise RequestError(f"There is no adapter {request.adapter!r} here.")
        if request.embed and self._answer is not None:
            raise RequestError("A model that answers texts gives no embeddings.")
        sequences = self._admission.sequences(request, self._clock())
        matcher = None
        if request.params.grammar is not None and not request.embed:
            matcher = self._grammar(request, sequences[0].ends)
        for sequence in sequences:
            self._open(sequence)
            if matcher is not None:
                self._matchers[sequence.key] = matcher if not sequence.index else matcher.copy()
        self._requests[request.id] = list(sequences)
        if self._pool.size:  # outputs share the blocks of their prompt
            leader, *others = sequences
            leader.siblings = others
            for other in others:
                other.leader = leader
            sequences = [leader]
        for sequence in sequences:
            self._scheduler.add(sequence)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Forget a request, or one of its outputs; blocks are free before the next step."""
        for sequence in list(self._requests.get(request_id, ())):
            if index is None or sequence.index == index:
                self._close(sequence)

    def step(self) -> list[Delta]:
        """Compute a little of all that runs; returns what it brought.

        Where the model fails, e.g. for lack of memory, what the step was to compute waits again:
        the engine can go on, and requests can be taken back.
        """
        if self._speculation is not None:
            self._guess(self._speculation)
        start = self._clock()
        step = self._scheduler.schedule(start)
        if not step.works:
            return []
        rows = [] if self.observer is None else [_seen(work) for work in step.works]
        try:
            chosen = self._runner(step)
        except BaseException:
            self._runner.settle()
            self._scheduler.take_back(step)
            raise
        deltas = self._advance(step, chosen, start)
        self._steps += 1
        if self.observer is not None:
            from hone.engine.timeline import StepRecord

            self.observer(StepRecord(start, self._clock(), rows))
        return deltas

    def _leave(self, adapter: str) -> None:
        """An adapter is to be unloaded; another one may get its name."""
        every = (sequence for request in self._requests.values() for sequence in request)
        if any(sequence.adapter == adapter for sequence in every):
            raise ConfigError(f"A request still has the adapter {adapter!r}; let it end first.")
        self.forget_prefixes()

    def _open(self, sequence: Sequence) -> None:
        """What is kept of a sequence beside the scheduler."""
        request, answer = sequence.request, self._answer
        if request.embed:
            from hone.engine.embeddings import Pooler

            try:
                self._poolers[sequence.key] = Pooler(self._model.config)
            except ConfigError as error:
                raise RequestError(str(error)) from error
            return
        first = None if answer is None else answer.first
        last = None if answer is None or request.params.ignore_eos else answer.last
        sequence.sampler_key = self._sampler.open(
            request.params,
            sequence.tokens,
            sequence.ends,
            sequence.budget,
            first,
            last,
            sequence.index,
        )

    def _grammar(self, request: Request, ends: frozenset[int]) -> Matcher:
        assert request.params.grammar is not None
        return self._compiler().matcher(request.params.grammar, ends)

    def _compiler(self) -> Grammars:
        if self._grammars is None:
            self._grammars = Grammars(self._tokenizer, self._end_ids, self._model.config.vocab_size)
        return self._grammars

    def _close(self, sequence: Sequence) -> None:
        """A sequence is done."""
        request = sequence.request.id
        self._requests[request].remove(sequence)
        if not self._requests[request]:
            del self._requests[request]
        if sequence.leader is not None:
            sequence.leader.siblings.remove(sequence)
        else:
            self._scheduler.remove(sequence)
        if sequence.siblings:  # they were to begin with what it reads; the next one reads instead
            heir, *others = sequence.siblings
            heir.leader, heir.siblings = None, others
            for other in others:
                other.leader = heir
            self._scheduler.add(heir)
        if sequence.sampler_key >= 0:
            self._sampler.close(sequence.sampler_key)
        self._matchers.pop(sequence.key, None)
        self._poolers.pop(sequence.key, None)
        if self._speculation is not None:
            self._speculation.forget(sequence)

    def _guess(self, speculation: Speculation) -> None:
        """Draft what may come next, wherever one token is all that is left to read."""
        ready, limits = [], []
        for sequence in self._scheduler.running:
            most = min(self.options.speculation_length, sequence.budget - sequence.written - 1)
            point = self._admission.turning_point
            if point is not None and sequence.floor <= point:
                most = min(most, point - len(sequence.tokens))
            if sequence.pending == 1 and sequence.written and most > 0:
                ready.append(sequence)
                limits.append(most)
        if not ready:
            return
        for sequence, draft in zip(ready, speculation.propose(ready, limits), strict=True):
            if (matcher := self._matchers.get(sequence.key)) is not None:
                draft = lawful(draft, matcher)
            sequence.draft = draft if draft.tokens else None

    def _advance(self, step: Schedule, chosen: list[Chosen], start: float) -> list[Delta]:
        """Note what was computed, take the tokens that were chosen, and end what is done."""
        deltas: list[Delta] = []
        before: dict[int, int] = {}
        only_decodes = all(work.sequence.written for work in step.works)
        for work in step.works:
            sequence = work.sequence
            drafted = 0 if sequence.draft is None else len(sequence.draft.tokens)
            before[sequence.key] = sequence.computed
            sequence.computed += work.new - drafted
            read = min(sequence.computed, sequence.prompt_length) - before[sequence.key]
            self._prompt_tokens += max(0, read)
            if sequence.request.embed and sequence.pending == 0:
                vector = self._poolers[sequence.key].result()
                sequence.finish_reason = "stop"
                deltas.append(Delta(sequence.request.id, finish_reason="stop", embedding=vector))
        moves: list[tuple[list[int], int, int]] = []
        last_rows: list[int] = []
        last = None if self._answer is None else self._answer.last
        for entry in chosen:
            sequence = entry.sequence
            if sequence.leader is not None:
                self._scheduler.join(sequence, sequence.leader)
                sequence.leader.siblings.remove(sequence)
                sequence.leader = None
            delta, nodes = take(entry, self._matchers.get(sequence.key), last)
            self._generated_tokens += len(delta.tokens)
            if delta.tokens or delta.finish_reason is not None:
                deltas.append(delta)
            self._sampler.commit(sequence.sampler_key, delta.tokens)
            place = nodes[-1] + 1 if nodes else 0
            last_rows.append(entry.row + place)
            base = sequence.computed
            moves += [
                (sequence.blocks, base + node, base + depth)
                for depth, node in enumerate(nodes)
                if node != depth
            ]
            sequence.computed += len(nodes)
            if self._speculation is not None and sequence.draft is not None:
                self._speculation.checked(sequence, len(sequence.draft.tokens), len(nodes))
        self._cache.move(moves)
        if self._speculation is not None and chosen:
            if only_decodes:
                rows = sum(work.new for work in step.works)
                self._speculation.took(rows, self._clock() - start)
            sequences = [entry.sequence for entry in chosen]
            hidden_RE = self._runner.hidden_RE
            rows_R = torch.tensor(last_rows, device=hidden_RE.device)
            self._speculation.observe(sequences, hidden_RE.index_select(0, rows_R))
        for work in step.works:
            work.sequence.draft = None
            self._scheduler.remember(work.sequence, before[work.sequence.key])
        self._turn([entry.sequence for entry in chosen])
        for delta in deltas:
            if delta.finish_reason is not None:
                self.abort(delta.request, delta.index)
        return deltas

    def _turn(self, sequences: list[Sequence]) -> None:
        """Begin anew with those that have outgrown their rotary positions."""
        point = self._admission.turning_point
        if point is None:
            return
        for sequence in sequences:
            if sequence.floor <= point < len(sequence.tokens):
                self._scheduler.restart(sequence, point + 1)


def _seen(work: Work) -> "SeenRow":
    """What an observer is told of a row."""
    sequence = work.sequence
    kind: Kind = "decode" if sequence.written else "prompt"
    return sequence.request.id, sequence.index, work.new, kind
