"""What attention keeps and needs, as ``hone.kernels`` computes it for training.

Attention whose scores are plain products keeps queries, keys, values and, up to a length,
probabilities, all in float32; any other goes through PyTorch's operation, which keeps less where
that has a fused form (Dao et al. 2022), and all scores where it has none.

N tokens, T positions of a group, H query heads, K key/value heads, C = H + 2K, D head size,
P probabilities of all heads, c bytes of a number.
"""

from dataclasses import dataclass

from hone.models.config import ModelConfig
from hone.models.positions import Alibi, Buckets, Rotary
from hone.plan.pack import LONGEST_KEPT, Pack, largest_part, last_part, probabilities
from hone.plan.tape import Buffer, Tape

_FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Heads:
    """H, K, D and what becomes of the scores of one layer.

    Attributes:
        rotated: dimensions of a head that turn; 0 for none.
        bias: positions add to the scores.
        learnt: what they add has a gradient.
    """

    heads: int
    kv_heads: int
    size: int
    causal: bool
    window: int | None = None
    softcap: bool = False
    rotated: int = 0
    bias: bool = False
    learnt: bool = False

    @classmethod
    def of(cls, config: ModelConfig, layer: int, learnt: bool) -> "Heads":
        """Those of self-attention in ``layer``; ``learnt``: its bias has a gradient."""
        positions = config.positions
        if config.is_sliding(layer) and config.local_positions is not None:
            positions = config.local_positions
        return cls(
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.causal,
            config.sliding_window if config.is_sliding(layer) else None,
            config.attention_softcap is not None,
            positions.rotated(config.head_dim) if isinstance(positions, Rotary) else 0,
            isinstance(config.positions, Alibi | Buckets),
            isinstance(config.positions, Buckets) and learnt,
        )

    @property
    def joint(self) -> int:
        """C."""
        return self.heads + 2 * self.kv_heads

    def plain(self, pack: Pack) -> bool:
        """Whether the kernel with a backward pass of its own computes them."""
        if self.bias or self.softcap:
            return False
        if self.window is not None and self.window < pack.longest:
            return False
        return self.causal or not pack.ragged


def self_attention(tape: Tape, qkv: Buffer, heads: Heads, pack: Pack, number: int) -> Buffer:
    """From queries, keys and values ``[N, C · D]`` to ``[N, H · D]``; ``number`` is c."""
    if heads.plain(pack):
        return _packed(tape, qkv, heads, pack, number)
    return _general(tape, qkv, heads, pack, pack, number)


def cross_attention(
    tape: Tape, q: Buffer, kv: Buffer, heads: Heads, pack: Pack, source: Pack, number: int
) -> Buffer:
    """From queries of ``pack`` and keys and values of ``source``."""
    row, even = heads.size * number, pack.even and source.even
    queries, keys = heads.heads * row, 2 * heads.kv_heads * row
    if even:
        sums = _FLOAT32 * pack.tokens * heads.heads
        return tape.op(
            q,
            kv,
            size=pack.tokens * queries,
            keeps=(q, kv),
            keeps_out=True,
            extra=sums,
            back=keys * source.tokens // 2,
        )
    own, its = _padded(pack, source)
    return tape.op(
        q,
        kv,
        size=pack.tokens * queries,
        extra=own * queries * 2 + its * keys + _FLOAT32 * own * heads.heads,
        work=2 * own * queries,
        back=own * queries + its * keys,
    )


def shared_bias(config: ModelConfig, pack: Pack, learnt: bool, again: bool) -> int:
    """Bytes that all layers of a stack keep of the bias of relative positions, and its gradient.

    The bias itself is gone after the forward pass, unless attention is computed ``again``, or it is
    added to the scores as it is: where nothing is hidden and nothing learnt.
    """
    if not isinstance(config.positions, Alibi | Buckets) or config.mixer != "attention":
        return 0
    pairs = sum(length**2 for length in {group.length for group in pack.groups})
    scores = _FLOAT32 * config.num_attention_heads * pairs
    kept = scores if again or not (config.causal or learnt) else 0
    # The gradient, and the buckets as int64.
    return kept + (scores + 8 * pairs if learnt else 0)


