"""The forward and backward pass of a whole model on one micro-batch: what it adds to memory.

N tokens, R scored ones, E hidden, V vocabulary, c bytes of a number.
"""

from dataclasses import dataclass, replace

from hone.models.config import ModelConfig
from hone.models.positions import Learned, Rotary
from hone.plan.attention import shared_bias
from hone.plan.blocks import BlockTape, Layer, Setting
from hone.plan.pack import Pack
from hone.plan.tape import Buffer, Span, Tape, chain
from hone.plan.trained import Numbers, Stage, layers_by_block
from hone.plan.weights import is_tied, output_rows

_FLOAT32, _INT64 = 4, 8
# One chunk of the logits of ``projected_cross_entropy``.
CHUNK_BYTES, FEWEST_ROWS = 8 << 20, 256
# Weights in NF4 that are dequantized at a time.
AT_ONCE = {"cpu": 2**20, "cuda": 2**24}


@dataclass(frozen=True, slots=True)
class Saving:
    """What the backward pass computes again.

    Attributes:
        mode: none, blocks or selective.
        every: blocks of a piece.
        offload: what is kept is in the host's memory.
    """

    mode: str = "none"
    every: int = 1
    offload: bool = False


@dataclass(frozen=True, slots=True)
class PassMemory:
    """What one micro-batch adds to weights, gradients and state.

    Attributes:
        batch: the batch itself and the places of its tokens.
        kept: what the body keeps for the backward pass.
        loss: that of the head.
        peak: most bytes at one time, the above included.
        host: what is kept in the host's memory instead.
    """

    batch: int
    kept: int
    loss: int
    peak: int
    host: int


def pass_memory(
    config: ModelConfig,
    numbers: Numbers,
    pack: Pack,
    source: Pack,
    scored: int,
    saving: Saving,
    dropout: bool = False,
    stage: Stage = "all",
    at_once: int = AT_ONCE["cpu"],
) -> PassMemory:
    """Walk the pass.

    Args:
        numbers: which weights are trained, and in which format.
        pack: the sequences of the decoder, or of the only stack.
        source: those of the encoder, where there is one.
        scored: R.
        dropout: adapters have one.
        stage: of a pipeline.
        at_once: weights in NF4 that are dequantized at a time.
    """
    c, keeps = numbers.size, numbers.keeps_gradients
    batch = _batch_bytes(config, pack)
    parts: list[Span] = []
    held = 0  # from the first layer's forward pass to its backward pass
    read = None
    if config.encoder is not None:
        learnt = numbers.trains_bias("model.encoder")
        setting = Setting(c, source, keeps, None, None, dropout, at_once, learnt)
        parts += _stack(config.encoder, "model.encoder", setting, numbers, saving, stage)
        batch += _batch_bytes(config.encoder, source)
        # The gradient of what the encoder gives, to which every block of the decoder adds.
        held += source.tokens * config.hidden_size * c
        held += shared_bias(config.encoder, source, learnt, saving.mode != "none")
        read = source
    rows = None if stage == "first" or _reads_all(config) else scored
    path = "model" if config.encoder is None else "model.decoder"
    learnt = numbers.trains_bias(path)
    setting = Setting(c, pack, keeps, rows, read, dropout, at_once, learnt)
    parts += _stack(config, path, setting, numbers, saving, stage)
    held += shared_bias(config, pack, learnt, saving.mode != "none")
    body = chain(parts)
    end = [] if stage == "first" else [_head(config, numbers, pack, scored)]
    whole = chain([*parts, *end])
    peak = max(whole.ahead, whole.kept + whole.back)
    if end and is_tied(config) and numbers.trains_embedding and not keeps:
        # The output layer's gradient of the weight waits for the embedding's.
        weight = config.vocab_size * config.hidden_size * c
        peak = max(peak, whole.kept + end[0].freed + weight + body.back)
    kept, host = body.kept + held, 0
    if saving.offload:  # one block's part is on the device at a time
        host = max(0, body.kept - max(part.kept for part in parts))
    return PassMemory(
        batch=batch,
        kept=kept - host,
        loss=end[0].kept if end else 0,
        peak=peak + held + batch - host,
        host=host,
    )


def _stack(
    config: ModelConfig,
    path: str,
    setting: Setting,
    numbers: Numbers,
    saving: Saving,
    stage: Stage,
) -> list[Span]:
    """Embedding, blocks and the last normalisation."""
    selective = saving.mode == "selective"
    wanted = numbers.trains_embedding or stage == "last"
    spans = [] if stage == "last" else [_embedding(config, setting, numbers, wanted)]
    known: dict[object, Span] = {}
    blocks = layers_by_block(numbers, path)
    last = config.num_hidden_layers - 1
    made: list[Span] = []
    for layer, layers in enumerate(blocks):
        rows = setting.rows if layer == last else None
        key = (
            tuple(sorted(layers.items())),
            config.is_sliding(layer),
            config.has_experts(layer),
            rows,
            wanted,
        )
        if key not in known:
            own = setting if rows is setting.rows else replace(setting, rows=None)
            tape = BlockTape(config, layer, own, layers, wanted).write()
            known[key] = tape.span(selective)
        made.append(known[key])
        wanted = wanted or any(layer.trained or layer.rank for layer in layers.values())
    if saving.mode == "blocks":
        pieces = [made[i : i + saving.every] for i in range(0, len(made), saving.every)]
        made = [chain(piece).recomputed() for piece in pieces]
    spans += made
    if config.final_norm and stage != "first":
        tokens = setting.tokens if setting.rows is None else setting.rows
        x = Buffer(tokens * config.hidden_size * setting.number, wanted)
        final = {"norm": numbers.layer(f"{path}.norm")}
        writer = BlockTape(config, 0, setting, final, wanted)
        writer.tape = Tape(x, setting.keeps_gradients)
        writer.norm(x, "norm")
        spans.append(writer.tape.span())
    return spans


