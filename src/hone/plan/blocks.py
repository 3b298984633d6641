"""The operations of one block on a tape, as ``hone.models`` computes it in training.

N tokens, R rows that leave the last block, E hidden, F feed-forward, C = H + 2K heads of D numbers,
X experts, S slots (tokens times experts of each), c bytes of a number.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hone.models.config import ModelConfig
from hone.plan.attention import Heads, cross_attention, self_attention
from hone.plan.pack import Pack
from hone.plan.tape import Buffer, Tape

_FLOAT32, _INT64 = 4, 8


@dataclass(frozen=True, slots=True)
class Layer:
    """One linear layer (or a norm, which has one row) as training sees it.

    Attributes:
        rows, columns: of the weight.
        bias: numbers of the bias.
        trained: the weight has a gradient.
        rank: of its adapter; 0 for none.
        reads: the adapter has a factor A of its own.
        quantized: its weight is dequantized in parts.
    """

    rows: int
    columns: int
    bias: int = 0
    trained: bool = True
    rank: int = 0
    reads: bool = False
    quantized: bool = False

    @property
    def numbers(self) -> int:
        """Of what is trained of the layer itself."""
        return self.rows * self.columns + self.bias if self.trained else 0


@dataclass(frozen=True, slots=True)
class Setting:
    """What all blocks of a stack share.

    Attributes:
        number: c, bytes of a number in the dtype that is computed in.
        pack: the sequences of the stack.
        keeps_gradients: see :class:`Tape`.
        rows: R; None for all.
        source: the sequences that cross-attention reads.
        dropout: adapters have a dropout.
        at_once: weights that are dequantized at a time.
        learnt: the bias of relative positions has a gradient.
    """

    number: int
    pack: Pack
    keeps_gradients: bool = False
    rows: int | None = None
    source: Pack | None = None
    dropout: bool = False
    at_once: int = 2**20
    learnt: bool = False

    @property
    def tokens(self) -> int:
        """N."""
        return self.pack.tokens


Layers = Mapping[str, Layer]


class BlockTape:
    """Writes one block on a tape."""

    def __init__(
        self, config: ModelConfig, layer: int, setting: Setting, layers: Layers, wanted: bool
    ) -> None:
        """``wanted``: a gradient flows to what the block reads."""
        self.config, self.layer, self.setting, self.layers = config, layer, setting, layers
        self.c, self.n = setting.number, setting.tokens
        self.x = Buffer(self.n * config.hidden_size * self.c, wanted)
        self.tape = Tape(self.x, setting.keeps_gradients)

    def write(self) -> Tape:
        """The whole block."""
        if self.config.mixer != "attention":
            self._state_space()
        else:
            self._block()
        return self.tape

    # Wiring.

    def _block(self) -> None:
        block, cross = self.config.block, "cross_attn.q_proj" in self.layers
        keep = self.setting.rows
        early = None if cross else keep
        x, pre = self.x, block != "post"
        read = self.norm(x, "input_layernorm") if pre else x
        attended = self.attention(read, early)
        if block == "sandwich":
            attended = self.norm(attended, "post_attention_layernorm")
        h = self.add(self.rows(x, early), attended)
        if block == "parallel":
            stream = self.rows(x, early) if early is not None else x
            self.add(h, self.mlp(self.norm(stream, "post_attention_layernorm")))
            return
        if not pre:
            h = self.norm(h, "input_layernorm")
        if cross:
            read = self.norm(h, "cross_attention_layernorm") if pre else h
            h = self.add(self.rows(h, keep), self.cross(read, keep))
            if not pre:
                h = self.norm(h, "cross_attention_layernorm")
        name = "pre_feedforward_layernorm" if block == "sandwich" else "post_attention_layernorm"
        mixed = self.mlp(self.norm(h, name) if pre else h)
        if block == "sandwich":
            mixed = self.norm(mixed, "post_feedforward_layernorm")
        out = self.add(h, mixed)
        if not pre:
            self.norm(out, "post_attention_layernorm")

    def add(self, x: Buffer, y: Buffer) -> Buffer:
        """A sum."""
        return self.tape.op(x, y, size=y.size, same=True)

    def rows(self, x: Buffer, keep: int | None) -> Buffer:
        """Only so many rows."""
        if keep is None:
            return x
        return self.tape.op(x, size=x.size // self.n * keep)

    # Layers.

    def norm(self, x: Buffer, name: str) -> Buffer:
        """A normalisation of the hidden states."""
        layer = self.layers.get(name)
        if layer is None:  # the first block of some has none
            return x
        weights = layer.numbers * self.c
        numbers = x.size // self.c
        rows = numbers // layer.columns
        if self.config.norm == "layer":
            extra = 2 * _FLOAT32 * rows
            return self.tape.op(
                x, size=x.size, keeps=(x,), extra=extra, weights=weights, piece="cheap"
            )
        wide = 0 if self.c == _FLOAT32 else _FLOAT32 * numbers
        scale = _FLOAT32 * rows
        if self.config.norm == "rms":
            return self.tape.op(
                x,
                size=x.size,
                keeps=(x,),
                extra=scale,
                work=2 * wide,
                back=3 * wide,
                weights=weights,
                piece="cheap",
            )
        return self.tape.op(
            x,
            size=x.size,
            keeps=() if wide else (x,),
            extra=scale + wide,
            work=wide,
            back=2 * wide,
            weights=weights,
            piece="cheap",
        )

    def product(self, x: Buffer, *names: str) -> Buffer:
        """Linear layers that read the same, side by side."""
        layers = [self.layers[name] for name in names]
        rows = x.size // self.c // layers[0].columns
        columns, width = layers[0].columns, sum(layer.rows for layer in layers)
        size = rows * width * self.c
        trained = any(layer.trained for layer in layers)
        weights = self.c * sum(layer.numbers for layer in layers)
        joint_bias = len(layers) > 1 and any(layer.bias for layer in layers)
        work, back, extra = (size if joint_bias else 0), 0, 0
        if any(layer.quantized for layer in layers):
            work += _dequantized(layers, self.setting.at_once)
            back += _dequantized(layers, self.setting.at_once)
            work += size if len(layers) > 1 else 0  # each is computed, then they are joined
            back += x.size if len(layers) > 1 else 0
        keeps = (x,) if trained else ()
        if any(layer.rank for layer in layers):
            keeps = (x,)
            ranks = sum(layer.rank for layer in layers if layer.reads)
            factors = sum(layer.rank * layer.rows for layer in layers) + ranks * columns
            extra = rows * ranks * self.c + (rows * columns if self.setting.dropout else 0)
            weights += factors * self.c
            back += rows * ranks * self.c + (2 * x.size if self.setting.dropout else 0)
        return self.tape.op(
            x, size=size, keeps=keeps, extra=extra, work=work, back=back, weights=weights
        )

    def attention(self, x: Buffer, keep: int | None) -> Buffer:
        """Self-attention."""
        heads = Heads.of(self.config, self.layer, self.setting.learnt)
        qkv = self.product(x, *(f"self_attn.{part}_proj" for part in "qkv"))
        if self.config.qk_norm:
            parts = self.n * (heads.heads + heads.kv_heads)
            turned = parts * heads.size * self.c
            copies = 2 * self.n * heads.heads * heads.size * max(self.c, _FLOAT32)
            sums = (2 if self.config.norm == "layer" else 1) * _FLOAT32 * parts
            qkv = self.tape.op(
                qkv,
                size=qkv.size,
                keeps=(qkv,),
                extra=sums,
                work=turned,
                back=turned + copies,
                piece="cheap",
            )
        o = self_attention(self.tape, qkv, heads, self.setting.pack, self.c)
        return self.product(self.rows(o, keep), "self_attn.o_proj")

    def cross(self, x: Buffer, keep: int | None) -> Buffer:
        """Attention to the sources, whose hidden states all blocks share."""
        source = self.setting.source
        assert source is not None
        shared = Buffer(0)
        c, row = self.c, self.config.num_key_value_heads * self.config.head_dim
        layers = [self.layers[f"cross_attn.{part}_proj"] for part in "kv"]
        kv = self.tape.op(
            shared,
            size=2 * source.tokens * row * c,
            weights=c * sum(layer.numbers for layer in layers),
            # The gradient that the sources get of this block, beside what they have.
            back=source.tokens * self.config.hidden_size * c,
        )
        q = self.product(x, "cross_attn.q_proj")
        heads = Heads.of(self.config, self.layer, self.setting.learnt)
        o = cross_attention(self.tape, q, kv, heads, self.setting.pack, source, c)
        return self.product(self.rows(o, keep), "cross_attn.o_proj")

    def mlp(self, x: Buffer) -> Buffer:
        """The feed-forward layer, or the mixture of experts."""
        if self.config.has_experts(self.layer):
            return self._experts(x)
        return self._feed_forward(x, "mlp")

    def _feed_forward(self, x: Buffer, path: str) -> Buffer:
        gated, activation = self.config.gated, self.config.activation
        names = [f"{path}.up_proj"]
        if gated:
            names.insert(0, f"{path}.gate_proj")
        wide = self.product(x, *names)
        half = wide.size // 2
        if not gated:
            kept_out = activation in ("relu", "tanh")
            inner = self.tape.op(
                wide,
                size=wide.size,
                keeps=() if kept_out else (wide,),
                keeps_out=kept_out,
                piece="cheap",
            )
        elif activation == "silu":
            inner = self.tape.op(wide, size=half, keeps=(wide,), back=half, piece="cheap")
        else:
            inner = self.tape.op(wide, size=half, keeps=(wide,), extra=half, piece="cheap")
        return self.product(inner, f"{path}.down_proj")

    def _experts(self, x: Buffer) -> Buffer:
        experts, size, c, tokens = self.config.experts, self.config.hidden_size, self.c, self.n
        assert experts is not None
        tokens = x.size // c // size
        slots = tokens * experts.per_token
        logits = self.product(x, "mlp.gate")
        # Probabilities, the choice, the weights of the chosen, and the order of slots.
        # The logits wait for the loss that balances experts.
        chosen = 2 * _FLOAT32 * tokens * experts.count + slots * (3 * _FLOAT32 + 5 * _INT64)
        weights = self.tape.op(
            logits,
            size=slots * _FLOAT32,
            extra=chosen,
            back=2 * _FLOAT32 * tokens * experts.count,
        )
        own = max(1, slots // experts.count)  # of one expert, when all have as many
        inner, numbers = experts.size, 0
        layer = self.layers["mlp.gate_up_proj"]
        if layer.trained:
            numbers = 3 * experts.count * inner * size
        out = self.tape.op(
            x,
            weights,
            size=tokens * size * c,
            keeps=(x, weights),
            extra=slots * 2 * inner * c,
            work=slots * size * c + own * (size + 2 * inner) * c,
            back=slots * size * c + own * (2 * size + 8 * inner) * c,
            weights=numbers * c,
        )
        if not experts.shared_size:
            return out
        shared = self._feed_forward(x, "mlp.shared_expert")
        gate = self.product(x, "mlp.shared_expert_gate")
        weighed = self.tape.op(
            gate, shared, size=shared.size, keeps=(gate, shared), extra=gate.size
        )
        return self.add(out, weighed)

    # State spaces.

    def _state_space(self) -> None:
        x = self.norm(self.x, "norm")
        y = self._mamba(x) if self.config.mixer == "mamba" else self._mamba2(x)
        y = self.rows(y, self.setting.rows)
        y = self.product(y, "mixer.out_proj")
        self.add(self.rows(self.x, self.setting.rows), y)

    def _parts(self, joint: Buffer, *sizes: int) -> list[Buffer]:
        """Views of ``joint``, whose gradients wait until they are joined to one."""
        first, *others = sizes
        nothing = Buffer(0, joint.wanted)
        rest = [self.tape.op(nothing, size=0, gradient=size) for size in others]
        return [self.tape.op(joint, size=0, gradient=first), *rest]

    def _convolution(self, part: Buffer, joint: Buffer) -> Buffer:
        """``silu(convolution)`` of ``part``, a view of ``joint``; in float32."""
        numbers = part.gradient // self.c
        wide = _FLOAT32 * numbers
        converted = wide if self.c != _FLOAT32 else 0
        return self.tape.op(
            part,
            size=part.gradient,
            keeps=() if converted else (joint,),
            extra=part.gradient + converted,
            work=converted,
            back=wide + converted + _FLOAT32 * min(numbers, _CONVOLVED),
            piece="cheap",
        )

    def _mamba(self, x: Buffer) -> Buffer:
        space, c, n = self.config.state_space, self.c, self.n
        assert space is not None
        inner, state = space.inner * n, space.state
        wide = _FLOAT32 * inner
        joint = self.product(x, "mixer.in_proj")
        half, gate = self._parts(joint, inner * c, inner * c)
        u = self._convolution(half, joint)
        parts = self.product(u, "mixer.x_proj")
        step = self.product(self.tape.op(parts, size=n * space.rank * c), "mixer.dt_proj")
        delta = self.tape.op(step, size=inner * c, keeps=(step,), piece="cheap")
        lengths = self.setting.pack.lengths
        blocks, scratch = scan_blocks(lengths, space.inner, state)
        states = _FLOAT32 * space.inner * state
        y = self.tape.op(
            u,
            delta,
            parts,
            size=wide,
            keeps=(u, delta, parts),
            extra=blocks * states + len(lengths) * states,
            work=wide + 2 * scratch,
            # The slices of what it reads are gradients of their own.
            back=2 * wide + 4 * scratch + 2 * states,
            weights=c * space.inner * state,
        )
        # What passes by the state; the gradient of y is passed on.
        y = self.tape.op(y, u, size=wide, keeps=(u,), weights=c * space.inner)
        return self.tape.op(
            y,
            gate,
            size=inner * c,
            keeps=(y, joint),
            extra=inner * c,
            back=inner * c,
            piece="cheap",
        )

    def _mamba2(self, x: Buffer) -> Buffer:
        space, c, n = self.config.state_space, self.c, self.n
        assert space is not None
        inner, times = space.inner * n, space.heads * n
        mixed = inner + 2 * space.groups * space.state * n
        wide = _FLOAT32 * inner
        joint = self.product(x, "mixer.in_proj")
        part, gate, step = self._parts(joint, mixed * c, inner * c, times * c)
        u = self._convolution(part, joint)
        delta = self.tape.op(step, size=times * c, extra=2 * times * c, back=2 * times * c)
        lengths = self.setting.pack.lengths
        chunks = sum(-(length // -_CHUNK) for length in lengths)
        state = _FLOAT32 * space.inner * space.state
        across = 4 * _FLOAT32 * space.heads * _CHUNK * _CHUNK
        y = self.tape.op(
            u,
            delta,
            size=wide,
            keeps=(u, delta),
            extra=chunks * state + 2 * len(lengths) * state,
            work=across + wide,
            back=across + mixed * _FLOAT32 + len(lengths) * state,
            weights=c * 2 * space.heads,
        )
        y = self.tape.op(y, u, size=wide, keeps=(u,), weights=c * space.heads)
        trained = self.layers["mixer.norm"].trained
        return self.tape.op(
            y,
            gate,
            size=inner * c,
            keeps=(y, joint),
            extra=(3 if trained else 2) * wide,
            back=2 * wide,
            weights=c * space.inner if trained else 0,
            piece="cheap",
        )


# Numbers that the convolution's gradient is computed of at a time, as in ``hone.kernels``.
_CONVOLVED = 1 << 18
# Tokens of a chunk of Mamba-2, and the blocks of Mamba's scan, as in ``hone.kernels``.
_CHUNK = 64
SCAN_NUMBERS, SCAN_FEWEST, SCAN_MOST = 1 << 19, 16, 64


def scan_blocks(lengths: tuple[int, ...], channels: int, state: int) -> tuple[int, int]:
    """How many states the scan keeps, and bytes of the states of one block."""
    tokens = min(max(SCAN_NUMBERS // (state * channels), SCAN_FEWEST), SCAN_MOST)
    widest = max(1, SCAN_NUMBERS // (state * tokens))
    width = math.ceil(channels / math.ceil(channels / widest))
    return sum(-(length // -tokens) for length in lengths), _FLOAT32 * tokens * state * width


def _dequantized(layers: list[Layer], at_once: int) -> int:
    """Bytes of the part of a weight in NF4 that exists at a time, in float32, with the indices of
    its codes and the part before; and of the magnitudes of all blocks.
    """
    largest = 0
    for layer in layers:
        if layer.quantized:
            count = layer.rows * layer.columns
            part = min(at_once, count)
            largest = max(largest, part * (6 if part == count else 10) + count // 4)
    return largest