def _packed(tape: Tape, qkv: Buffer, heads: Heads, pack: Pack, number: int) -> Buffer:
    """``packed._PackedAttention``."""
    h, k, joint, row = heads.heads, heads.kv_heads, heads.joint, _FLOAT32 * heads.size
    rotated = heads.rotated
    if 0 < rotated < heads.size:  # heads that turn in part are turned before
        parts = pack.tokens * (h + k) * heads.size * number
        qkv = tape.op(qkv, size=qkv.size, work=parts, back=2 * parts)
        rotated = 0
    kept = sum(
        probabilities(group, h, heads.causal)
        for group in pack.groups
        if group.length <= LONGEST_KEPT
    )
    largest = max(largest_part(group, h, k, heads.causal) for group in pack.groups)
    long = any(group.length > LONGEST_KEPT for group in pack.groups)
    # The last of these is not freed before the rest of the gradients is made.
    last = last_part(pack.groups[-1], h, k)
    turn = row * pack.tokens if rotated else 0
    converted = number != _FLOAT32
    gradients = row * (pack.slots * (h + joint))
    after = row * (pack.tokens * (h + k) + pack.tokens * k) + 2 * _FLOAT32 * last
    within = (3 if long else 2) * _FLOAT32 * largest
    out = row * pack.tokens * joint
    return tape.op(
        qkv,
        size=number * pack.tokens * h * heads.size,
        extra=row * pack.slots * joint + turn + _FLOAT32 * kept,
        work=row * (pack.tokens * (h + k) + pack.slots * h)
        + _FLOAT32 * largest * (2 if long else 1)
        + (row * pack.tokens * joint if converted else 0),
        back=max(gradients + after + (out if converted else 0), gradients + within - out),
        piece="inside",
    )


def _general(
    tape: Tape, qkv: Buffer, heads: Heads, pack: Pack, source: Pack, number: int
) -> Buffer:
    """``functional.scaled_dot_product_attention``, or scores written out."""
    h, k, joint, row = heads.heads, heads.kv_heads, heads.joint, number * heads.size
    even = pack.even
    slots, _ = _padded(pack, source)
    tokens = pack.tokens
    extra = 0 if even else row * slots * joint
    if heads.rotated and even:  # values stay where they are, queries and keys are made anew
        extra = row * tokens * (h + k)
    pairs = sum(length**2 for _, length in pack.groups)
    scores = sum(count * length**2 for count, length in pack.groups) * h
    hidden = heads.causal or (heads.window is not None and heads.window < pack.longest)
    copies = 0 if even else row * slots * h  # the output, in the order of groups
    turned = row * tokens * h if heads.rotated else 0
    sums = _FLOAT32 * slots * h
    written_out = heads.softcap or heads.learnt
    if written_out:
        times = 2 if heads.softcap else 1
        # Queries, keys and values as the products read them: each head has its own.
        extra = row * slots * 3 * h + times * number * scores + (pairs if hidden else 0)
        if heads.softcap and number != _FLOAT32:
            extra += (_FLOAT32 - number) * scores * times
        # One group at a time.
        largest = (_FLOAT32 if heads.softcap else number) * h
        largest *= max(count * length**2 for count, length in pack.groups)
        added = number * h * pairs if heads.learnt else 0
        work = largest + 2 * row * slots * h + added
        back = max(0, 2 * largest + row * tokens * (h - joint)) + added
        return tape.op(
            qkv, size=row * tokens * h, extra=extra, work=work, back=back, piece="inside"
        )
    if heads.bias:
        extra += number * h * pairs if hidden or number != _FLOAT32 else 0
    elif hidden:
        extra += number * pairs
    return tape.op(
        qkv,
        size=row * tokens * h,
        keeps=(qkv,) if even else (),
        keeps_out=even,
        extra=extra + copies + sums,
        work=2 * copies + turned,
        back=row * tokens * joint + turned,
        piece="inside",
    )


def _padded(pack: Pack, source: Pack) -> tuple[int, int]:
    """Places of queries, and of keys, in groups: those of keys follow the queries' groups."""
    if source is pack:
        return pack.slots, pack.slots
    order = sorted(range(len(pack.lengths)), key=lambda number: pack.lengths[number])
    keys, first = 0, len(order)
    for count, _ in pack.groups:
        members = order[first - count : first]
        keys += count * max(source.lengths[number] for number in members)
        first -= count
    return pack.slots, keys