def _embedding(config: ModelConfig, setting: Setting, numbers: Numbers, wanted: bool) -> Span:
    """The vectors of tokens and what is added to them."""
    c, tokens = setting.number, setting.tokens
    size = tokens * config.hidden_size * c
    dense = config.vocab_size * config.hidden_size * c if wanted else 0
    start = Buffer(0, wanted)
    tape = Tape(start, setting.keeps_gradients)
    x = tape.op(start, size=size, weights=dense)
    if config.embedding_scale != 1.0:
        x = tape.op(x, size=size)
    if isinstance(config.positions, Learned):
        places = config.max_position_embeddings + config.positions.offset
        x = tape.op(x, size=size, same=True, weights=places * config.hidden_size * c * bool(dense))
    if config.token_types:
        x = tape.op(x, size=size, same=True)
    if config.embedding_norm:
        writer = BlockTape(config, 0, setting, {"norm": Layer(1, config.hidden_size)}, wanted)
        writer.tape = tape
        writer.norm(x, "norm")
    return tape.span()


def _reads_all(config: ModelConfig) -> bool:
    """Whether the last block computes all rows, scored or not: heads of texts read them, and the
    losses that balance experts are over all tokens.
    """
    return config.experts is not None or config.head not in ("causal", "masked", "seq2seq")


def _head(config: ModelConfig, numbers: Numbers, pack: Pack, scored: int) -> Span:
    """What follows the body, and the loss."""
    c, size, head = numbers.size, config.hidden_size, config.head
    rows = scored
    x = Buffer((pack.tokens if _reads_all(config) else rows) * size * c)
    tape = Tape(x, numbers.keeps_gradients)
    out = x
    if head in ("classification", "embedding"):
        rows = len(pack.lengths)
        out = tape.op(out, size=rows * size * c, back=pack.tokens * size * c)
    elif config.experts is not None:
        routed = _FLOAT32 * config.experts.count * pack.tokens * config.num_hidden_layers
        out = tape.op(out, size=rows * size * c, extra=routed, work=3 * routed)
    elif head == "token-classification":
        out = tape.op(out, size=rows * size * c)
    transform = config.transforms.get(head)
    if transform:
        wide = rows * size * c
        dense = numbers.layer("transform.dense")
        out = tape.op(out, size=wide, keeps=(out,), weights=c * dense.numbers)
        tanh = transform[0] in ("tanh", "relu")
        out = tape.op(out, size=wide, keeps=() if tanh else (out,), keeps_out=tanh)
        if "norm" in transform:
            out = tape.op(out, size=wide, keeps=(out,), extra=2 * _FLOAT32 * rows)
    scores = output_rows(config)
    if not scores:
        tape.op(out, size=0)
        return tape.span()
    layer = numbers.layer("score" if head.endswith("classification") else "lm_head")
    weights = c * (scores * size + layer.bias) if layer.trained else 0
    if head in ("causal", "masked", "seq2seq"):
        _chunked_loss(tape, out, config, layer.trained, rows, c)
        return tape.span()
    logits = rows * scores
    made = tape.op(out, size=logits * c, keeps=(out,), weights=weights)
    if c != _FLOAT32:
        made = tape.op(made, size=logits * _FLOAT32)
    tape.op(made, size=0, extra=logits * _FLOAT32)
    return tape.span()


def _chunked_loss(
    tape: Tape, hidden: Buffer, config: ModelConfig, trained: bool, rows: int, number: int
) -> None:
    """``projected_cross_entropy``: gradients are made with the loss, and passed on as they are."""
    scores, size = config.vocab_size, config.hidden_size
    most = max(FEWEST_ROWS, CHUNK_BYTES // (_FLOAT32 * scores))
    chunk = _FLOAT32 * scores * max(1, min(rows, most))
    temporary = (3 if config.logit_softcap is not None else 2) * chunk
    own = _FLOAT32 * scores * size if trained else 0
    if number != _FLOAT32:
        # Rounded probabilities; what they make of the weight's gradient, which is rounded too.
        temporary += chunk // 2
        own = own * number // _FLOAT32
        temporary += (own + _FLOAT32 * scores * size) if trained else 0
    tape.op(
        hidden,
        size=0,
        extra=hidden.size + own,
        work=temporary,
        back=-hidden.size - own,
        weights=own,
    )


def _batch_bytes(config: ModelConfig, pack: Pack) -> int:
    """Ids, positions, labels, where tokens go for attention, and the table of rotations."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    count = 4 * _INT64 * pack.tokens + (_INT64 + 1) * pack.slots
    if config.mixer == "attention":
        slots = 2 * heads + 2 * kv_heads
        tokens = 2 * heads + 2 * kv_heads
        count += _INT64 * (pack.slots * slots + pack.tokens * tokens)
    if isinstance(config.positions, Rotary):
        count += _FLOAT32 * pack.tokens * config.positions.rotated(config.head_dim)
        if config.local_positions is not None:
            count += _FLOAT32 * pack.tokens * config.head_dim
    return count
