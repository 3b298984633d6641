"""Attention over sequences that lie behind one another, with no padding outside of it.

Sequences of similar length form a group; only inside a group are the shorter ones padded, on the
right, where causality hides the padding from every real query. All index work is done once per
batch in :class:`PackedLayout`; moving rows in and out of groups is then one gather each way.

Shapes: N tokens, H query heads, K key/value heads, G = H / K, C = H + 2K, D head size; in one
group n sequences of up to T tokens.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from hone.kernels.attention import AttentionRule, Bias, attention
from hone.kernels.rotary import apply_rotary

# A sequence joins a group while it has this share of the group's longest.
_LEAST_SHARE = 0.88
# Longer sequences are cut into blocks of queries, each of which sees only the keys before its end.
_BLOCK = 128
_UNCUT = 192
# Probabilities of sequences up to this length are kept for the backward pass, else recomputed.
_LONGEST_KEPT = 1024


class _Group(NamedTuple):
    sequences: int  # n
    length: int  # T
    first_slot: int  # tokens, padding included, of the groups before
    members: tuple[int, ...]  # which sequences


class _Rows(NamedTuple):
    """For H and K heads: which row of D values goes where."""

    q: Tensor  # row of [N, H + K] for every slot of the queries
    k: Tensor
    v: Tensor  # row of [N, C]
    o: Tensor  # row of [N, H]
    padding: Tensor  # slots of o that belong to no token
    from_q: Tensor  # the inverse: slot for every row of [N, H]
    from_qk: Tensor  # slot of q, or of k counted after all of q, for every row of [N, H + K]
    from_v: Tensor


class PackedLayout:
    """Which tokens of a pack belong together, and where they go for attention."""

    def __init__(self, cu_seqlens: Tensor) -> None:
        """Plan the groups for the bounds ``cu_seqlens`` (int ``[n + 1]``, from 0 to N)."""
        self.cu_seqlens = cu_seqlens
        bounds = cu_seqlens.tolist()
        self.tokens = bounds[-1]
        self.starts, self.lengths = bounds[:-1], [end - start for start, end in pairwise(bounds)]
        spans = sorted(
            (size, start, number)
            for number, (size, start) in enumerate(zip(self.lengths, self.starts, strict=True))
            if size
        )
        self.groups: list[_Group] = []
        tokens, valid, slots = [], [], 0
        while spans:
            longest = spans[-1][0]
            first = next(i for i, span in enumerate(spans) if span[0] >= _LEAST_SHARE * longest)
            members, spans = spans[first:], spans[:first]
            size_n1, start_n1, number_n1 = torch.tensor(members).t()[:, :, None]
            place_T = torch.arange(longest)
            tokens.append((start_n1 + torch.minimum(place_T, size_n1 - 1)).flatten())
            valid.append((place_T < size_n1).flatten())
            numbers = tuple(number_n1.flatten().tolist())
            self.groups.append(_Group(len(members), longest, slots, numbers))
            slots += len(members) * longest
        self.slots = slots
        self.token, self.valid = torch.cat(tokens), torch.cat(valid)
        self._rows: dict[tuple[int, int], _Rows] = {}

    def rows(self, heads: int, kv_heads: int) -> _Rows:
        """The row indices for H and K heads, made on first use."""
        if (heads, kv_heads) not in self._rows:
            self._rows[heads, kv_heads] = self._plan_rows(heads, kv_heads)
        return self._rows[heads, kv_heads]

    def _by_head(self, values: Tensor, offsets: Tensor) -> Tensor:
        """``values[slot] + offset`` laid out as [group][n, head, T]."""
        parts = []
        for count, length, first, _ in self.groups:
            part = values[first : first + count * length].view(count, 1, length)
            parts.append((part + offsets.view(1, -1, 1)).flatten())
        return torch.cat(parts)

    def _plan_rows(self, heads: int, kv_heads: int) -> _Rows:
        token, both, device = self.token, heads + kv_heads, self.cu_seqlens.device
        head_H, head_K = torch.arange(heads), torch.arange(kv_heads)
        o = self._by_head(token * heads, head_H)
        k_heads = self._by_head(token * kv_heads, head_K)
        real_H = self._by_head(self.valid.long(), torch.zeros_like(head_H)).bool()
        real_K = self._by_head(self.valid.long(), torch.zeros_like(head_K)).bool()
        from_q = torch.empty(self.tokens * heads, dtype=torch.int64)
        from_q[o[real_H]] = real_H.nonzero()[:, 0]
        from_k = torch.empty(self.tokens * kv_heads, dtype=torch.int64)
        from_k[k_heads[real_K]] = real_K.nonzero()[:, 0]
        from_qk = torch.cat(
            (from_q.view(-1, heads), from_k.view(-1, kv_heads) + len(o)), dim=1
        ).flatten()
        rows = _Rows(
            q=self._by_head(token * both, head_H),
            k=self._by_head(token * both, head_K + heads),
            v=self._by_head(token * (both + kv_heads), head_K + both),
            o=o,
            padding=(~real_H).nonzero()[:, 0],
            from_q=from_q,
            from_qk=from_qk,
            from_v=from_k,
        )
        return _Rows(*(index.to(device) for index in rows))


def packed_attention_reference(
    qkv_NC: Tensor,
    rotary: Tensor | None,
    layout: PackedLayout,
    rule: AttentionRule,
    bias: Bias | None = None,
) -> Tensor:
    """Rotary positions and attention inside each sequence of the pack.

    Args:
        qkv_NC: ``[N, C · D]``: H query heads, K key heads, K value heads side by side.
        rotary: cosines and sines ``[2, N, R/2]``, R of D being rotated; None for no rotation.
        layout: the bounds of the sequences.
        rule: heads, mask and scores.
        bias: added to the scores.

    Returns:
        ``[N, H · D]``.
    """
    q, k, v = split_heads(qkv_NC, rotary, rule)
    parts = []
    for start, end in pairwise(layout.cu_seqlens.tolist()):
        alone = [x[start:end].transpose(0, 1)[None] for x in (q, k, v)]
        parts.append(attention(alone[0], alone[1], alone[2], rule, bias)[0].transpose(0, 1))
    return torch.cat(parts).flatten(1)


def packed_attention(
    qkv_NC: Tensor,
    rotary: Tensor | None,
    layout: PackedLayout,
    rule: AttentionRule,
    bias: Bias | None = None,
) -> Tensor:
    """See :func:`packed_attention_reference`.

    With gradients, attention whose scores are plain products has a form of its own, with arithmetic
    in float32.
    """
    if not (torch.is_grad_enabled() and qkv_NC.requires_grad and _is_plain(layout, rule, bias)):
        q, k, v = split_heads(qkv_NC, rotary, rule)
        return packed_cross_attention(q, k, v, layout, layout, rule, bias)
    size = qkv_NC.shape[-1] // (rule.heads + 2 * rule.kv_heads)
    if rotary is not None and 2 * rotary.shape[-1] < size:
        qkv_NC, rotary = torch.cat(split_heads(qkv_NC, rotary, rule), dim=1).flatten(1), None
    out: Tensor = _PackedAttention.apply(qkv_NC, rotary, layout, rule)
    return out


def _is_plain(layout: PackedLayout, rule: AttentionRule, bias: Bias | None) -> bool:
    """Whether scores are products of queries and keys, and the keys seen are all that come before,
    or all there are.
    """
    if bias is not None or rule.softcap is not None or (rule.scale or 1.0) < 0:
        return False
    if rule.window is not None and rule.window < max(layout.lengths, default=0):
        return False
    return rule.causal or bool(layout.valid.all())


def packed_cross_attention(
    q_NHD: Tensor,
    k_MKD: Tensor,
    v_MKD: Tensor,
    layout: PackedLayout,
    source: PackedLayout,
    rule: AttentionRule,
    bias: Bias | None = None,
) -> Tensor:
    """Attention of each sequence's queries to the keys of the sequence with the same number.

    Args:
        q_NHD: queries of the sequences of ``layout``, rotated already.
        k_MKD, v_MKD: keys and values of those of ``source``, which may be ``layout`` itself.

    Returns:
        ``[N, H · D]``.
    """
    if _is_rectangle(layout) and _is_rectangle(source):
        q, k, v = (
            x.unflatten(0, (len(of.lengths), -1)).transpose(1, 2)
            for x, of in ((q_NHD, layout), (k_MKD, source), (v_MKD, source))
        )
        return attention(q, k, v, rule, bias).transpose(1, 2).flatten(0, 1).flatten(1)
    index, parts = [], []
    for group in layout.groups:
        slots = slice(group.first_slot, group.first_slot + group.sequences * group.length)
        token, valid = layout.token[slots], layout.valid[slots]
        lengths = [source.lengths[number] for number in group.members]
        key = _padded_index([source.starts[number] for number in group.members], lengths)
        ragged = source is not layout or not bool(valid.all())
        counts = torch.tensor(lengths, device=q_NHD.device) if ragged else None
        q = q_NHD[token.to(q_NHD.device)].unflatten(0, (group.sequences, -1)).transpose(1, 2)
        k, v = (
            x[key.to(x.device)].unflatten(0, (group.sequences, -1)).transpose(1, 2)
            for x in (k_MKD, v_MKD)
        )
        # Padding of the queries stands behind them: positions count from the front here.
        counts = None if rule.causal and source is layout else counts
        o = attention(q, k, v, rule, bias, counts).transpose(1, 2).flatten(0, 1).flatten(1)
        real = valid.nonzero()[:, 0].to(o.device)
        parts.append(o[real])
        index.append(token[valid])
    o_NC = torch.cat(parts)
    place = torch.empty(len(o_NC), dtype=torch.int64)
    place[torch.cat(index)] = torch.arange(len(o_NC))
    return o_NC[place.to(o_NC.device)]


def split_heads(
    qkv_NC: Tensor, rotary: Tensor | None, rule: AttentionRule
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries ``[N, H, D]``, keys and values ``[N, K, D]``, rotated to their positions."""
    heads, kv_heads = rule.heads, rule.kv_heads
    qkv_NCD = qkv_NC.unflatten(-1, (heads + 2 * kv_heads, -1))
    if rotary is None:
        q, k, v = qkv_NCD.split((heads, kv_heads, kv_heads), dim=1)
        return q, k, v
    qk_NCD, v_NKD = qkv_NCD.split((heads + kv_heads, kv_heads), dim=1)
    q_NHD, k_NKD = apply_rotary(qk_NCD, rotary).split((heads, kv_heads), dim=1)
    return q_NHD, k_NKD, v_NKD


