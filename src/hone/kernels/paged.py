"""Attention to keys and values that lie in blocks (PagedAttention, Kwon et al. 2023, section 4.1).

A sequence's positions are cut into blocks of fixed size; its table says where in a pool each block
lies. Block 0 of a pool belongs to no sequence.

The fast forms never sum over more than one block at a time: a product of a query tile with a block
has the block's shape, however long the sequence is, and blocks are added up in the order of their
positions. Masked slots have the probability zero, which changes no sum. So the bits of a token's
output do not depend on how many blocks, tiles or neighbours there are, as long as the product's do
not depend on the number of its rows; :func:`steady_rows` measures from which number on they do not.

Shapes: NB blocks of bs slots, S positions of one sequence, H query heads, K key/value heads,
G = H / K, D head size; n tiles of T queries that see up to W blocks each; P pairs of a tile and a
block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from hone.kernels.attention import AttentionRule, Bias, attention
from hone.kernels.paged_pool import Pool

# Scores that are computed at once in a long pass: they stay in a processor's cache.
_SCORES = 1 << 19


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
    q_HTD = q_THD.transpose(0, 1)
    k_KSD, v_KSD = (
        torch.cat([pool[block] for block in table], dim=1)[:, :length] for pool in (keys, values)
    )
    return attention(q_HTD[None], k_KSD[None], v_KSD[None], rule, bias)[0].transpose(0, 1)


@dataclass(slots=True)
class Tiles:
    """Queries in tiles, and the pairs of a tile with a block that it sees.

    Pairs are ordered by where their block is found: first in ``runs`` of neighbours in the pool,
    ``(first, behind the last)``, which are used in place, whether all of them belong to a tile or
    not; then ``gathered`` blocks; then blocks of ``collected`` single vectors.

    Attributes:
        tokens: which token of the pass each query is, ``[n, T]``; short tiles repeat their last.
        positions: of the queries, ``[n, T]``.
        first: position of the first slot that each tile sees, ``[n]``.
        ends: the position behind the last key of each tile, ``[n]``; None where queries see no key
            behind their own position.
        width: W.
        tile_of, place_of: the tile of each pair, and where in ``[n · W]`` its block stands.
        pair_of: the pair of each place, ``[n · W]``; any for places without one, which are masked.
        order, starts: the pairs of every tile behind one another, in the order of positions, and
            where each tile's begin, ``[n]``.
        real, real_tokens: which of the ``[n · T]`` queries are no repetition, and their tokens.
    """

    tokens: Tensor
    positions: Tensor
    first: Tensor
    ends: Tensor | None
    width: int
    runs: list[tuple[int, int]]
    gathered: Tensor | None
    collected: Tensor | None
    tile_of: Tensor
    place_of: Tensor
    pair_of: Tensor
    order: Tensor
    starts: Tensor
    real: Tensor
    real_tokens: Tensor
    hidden: Tensor | None = None
    distance: Tensor | None = None

    def see(self, block_size: int, window: int | None) -> None:
        """Work out which slots are ``hidden`` from a query, and its ``distance`` from each:
        ``[n, T, W · bs]``. All layers of a pass share them.
        """
        slots = torch.arange(self.width * block_size, device=self.first.device)
        key = self.first[:, None, None] + slots
        query = self.positions[:, :, None]
        self.distance = query - key
        self.hidden = key > query if self.ends is None else key >= self.ends[:, None, None]
        if window is not None:
            self.hidden |= self.distance >= window


def tile_attention(
    q_NHD: Tensor,
    keys: Pool,
    values: Pool,
    tiles: Tiles,
    rule: AttentionRule,
    added: Tensor | None = None,
) -> Tensor:
    """Attention of tiles of queries to blocks of the pools; returns ``[n · T, H, D]``.

    Args:
        added: to the scores, float32 ``[n, K, T, G, W · bs]``.
    """
    count, queries = tiles.tokens.shape
    kv_heads, size, head = keys.data.shape[1:]
    shared, dtype = rule.heads // kv_heads, _arithmetic(q_NHD)
    q = q_NHD.index_select(0, tiles.tokens.flatten()).to(dtype) * _scale(rule, head)
    q = q.view(count, queries, kv_heads, shared, head).transpose(1, 2).reshape(count, -1)
    q = q.index_select(0, tiles.tile_of).view(-1, queries * shared, head)
    scores = q.new_empty(len(q), q.shape[1], size)
    start = 0
    for part in _parts(keys, tiles):
        rows = slice(start, start := start + len(part.data) * kv_heads)
        k = part.data.to(dtype).view(-1, size, head)
        torch.bmm(q[rows], k.transpose(1, 2), out=scores[rows])
        if part.scale is not None:
            scores[rows] *= part.scale.view(-1, 1, size)
    # From pairs to the whole row of each query, and back.
    scores = scores.view(len(tiles.tile_of), -1).index_select(0, tiles.pair_of)
    scores = scores.view(count, tiles.width, kv_heads, queries, shared, size)
    scores = scores.permute(0, 2, 3, 4, 1, 5).flatten(-2)
    assert tiles.hidden is not None
    p = _probabilities(scores, tiles.hidden[:, None, :, None], rule, added)
    p = p.unflatten(-1, (tiles.width, size)).permute(0, 4, 1, 2, 3, 5).flatten(0, 1)
    p = p.flatten(1).index_select(0, tiles.place_of).view(-1, queries * shared, size).to(dtype)
    out = q  # as large, and no longer needed
    start = 0
    for part in _parts(values, tiles):
        rows = slice(start, start := start + len(part.data) * kv_heads)
        p_rows = p[rows] if part.scale is None else p[rows] * part.scale.view(-1, 1, size)
        torch.bmm(p_rows, part.data.to(dtype).view(-1, size, head), out=out[rows])
    out = out.view(len(tiles.tile_of), -1)
    # Adds row by row, in order: unlike a sum over a dimension, in the same order for any number.
    out = functional.embedding_bag(tiles.order, out, tiles.starts, mode="sum")
    out = out.view(count, kv_heads, queries, shared, head).transpose(1, 2)
    return out.reshape(-1, rule.heads, head).to(q_NHD.dtype)


def chunk_attention(
    q_THD: Tensor,
    keys: Pool,
    values: Pool,
    start: int,
    rule: AttentionRule,
    by_distance: Tensor | None = None,
    length: int | None = None,
) -> Tensor:
    """Attention of neighbouring queries of one sequence to its blocks, in long products.

    The bits are those of :func:`tile_attention` where :func:`steady_rows` finds a number.

    Args:
        q_THD: queries at the positions from ``start`` on.
        keys, values: the sequence's blocks, from position 0 on.
        by_distance: added to the scores of keys so far before their query, float32 ``[H, ≥ S]``.
        length: keys that all queries see; None where a query sees none behind itself.

    Returns:
        ``[T, H, D]``.
    """
    blocks, kv_heads, size, head = keys.data.shape
    shared, dtype, device = rule.heads // kv_heads, _arithmetic(q_THD), q_THD.device
    k, v = (x.data.to(dtype).transpose(0, 1).flatten(1, 2) for x in (keys, values))
    k_scale, v_scale = (
        None if x.scale is None else x.scale.transpose(0, 1).flatten(1)[:, None]
        for x in (keys, values)
    )
    q = (q_THD.to(dtype) * _scale(rule, head)).unflatten(1, (kv_heads, shared)).transpose(0, 1)
    at_once = max(16, _SCORES // (rule.heads * blocks * size))
    outs = []
    for some in q.split(at_once, dim=1):
        end = start + some.shape[1]
        low, high = 0, blocks
        if length is None:
            high = -(-end // size)
            if rule.window is not None:
                low = max(0, start - rule.window + 1) // size
        seen = slice(low * size, high * size)
        scores = torch.bmm(some.flatten(1, 2), k[:, seen].transpose(1, 2))
        if k_scale is not None:
            scores *= k_scale[:, :, seen]
        key = torch.arange(seen.start, seen.stop, device=device)
        query = torch.arange(start, end, device=device)[:, None]
        distance = query - key
        hidden = distance < 0 if length is None else (key >= length).expand_as(distance)
        if rule.window is not None:
            hidden = hidden | (distance >= rule.window)
        added = None
        if by_distance is not None:
            added = added_scores(by_distance, distance[None], kv_heads)[0]
        scores = scores.unflatten(1, (-1, shared))
        p = _probabilities(scores, hidden[:, None], rule, added).flatten(1, 2)
        if v_scale is not None:
            p *= v_scale[:, :, seen]
        p, out = p.to(dtype), some.new_zeros(kv_heads, some.shape[1] * shared, head)
        for block in range(high - low):
            own = slice(block * size, (block + 1) * size)
            out.baddbmm_(p[:, :, own], v[:, low * size + own.start : low * size + own.stop])
        outs.append(out.unflatten(1, (-1, shared)).transpose(0, 1).flatten(1, 2))
        start = end
    return torch.cat(outs).to(q_THD.dtype)


def added_scores(by_distance: Tensor, distance: Tensor, kv_heads: int) -> Tensor:
    """What a bias adds, ``[n, K, T, G, S]``, from ``[H, ≥ S]`` and distances ``[n, T, S]``."""
    by_distance_KGS = by_distance.unflatten(0, (kv_heads, -1))
    added = by_distance_KGS[:, :, distance.clamp(0, by_distance.shape[1] - 1)]
    return added.permute(2, 0, 3, 1, 4)


@cache
def steady_rows(
    head: int, block_size: int, dtype: torch.dtype, device: torch.device, threads: int
) -> int | None:
    """From how many rows on the bits of a product with a block are the same for any number.

    None where there is no such number up to 16: then only products of one shape are alike.
    ``threads`` is that of the process; the answer may depend on it.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    many, blocks = 192, 6
    q, k, v = random(4, many, head), random(4, blocks * block_size, head), random(4, many, head)
    v = random(4, blocks * block_size, head)
    p, before = random(4, many, blocks * block_size), random(4, many, head)
    scores = torch.bmm(q, k.transpose(1, 2))
    mixed = torch.bmm(p[:, :, :block_size], v[:, :block_size])
    if not torch.baddbmm(before, p[:, :, :block_size], v[:, :block_size]).equal(before + mixed):
        return None

    def alike(rows: int) -> bool:
        for first in (0, 3, many - rows):
            own = slice(first, first + rows)
            for block in range(blocks):
                of = slice(block * block_size, (block + 1) * block_size)
                part = torch.bmm(q[:, own].contiguous(), k[:, of].transpose(1, 2))
                if not part.equal(scores[:, own, of]):
                    return False
            part = torch.bmm(p[:1, own, :block_size].contiguous(), v[:1, :block_size])
            if not part.equal(mixed[:1, own]):
                return False
        return True

    least = None
    for rows in (*range(16, 0, -1),):
        if not alike(rows):
            break
        least = rows
    larger = (17, 24, 31, 40, 64, 96, 129, 160)
    return least if all(alike(rows) for rows in larger) else None


def _parts(pool: Pool, tiles: Tiles) -> list[Pool]:
    """The blocks of all pairs, in their order."""
    parts = [pool.between(first, end) for first, end in tiles.runs]
    if tiles.gathered is not None:
        parts.append(pool.gather(tiles.gathered))
    if tiles.collected is not None:
        vectors = pool.data.shape[1] * pool.data.shape[2]
        parts.append(pool.collect(tiles.collected, len(tiles.collected) // vectors))
    return parts


def _probabilities(
    scores: Tensor, hidden: Tensor, rule: AttentionRule, added: Tensor | None
) -> Tensor:
    """The softmax in float32; written over ``scores``."""
    scores = scores.float()
    if rule.softcap is not None:
        scores = (scores / rule.softcap).tanh_().mul_(rule.softcap)
    if added is not None:
        scores = scores.add_(added)
    return scores.masked_fill_(hidden, float("-inf")).softmax(-1)


def _arithmetic(q_NHD: Tensor) -> torch.dtype:
    """A processor has no products of short floating-point numbers that add up in long ones."""
    return torch.float32 if q_NHD.device.type == "cpu" else q_NHD.dtype


def _scale(rule: AttentionRule, head: int) -> float:
    return head**-0.5 if rule.scale is None else rule.scale
