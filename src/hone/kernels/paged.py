"""Attention to keys and values that lie in blocks (PagedAttention, Kwon et al. 2023, section 4.1).

A sequence's positions are cut into blocks of fixed size; its table says where in a pool each block
lies. Block 0 of a pool belongs to no sequence.

Shapes: NB blocks of bs slots, S positions of one sequence, T queries, H query heads, K key/value
heads, D head size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hone.kernels.attention import AttentionRule, Bias, attention


def paged_attention_reference(
    q_THD: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Sequence[int],
    length: int,
    rule: AttentionRule,
    bias: Bias | None = None,
) -> Tensor:
    """Attention of the last T of one sequence's ``length`` positions; returns ``[T, H, D]``.

    Args:
        keys, values: the pools ``[NB, K, bs, D]``.
        table: the blocks of the sequence, in the order of its positions.
    """
    k_KSD, v_KSD = (gather_blocks(pool, table, length) for pool in (keys, values))
    q_HTD = q_THD.transpose(0, 1)
    return attention(q_HTD[None], k_KSD[None], v_KSD[None], rule, bias)[0].transpose(0, 1)


def gather_blocks(pool: Tensor, table: Sequence[int], length: int) -> Tensor:
    """The first ``length`` positions of a sequence, ``[K, length, D]``."""
    index = torch.tensor(list(table), dtype=torch.int64, device=pool.device)
    blocks = pool.index_select(0, index).transpose(0, 1)
    return blocks.flatten(1, 2)[:, :length]
