"""Attention of a batch: every kind of mask, bias and head count, on PyTorch's own operation.

Shapes: B batch, T query positions, S key positions, H query heads, K key/value heads, D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# bias(T, S, device) -> [H, T, S], what is added to the scores of the last T of S positions.
Bias = Callable[[int, int, torch.device], Tensor]


@dataclass(frozen=True, slots=True)
class AttentionRule:
    """How a layer attends: heads, who sees whom, and what becomes of a score.

    Attributes:
        heads, kv_heads: H query heads; K key/value heads, each for H / K of them (Ainslie et al.
            2023; K = 1 is multi-query attention, Shazeer 2019).
        causal: a query sees no key after it.
        window: a query sees keys at a distance below this, on either side unless ``causal``
            (Beltagy et al. 2020, section 3.1); None for all.
        scale: factor of the scores; None for ``D ** -0.5``.
        softcap: scores become ``cap · tanh(score / cap)`` (Gemma 2, section 2); None for none.
    """

    heads: int
    kv_heads: int
    causal: bool = True
    window: int | None = None
    scale: float | None = None
    softcap: float | None = None


def attention(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    rule: AttentionRule,
    bias: Bias | None = None,
    lengths_B: Tensor | None = None,
) -> Tensor:
    """Attention of the last T of S positions; returns ``[B, H, T, D]``.

    Args:
        rule: its head counts are those of the tensors.
        bias: added to the scores before the softmax, for positions that count from the end.
        lengths_B: how many keys of each row are real, where not all S are; the others are padding
            on the right. Queries beyond get finite values that mean nothing.
    """
    queries, keys, device = q_BHTD.shape[2], k_BKSD.shape[2], q_BHTD.device
    grouped = q_BHTD.shape[1] != k_BKSD.shape[1]
    visible = _visible(queries, keys, rule, device)
    if lengths_B is not None:
        real_BS = torch.arange(keys, device=device)[None] < lengths_B[:, None]
        visible = real_BS[:, None, None] if visible is None else visible & real_BS[:, None, None]
    added = None if bias is None else bias(queries, keys, device).to(q_BHTD.dtype)
    if rule.softcap is not None:
        return _capped(q_BHTD, k_BKSD, v_BKSD, rule, visible, added)
    if added is not None:
        # Four dimensions: with three, PyTorch takes an implementation several times slower.
        mask = added[None] if visible is None else added.masked_fill(~visible, float("-inf"))
        return functional.scaled_dot_product_attention(
            q_BHTD, k_BKSD, v_BKSD, mask, scale=rule.scale, enable_gqa=grouped
        )
    only_causal = rule.causal and queries == keys and queries > 1
    if only_causal and lengths_B is None and not _reaches(rule, keys):
        return functional.scaled_dot_product_attention(
            q_BHTD, k_BKSD, v_BKSD, is_causal=True, scale=rule.scale, enable_gqa=grouped
        )
    return functional.scaled_dot_product_attention(
        q_BHTD, k_BKSD, v_BKSD, visible, scale=rule.scale, enable_gqa=grouped
    )


def _reaches(rule: AttentionRule, keys: int) -> bool:
    """Whether the window hides any of so many positions."""
    return rule.window is not None and rule.window < keys


def _visible(queries: int, keys: int, rule: AttentionRule, device: torch.device) -> Tensor | None:
    """Which keys each query sees, ``[1, 1, T, S]``; None where it is all."""
    causal = rule.causal and queries > 1
    if not causal and not _reaches(rule, keys):
        return None
    query_T1 = torch.arange(keys - queries, keys, device=device)[:, None]
    key_S = torch.arange(keys, device=device)
    # The last key that each query sees, and with a window the first.
    last_T1 = query_T1 if rule.causal else query_T1 + (rule.window or keys) - 1
    visible_TS = key_S <= last_T1
    if rule.window is not None:
        visible_TS &= key_S > query_T1 - rule.window
    return visible_TS[None, None]


def _capped(
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    rule: AttentionRule,
    visible: Tensor | None,
    added: Tensor | None,
) -> Tensor:
    """Attention written out, for what PyTorch's operation cannot do to a score."""
    assert rule.softcap is not None
    shared = q_BHTD.shape[1] // k_BKSD.shape[1]
    q_BKGTD = q_BHTD.unflatten(1, (-1, shared))
    scale = q_BHTD.shape[-1] ** -0.5 if rule.scale is None else rule.scale
    scores = (q_BKGTD * scale) @ k_BKSD[:, :, None].transpose(-1, -2)
    scores = (scores.float() / rule.softcap).tanh() * rule.softcap
    if added is not None:
        scores = scores + added.unflatten(0, (-1, shared))
    if visible is not None:
        # Not -inf: a query of padding that sees no key would spread its NaN to the gradients.
        scores = scores.masked_fill(~visible[:, :, None], torch.finfo(scores.dtype).min)
    out = scores.softmax(-1).to(v_BKSD.dtype) @ v_BKSD[:, :, None]
    return out.flatten(1, 2)
