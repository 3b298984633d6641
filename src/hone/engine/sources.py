"""What an encoder-decoder needs to generate: sources read, and the tokens that frame an answer.

Shapes: M tokens of all sources behind one another, E hidden size, H query heads, C = H + 2K heads
of queries, keys and values, D head size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from hone.core.errors import CheckpointError
from hone.engine.invariance import RowCounts, pad_rows
from hone.kernels import AttentionRule, Bias, attention, split_heads
from hone.models import ModelConfig, Packed, Seq2SeqLM
from hone.models.context import packed_layout


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """The tokens of an answer that are not for the model to choose.

    Attributes:
        start: what the decoder reads first; it is no part of the answer.
        first: the first token of every answer; None for the model's choice.
        last: the last token of an answer that has reached its greatest length; likewise.
    """

    start: int
    first: int | None = None
    last: int | None = None


def answer_tokens(config: ModelConfig, generation: Mapping[str, Any] | None) -> AnswerTokens:
    """Those of a checkpoint.

    Args:
        generation: the content of ``generation_config.json``, which then decides alone what is
            forced, as with transformers; None without the file.

    Raises:
        CheckpointError: nothing says what an answer begins with, or a token is no number.
    """

    def token(name: str, otherwise: int | None) -> int | None:
        found = otherwise if generation is None else generation.get(name)
        if isinstance(found, list) and found:
            found = min(found)  # all are as good to transformers, whose choice is the first
        if found is not None and (not isinstance(found, int) or isinstance(found, bool)):
            raise CheckpointError(f"{name} is {found!r} in generation_config.json, not a token id.")
        return found

    candidates = (
        token("decoder_start_token_id", None),
        config.decoder_start_token_id,
        token("bos_token_id", config.bos_token_id),
    )
    start = next((candidate for candidate in candidates if candidate is not None), None)
    if start is None:
        raise CheckpointError(
            "Neither config.json nor generation_config.json has decoder_start_token_id, the token "
            "that every answer begins with; add it."
        )
    return AnswerTokens(
        start,
        token("forced_bos_token_id", config.forced_bos_token_id),
        token("forced_eos_token_id", config.forced_eos_token_id),
    )


def read_sources(
    model: Seq2SeqLM, sources: Sequence[Sequence[int]], row_counts: RowCounts
) -> Tensor:
    """The encoder's hidden states of ``sources`` behind one another.

    Returns:
        ``[M, E]``, or more rows where M is no safe count (see ``invariance``); those behind mean
        nothing.
    """
    context = Alone([len(source) for source in sources], model.device)
    ids_M = torch.tensor([i for source in sources for i in source], device=model.device)
    positions_M = context.positions_N()
    return model.encoder(pad_rows(ids_M, row_counts), pad_rows(positions_M, row_counts), context)


class Alone(Packed):
    """Whole sequences, each attended without any padding, so that none depends on another.

    Neighbours of equal length are attended in one call. Tokens behind those of the sequences are
    padding, and get zeros.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        """Sequences of these ``lengths``."""
        super().__init__(packed_layout(list(lengths), device))

    def attend(
        self,
        layer: int,
        qkv_NC: Tensor,
        rotary: Tensor | None,
        rule: AttentionRule,
        bias: Bias | None,
    ) -> Tensor:
        """See :class:`hone.models.Context`."""
        q_NHD, k_NKD, v_NKD = split_heads(qkv_NC, rotary, rule)
        out_NHD = torch.zeros_like(q_NHD)
        start = 0
        for length, rows in groupby(self.layout.lengths):
            count = len(list(rows))
            tokens = slice(start, start := start + count * length)
            q, k, v = (
                x[tokens].unflatten(0, (count, length)).transpose(1, 2)
                for x in (q_NHD, k_NKD, v_NKD)
            )
            out_NHD[tokens] = attention(q, k, v, rule, bias).transpose(1, 2).flatten(0, 1)
        return out_NHD.flatten(1)
