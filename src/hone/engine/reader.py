"""The engine of a model that reads texts whole and gives their embeddings.

Shapes: N tokens of a pass, B texts, E hidden size.
"""

import time
from collections.abc import Callable
from itertools import count

import torch

from hone.core.errors import RequestError
from hone.engine.blocks import BlockPool
from hone.engine.options import EngineOptions
from hone.engine.policies import make_policy
from hone.engine.request import Delta, EngineStats, Request
from hone.engine.scheduler import Scheduler
from hone.engine.sequence import Sequence
from hone.engine.sources import Alone
from hone.models.readers import Embedder


class EmbeddingEngine:
    """Embeds texts, many at a time, under the scheduler of :class:`hone.engine.Engine`: the same
    policies, priorities and shares. A text is never cut, and nothing of it is kept.

    Attributes:
        longest: most tokens of a text.
    """

    def __init__(
        self,
        model: Embedder,
        options: EngineOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take requests with ``embed``."""
        self.options = options = options or EngineOptions()
        self._model, self._clock = model, clock
        longest = model.config.max_position_embeddings
        self._most_tokens = max(options.max_batch_tokens, longest)
        self.longest = self._most_tokens if model.config.extrapolates else longest
        self._scheduler = Scheduler(
            BlockPool(options.max_running, 0),
            make_policy(options.policy, options.max_running, options.wait_s),
            self._most_tokens,
            options.max_running,
            chunk_multiple=self._most_tokens + 1,
        )
        self._sequences: dict[str, Sequence] = {}
        self._keys = count()
        self._prompt_tokens = self._steps = 0

    @property
    def busy(self) -> bool:
        """Some request is not done."""
        return bool(self._sequences)

    def delay(self) -> float:
        """See :meth:`hone.engine.Engine.delay`."""
        return self._scheduler.delay(self._clock())

    def prepare(self, request: Request) -> None:
        """See :meth:`hone.engine.Engine.prepare`: nothing takes long."""

    def stats(self) -> EngineStats:
        """How the engine stands; it has no blocks."""
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            prompt_tokens=self._prompt_tokens,
            steps=self._steps,
        )

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestError: it cannot be served, and why.
        """
        tokens, vocabulary = list(request.prompt), self._model.config.vocab_size
        if request.id in self._sequences:
            raise RequestError(f"There is a request {request.id!r} already; ids must differ.")
        if not request.embed or request.adapter is not None:
            raise RequestError("This model embeds texts, and does nothing else.")
        if not tokens:
            raise RequestError("The text is empty; give at least one token.")
        if len(tokens) > self.longest:
            raise RequestError(
                f"The text has {len(tokens):,} tokens; this model reads {self.longest:,}. "
                "Shorten it."
            )
        if not all(isinstance(token, int) and 0 <= token < vocabulary for token in tokens):
            raise RequestError(
                f"The text holds a token id outside 0..{vocabulary - 1}, the vocabulary."
            )
        key = next(self._keys)
        sequence = Sequence(key, request, 0, key, self._clock(), tokens, len(tokens))
        self._sequences[request.id] = sequence
        self._scheduler.add(sequence)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Forget a request."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self._scheduler.remove(sequence)

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """Embed as many texts as fit into a step."""
        works = self._scheduler.schedule(self._clock()).works
        if not works:
            return []
        device = self._model.device
        texts = [work.sequence.tokens for work in works]
        ids_N = torch.tensor([token for text in texts for token in text], device=device)
        vectors_BE = self._model.embed(ids_N, Alone([len(text) for text in texts], device))
        self._steps += 1
        self._prompt_tokens += len(ids_N)
        deltas = []
        for work, vector_E in zip(works, vectors_BE.float().tolist(), strict=True):
            name = work.sequence.request.id
            deltas.append(Delta(name, finish_reason="stop", embedding=vector_E))
            self.abort(name)
        return deltas