def _is_rectangle(layout: PackedLayout) -> bool:
    return len(set(layout.lengths)) == 1 and layout.lengths[0] > 0


def _padded_index(starts: list[int], lengths: list[int]) -> Tensor:
    """Rows of sequences, each filled up to the longest with its own last row."""
    start_n1, length_n1 = torch.tensor([starts, lengths])[:, :, None]
    place_S = torch.arange(max(lengths))
    # A sequence without rows points at its start, or the row before the end of all.
    return (start_n1 + torch.minimum(place_S, (length_n1 - 1).clamp_min(0))).flatten()


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        qkv_NC: Tensor,
        rotary: Tensor | None,
        layout: PackedLayout,
        rule: AttentionRule,
    ) -> Tensor:
        heads, kv_heads = rule.heads, rule.kv_heads
        rows, both = layout.rows(heads, kv_heads), heads + kv_heads
        qkv = qkv_NC.float().view(len(qkv_NC), both + kv_heads, -1)
        size = qkv.shape[-1]
        # A pair (i, i + D/2) is one complex number and its rotation one product. Queries and keys
        # stay interleaved after that: their scores do not change when both are permuted alike.
        # Each takes the root of the scale, so that scores come out scaled.
        root = size**-0.25 if rule.scale is None else rule.scale**0.5
        if rotary is None:
            turn = torch.tensor(root)
            qk_rows = qkv[:, :both].mul(root).view(-1, size)
        else:
            turn = torch.complex(*rotary.float().mul(root))[:, None]
            pairs = torch.complex(qkv[:, :both, : size // 2], qkv[:, :both, size // 2 :])
            qk_rows = torch.view_as_real(pairs.mul_(turn)).view(-1, size)
        q = qk_rows.index_select(0, rows.q)
        k = qk_rows.index_select(0, rows.k)
        v = qkv.view(-1, size).index_select(0, rows.v)
        o = torch.empty_like(q)
        kept = []
        for group in layout.groups:
            for part in _parts(group, rule, q, k, v, o):
                p = _probabilities(part)
                torch.bmm(p, part.v, out=part.o)
                if group.length <= _LONGEST_KEPT:
                    kept.append(p)
        ctx.save_for_backward(q, k, v, turn, *kept)
        ctx.plan = (layout, rule, qkv_NC.dtype)  # type: ignore[attr-defined]
        return o.index_select(0, rows.from_q).view(len(qkv_NC), -1).to(qkv_NC.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        layout, rule, dtype = ctx.plan  # type: ignore[attr-defined]
        heads, kv_heads = rule.heads, rule.kv_heads
        q, k, v, turn, *kept = ctx.saved_tensors  # type: ignore[attr-defined]
        rows, both, size = layout.rows(heads, kv_heads), heads + kv_heads, q.shape[-1]
        do = grad.float().reshape(-1, size).index_select(0, rows.o)
        do.index_fill_(0, rows.padding, 0.0)
        dqk = q.new_zeros(len(q) + len(k), size)
        dq, dk, dv = dqk[: len(q)], dqk[len(q) :], torch.zeros_like(v)
        remembered = iter(kept)
        for group in layout.groups:
            parts = _parts(group, rule, q, k, v, do)
            gradients = _parts(group, rule, dq, dk, dv, do)
            for part, gradient in zip(parts, gradients, strict=True):
                long = group.length > _LONGEST_KEPT
                p = _probabilities(part) if long else next(remembered)
                gradient.v.baddbmm_(p.transpose(1, 2), part.o)
                dp = torch.bmm(part.o, part.v.transpose(1, 2))
                ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
                torch.bmm(ds, part.k, out=gradient.q)
                gradient.k.baddbmm_(ds.transpose(1, 2), part.q)
        dqk = dqk.index_select(0, rows.from_qk)
        out = q.new_empty(layout.tokens, both + kv_heads, size)
        if not turn.is_complex():
            torch.mul(dqk.view(-1, both, size), turn, out=out[:, :both])
        else:
            pairs = torch.view_as_complex(dqk.view(-1, both, size // 2, 2)).mul_(turn.conj())
            out[:, :both, : size // 2] = pairs.real
            out[:, :both, size // 2 :] = pairs.imag
        out[:, both:] = dv.index_select(0, rows.from_v).view(-1, kv_heads, size)
        return out.view(layout.tokens, -1).to(dtype), None, None, None


class _Part(NamedTuple):
    """One product of queries with keys: ``[batch, rows, D]`` views into a group."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    causal: int  # the last so many keys are hidden causally; rows repeat every so many; 0: none


def _parts(
    group: _Group, rule: AttentionRule, q: Tensor, k: Tensor, v: Tensor, o: Tensor
) -> Iterator[_Part]:
    """Cut a group into products: all heads that share keys at once, or blocks of queries."""
    count, length, first, _ = group
    heads, kv_heads, causal = rule.heads, rule.kv_heads, int(rule.causal)
    shared, size = heads // kv_heads, q.shape[-1]

    def rows(x: Tensor, heads: int) -> Tensor:
        return x[first * heads : (first + count * length) * heads]

    keys = rows(k, kv_heads).view(count * kv_heads, length, size)
    values = rows(v, kv_heads).view(count * kv_heads, length, size)
    queries = rows(q, heads).view(count * kv_heads, shared, length, size)
    outputs = rows(o, heads).view(count * kv_heads, shared, length, size)
    if length <= _UNCUT:
        yield _Part(queries.flatten(1, 2), keys, values, outputs.flatten(1, 2), causal * length)
        return
    for head in range(shared):
        for start in range(0, length, _BLOCK):
            end = min(start + _BLOCK, length)
            seen = end if causal else length
            yield _Part(
                queries[:, head, start:end],
                keys[:, :seen],
                values[:, :seen],
                outputs[:, head, start:end],
                causal * (end - start),
            )


def _probabilities(part: _Part) -> Tensor:
    """The softmax of the scores, causal or not."""
    scores = torch.bmm(part.q, part.k.transpose(1, 2))
    if not part.causal:
        return torch.softmax(scores, -1)
    hidden = torch.full((part.causal, part.causal), float("-inf"), device=scores.device).triu_(1)
    last = scores[:, :, scores.shape[2] - part.causal :]
    last.unflatten(1, (-1, part.causal)).add_(hidden)
    return torch.softmax(scores, -1)
