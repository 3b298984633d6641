"""Which requests an engine takes, and the sequences that they become."""

from collections.abc import Collection
from itertools import count

from hone.core.errors import RequestError
from hone.engine.blocks import BlockPool
from hone.engine.request import Request
from hone.engine.sequence import Sequence
from hone.engine.sources import AnswerTokens
from hone.models import ModelConfig, Rotary
from hone.models.positions import DynamicScaling


class Admission:
    """What a model can read and write, and its cache can hold.

    Attributes:
        turning_point: the length beyond which all of a sequence is computed again, see
            :class:`hone.models.Rotary`; None for most models.
        long_from: from this length on, keys depend on the length of what they are part of; None
            where they never do.
    """

    def __init__(
        self,
        config: ModelConfig,
        pool: BlockPool,
        end_ids: Collection[int],
        answer: AnswerTokens | None,
    ) -> None:
        """Take requests for a model.

        Args:
            end_ids: the model's own end-of-sequence tokens.
            answer: what the outputs of a model with an encoder begin and end with.
        """
        self._config, self._pool = config, pool
        self._end_ids, self._answer = frozenset(end_ids), answer
        self._keys, self._arrivals = count(), count()
        rotary = config.positions if isinstance(config.positions, Rotary) else None
        self.turning_point = None if rotary is None else rotary.turning_point
        self.long_from = None if self.turning_point is None else self.turning_point + 1
        if rotary is not None and isinstance(rotary.scaling, DynamicScaling):
            self.long_from = config.max_position_embeddings + 1

    def sequences(self, request: Request, now: float) -> list[Sequence]:
        """One for each output, the first before the others.

        Raises:
            RequestError: the prompt is empty, too long, or holds an unknown id; or the cache is
                too small for it.
        """
        self._check_prompt(request.prompt, answered=not request.embed)
        params = request.params
        opening = request.prompt if self._answer is None else (self._answer.start,)
        budget = self._budget(request, len(opening))
        ends = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            ends |= self._end_ids
        # Others never come, and have no place in tables of all tokens.
        ends = frozenset(token for token in ends if 0 <= token < self._config.vocab_size)
        arrived = next(self._arrivals)
        return [
            Sequence(
                key=next(self._keys),
                request=request,
                index=index,
                arrived=arrived,
                since=now,
                tokens=list(opening),
                prompt_length=len(opening),
                source=() if self._answer is None else request.prompt,
                ends=ends,
                budget=budget,
                floor=len(opening) if self.long_from is not None else 0,
            )
            for index in range(1 if request.embed else params.n)
        ]

    def _check_prompt(self, prompt: tuple[int, ...], answered: bool) -> None:
        config = self._config
        if not prompt:
            raise RequestError("The prompt is empty; give at least one token.")
        reader = config.encoder or config
        longest, included = config.max_position_embeddings - answered, ", the answer included"
        if not answered:
            included = ""
        if config.encoder is not None:
            longest, included = config.encoder.max_position_embeddings, ""
        if len(prompt) > longest and not reader.extrapolates:
            raise RequestError(
                f"The prompt has {len(prompt):,} tokens; this model reads "
                f"{reader.max_position_embeddings:,}{included}. Shorten it."
            )
        vocabulary = config.vocab_size
        if not all(isinstance(i, int) and 0 <= i < vocabulary for i in prompt):
            raise RequestError(
                f"The prompt holds a token id outside 0..{vocabulary - 1}, the vocabulary."
            )

    def _budget(self, request: Request, opening: int) -> int:
        """How many tokens may be written, so that the model and the cache have room for them."""
        config, asked = self._config, 0 if request.embed else request.params.max_tokens
        room = config.max_position_embeddings - opening
        if config.extrapolates:
            room = max(room, asked or 1)
        budget = room if asked is None else min(asked, room)
        size = self._pool.size
        if not size:
            return budget
        held = self._pool.count - self._pool.blocks_for(
            0 if self._answer is None else len(request.prompt)
        )
        # The last token is written and never read.
        fitting = held * size - opening + 1
        least = 1 if asked is None else max(budget, 1)
        if fitting < least:
            raise RequestError(
                f"The request needs {opening + least - 1:,} positions of the cache, which has "
                f"{max(held, 0) * size:,}; shorten the prompt, ask for fewer tokens, or give the "
                "cache more memory."
            )
        return min(budget, fitting)
