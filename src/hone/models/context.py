"""What the tokens of a forward pass may see: their own sequence, and what a cache holds of it.

In a pass the tokens of all sequences lie behind one another, without padding.

Shapes: N tokens of the pass, M tokens of the sources, H query heads, K key/value heads,
C = H + 2K, D head size.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from hone.kernels import AttentionRule, PackedLayout, packed_attention, packed_cross_attention
from hone.kernels.attention import Bias

# Makes the keys and values [M, K, D] of the sources.
KeysValues = Callable[[], tuple[Tensor, Tensor]]


class Context(Protocol):
    """Which tokens belong together; a cache is a context that also remembers earlier passes.

    A model asks every layer once per pass. What follows a pass (``advance`` and the like) is
    between the cache and its owner.
    """

    @property
    def bounds(self) -> list[int]:
        """Where each sequence's tokens begin in this pass, and N at the end."""

    @property
    def longest(self) -> int:
        """The length of the longest sequence, earlier passes included."""

    def lengths_N(self) -> Tensor:  # noqa: N802
        """For each token the length of its sequence, earlier passes included, int64 ``[N]``."""

    def attend(
        self,
        layer: int,
        qkv_NC: Tensor,
        rotary: Tensor | None,
        rule: AttentionRule,
        bias: Bias | None,
    ) -> Tensor:
        """Self-attention of the pass's tokens ``[N, C · D]``; returns ``[N, H · D]``.

        ``rotary`` is a table for them, see ``kernels.rotary_table``; None rotates nothing.
        """

    def attend_source(
        self, layer: int, q_NHD: Tensor, keys_values: KeysValues, rule: AttentionRule
    ) -> Tensor:
        """Attention to the sequences' sources, whose keys and values a cache asks for once."""

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        """What ``layer`` kept at the end of the last pass, one row per sequence; None at first."""

    def keep(self, layer: int, state: tuple[Tensor, ...]) -> None:
        """Remember ``state`` for the next pass; without a next pass, nothing happens."""


class Packed:
    """The context of sequences that are whole: nothing comes before them and nothing after."""

    def __init__(self, layout: PackedLayout, source: PackedLayout | None = None) -> None:
        """Sequences of ``layout``; ``source`` holds as many, which they attend to."""
        self.layout, self.source = layout, source

    @classmethod
    def of(
        cls,
        lengths: list[int],
        source_lengths: list[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> "Packed":
        """Sequences of these ``lengths``."""
        source = None if source_lengths is None else packed_layout(source_lengths, device)
        return cls(packed_layout(lengths, device), source)

    @property
    def bounds(self) -> list[int]:
        """See :class:`Context`."""
        return [*self.layout.starts, self.layout.tokens]

    @property
    def longest(self) -> int:
        """See :class:`Context`."""
        return max(self.layout.lengths, default=0)

    def lengths_N(self) -> Tensor:  # noqa: N802
        """See :class:`Context`."""
        lengths = torch.tensor(self.layout.lengths)
        return lengths.repeat_interleave(lengths).to(self.layout.cu_seqlens.device)

    def positions_N(self) -> Tensor:  # noqa: N802
        """The position of each token in its sequence, int64 ``[N]``."""
        return positions_of(self.bounds, self.layout.cu_seqlens.device)

    def attend(
        self,
        layer: int,
        qkv_NC: Tensor,
        rotary: Tensor | None,
        rule: AttentionRule,
        bias: Bias | None,
    ) -> Tensor:
        """See :class:`Context`."""
        return packed_attention(qkv_NC, rotary, self.layout, rule, bias)

    def attend_source(
        self, layer: int, q_NHD: Tensor, keys_values: KeysValues, rule: AttentionRule
    ) -> Tensor:
        """See :class:`Context`."""
        assert self.source is not None, "a decoder without sources cannot attend to them"
        k_MKD, v_MKD = keys_values()
        return packed_cross_attention(q_NHD, k_MKD, v_MKD, self.layout, self.source, rule)

    def state(self, layer: int) -> tuple[Tensor, ...] | None:
        """See :class:`Context`."""
        return None

    def keep(self, layer: int, state: tuple[Tensor, ...]) -> None:
        """See :class:`Context`."""


def packed_layout(lengths: list[int], device: torch.device | str = "cpu") -> PackedLayout:
    """The layout of sequences of these ``lengths``."""
    return PackedLayout(torch.tensor([0, *lengths], device=device).cumsum(0).int())


def positions_of(bounds: list[int], device: torch.device | str = "cpu") -> Tensor:
    """Positions from 0 in every sequence, int64 ``[N]``."""
    spans = [torch.arange(end - start, device=device) for start, end in pairwise(bounds)]
    return torch.cat(spans) if spans else torch.empty(0, dtype=torch.int64, device=device)
