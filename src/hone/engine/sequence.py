"""One output of a request while it is in the engine."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import NamedTuple

from hone.engine.request import FinishReason, Request


class Draft(NamedTuple):
    """Tokens that may come next, guessed before the model is asked.

    Attributes:
        tokens: a chain, or the nodes of a tree.
        parents: of each node, its number among ``tokens``, -1 for what is there already; each
            parent stands before its children. None for a chain.
    """

    tokens: list[int]
    parents: list[int] | None = None

    def first(self, count: int) -> "Draft | None":
        """The first ``count`` guesses; None for no guess."""
        if count <= 0:
            return None
        return Draft(self.tokens[:count], self.parents and self.parents[:count])


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens read and written, and where their keys and values are.

    Attributes:
        key: its number in the engine, never used twice.
        arrived: the order of arrival of its request.
        since: when it arrived, in the engine's seconds.
        tokens: what the decoder reads and what was written after it.
        prompt_length: how many of ``tokens`` were not written by the model.
        source: what the encoder reads, of a model that has one.
        ends: tokens that end it.
        budget: most tokens that may be written.
        sampler_key: its number in the sampler; -1 for none.
        computed: so many of ``tokens`` have keys and values in ``blocks``.
        blocks, source_blocks: its block tables.
        slot: its row of the states of layers that are no attention.
        floor: rotary tables count the sequence as no shorter than this.
        draft: what is guessed to come after ``tokens``.
        cached: tokens of the prompt that were found in the cache.
        hashes: of its full blocks, as far as known.
        siblings: outputs of the same request that begin when it has read the prompt.
        leader: of such an output, the one that reads.
    """

    key: int
    request: Request
    index: int
    arrived: int
    since: float
    tokens: list[int]
    prompt_length: int
    source: tuple[int, ...] = ()
    ends: frozenset[int] = frozenset()
    budget: int = 0
    sampler_key: int = -1
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    source_blocks: list[int] = field(default_factory=list)
    slot: int = 0
    floor: int = 0
    draft: Draft | None = None
    cached: int = -1
    hashes: list[bytes] = field(default_factory=list)
    siblings: list["Sequence"] = field(default_factory=list)
    leader: "Sequence | None" = None
    finish_reason: FinishReason | None = None

    @property
    def written(self) -> int:
        """How many tokens the model has written."""
        return len(self.tokens) - self.prompt_length

    @property
    def output(self) -> Seq[int]:
        """The tokens that the model has written."""
        return self.tokens[self.prompt_length :]

    @property
    def adapter(self) -> str | None:
        """See :class:`Request`."""
        return self.request.adapter

    @property
    def pending(self) -> int:
        """Tokens without keys and values, guesses included."""
        drafted = 0 if self.draft is None else len(self.draft.tokens)
        return len(self.tokens) + drafted - self.computed

    @property
    def rank(self) -> tuple[int, int, int]:
        """Who goes first: the lowest."""
        return self.request.priority, self.arrived, self.index
