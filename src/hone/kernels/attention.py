"""Causal attention with grouped key/value heads (Ainslie et al. 2023).

Shapes: B batch, T query positions, S key positions, H query heads, K key/value heads, D head size.
"""

import torch
from torch import Tensor
from torch.nn import functional


def attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask_BS: Tensor | None = None
) -> Tensor:
    """Causal attention of the last T of S positions; returns ``[B, H, T, D]``.

    Args:
        mask_BS: True where a key may be seen; None means everywhere. A query whose own position is
            masked (left padding) sees itself, so that its unused output stays finite.
    """
    queries, keys = q_BHTD.shape[2], k_BKSD.shape[2]
    grouped = q_BHTD.shape[1] != k_BKSD.shape[1]
    if mask_BS is None and (queries == keys or queries == 1):
        return functional.scaled_dot_product_attention(
            q_BHTD, k_BKSD, v_BKSD, is_causal=queries > 1, enable_gqa=grouped
        )
    query_T = torch.arange(keys - queries, keys, device=q_BHTD.device)[:, None]
    key_S = torch.arange(keys, device=q_BHTD.device)[None, :]
    visible_BHTS = (key_S <= query_T)[None, None]
    if mask_BS is not None:
        visible_BHTS = (visible_BHTS & mask_BS[:, None, None, :].bool()) | (key_S == query_T)
    return functional.scaled_dot_product_attention(
        q_BHTD, k_BKSD, v_BKSD, attn_mask=visible_BHTS, enable_gqa=grouped
    )
