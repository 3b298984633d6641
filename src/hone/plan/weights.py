"""Every weight of a model by arithmetic, without making the model.

The names and shapes are those of ``make_model(config).named_parameters()``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from hone.models.config import Head, ModelConfig
from hone.models.positions import Buckets, Learned


@dataclass(frozen=True, slots=True)
class Weight:
    """One parameter.

    Attributes:
        name: as in the model.
        shape: its dimensions.
        kind: "linear" is the matrix of a linear layer, "embedding" that of an embedding, "experts"
            all matrices of one place in a mixture, "other" a bias, a norm's scale and the like.
        layer: the number of its block, counted over encoder and decoder; None outside of blocks.
    """

    name: str
    shape: tuple[int, ...]
    kind: str = "other"
    layer: int | None = None

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def module(self) -> str:
        """The path of the layer that it belongs to."""
        return self.name.rpartition(".")[0] if self.kind != "experts" else self.name


def weights_of(config: ModelConfig, head: Head | None = None) -> list[Weight]:
    """The weights of ``config`` with ``head`` (its own when None); a tied one stands once."""
    found: list[Weight] = []
    if config.encoder is None:
        found += _stack(config, "model", 0)
        found.append(_embedding("model.embed_tokens", config.vocab_size, config.hidden_size))
    else:
        found.append(_embedding("model.shared", config.vocab_size, config.hidden_size))
        found += _stack(config.encoder, "model.encoder", 0)
        found += _stack(config, "model.decoder", config.encoder.num_hidden_layers)
    found += _head(config, head or config.head)
    return found


def count_parameters(config: ModelConfig, head: Head | None = None) -> int:
    """The number of weights, tied ones once; equal to ``config.parameter_count``."""
    return sum(weight.count for weight in weights_of(config, head))


def output_rows(config: ModelConfig, head: Head | None = None) -> int:
    """Scores per position (or text) of the last layer; 0 for embeddings."""
    head = head or config.head
    if head == "embedding":
        return 0
    if head in ("classification", "token-classification"):
        return len(config.labels)
    return config.vocab_size


def is_tied(config: ModelConfig, head: Head | None = None) -> bool:
    """Whether the output layer reads the embedding."""
    return config.tie_word_embeddings and (head or config.head) in ("causal", "masked", "seq2seq")


def _embedding(path: str, rows: int, size: int) -> Weight:
    return Weight(f"{path}.weight", (rows, size), "embedding")


def _linear(
    path: str, rows: int, columns: int, bias: bool, layer: int | None = None
) -> Iterator[Weight]:
    yield Weight(f"{path}.weight", (rows, columns), "linear", layer)
    if bias:
        yield Weight(f"{path}.bias", (rows,), "other", layer)


def _norm(
    config: ModelConfig,
    path: str,
    size: int = 0,
    bias: bool | None = None,
    layer: int | None = None,
) -> Iterator[Weight]:
    shape = (size or config.hidden_size,)
    yield Weight(f"{path}.weight", shape, "other", layer)
    if config.norm == "layer" and (config.norm_bias if bias is None else bias):
        yield Weight(f"{path}.bias", shape, "other", layer)


def _stack(config: ModelConfig, path: str, first_layer: int) -> Iterator[Weight]:
    size, positions = config.hidden_size, config.positions
    if isinstance(positions, Learned):
        places = config.max_position_embeddings + positions.offset
        yield _embedding(f"{path}.embed_positions", places, size)
    if config.token_types:
        yield _embedding(f"{path}.embed_types", config.token_types, size)
    if config.embedding_norm:
        yield from _norm(config, f"{path}.embed_norm")
    if isinstance(positions, Buckets):
        yield _embedding(f"{path}.relative_bias", positions.count, config.num_attention_heads)
    for layer in range(config.num_hidden_layers):
        block = f"{path}.layers.{layer}"
        if config.mixer == "attention":
            yield from _block(config, block, layer, first_layer + layer)
        else:
            yield from _state_space(config, block, first_layer + layer)
    if config.final_norm:
        yield from _norm(config, f"{path}.norm", bias=config.final_norm_bias)


def _block(config: ModelConfig, path: str, layer: int, number: int) -> Iterator[Weight]:
    yield from _attention(config, f"{path}.self_attn", number)
    norms = ["post_attention_layernorm"]
    if config.first_norm or layer > 0:
        norms.append("input_layernorm")
    if config.encoder is not None:
        yield from _attention(config, f"{path}.cross_attn", number)
        norms.append("cross_attention_layernorm")
    if config.block == "sandwich":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for norm in norms:
        yield from _norm(config, f"{path}.{norm}", layer=number)
    if not config.has_experts(layer):
        yield from _feed_forward(config, f"{path}.mlp", config.intermediate_size, number)
        return
    experts, size = config.experts, config.hidden_size
    assert experts is not None
    yield from _linear(f"{path}.mlp.gate", experts.count, size, False, number)
    up, down = (experts.count, 2 * experts.size, size), (experts.count, size, experts.size)
    yield Weight(f"{path}.mlp.gate_up_proj", up, "experts", number)
    yield Weight(f"{path}.mlp.down_proj", down, "experts", number)
    if experts.shared_size:
        shared = f"{path}.mlp.shared_expert"
        yield from _feed_forward(config, shared, experts.shared_size, number)
        yield from _linear(f"{shared}_gate", 1, size, False, number)


def _attention(config: ModelConfig, path: str, number: int) -> Iterator[Weight]:
    size, bias = config.hidden_size, config.attention_bias
    heads = config.num_attention_heads * config.head_dim
    kv_heads = config.num_key_value_heads * config.head_dim
    yield from _linear(f"{path}.q_proj", heads, size, bias, number)
    yield from _linear(f"{path}.k_proj", kv_heads, size, bias, number)
    yield from _linear(f"{path}.v_proj", kv_heads, size, bias, number)
    yield from _linear(f"{path}.o_proj", size, heads, config.output_bias, number)
    if config.qk_norm:
        yield from _norm(config, f"{path}.q_norm", config.head_dim, layer=number)
        yield from _norm(config, f"{path}.k_norm", config.head_dim, layer=number)


def _feed_forward(config: ModelConfig, path: str, inner: int, number: int) -> Iterator[Weight]:
    size, bias = config.hidden_size, config.mlp_bias
    if config.gated:
        yield from _linear(f"{path}.gate_proj", inner, size, bias, number)
    yield from _linear(f"{path}.up_proj", inner, size, bias, number)
    yield from _linear(f"{path}.down_proj", size, inner, bias, number)


def _state_space(config: ModelConfig, path: str, number: int) -> Iterator[Weight]:
    space, size = config.state_space, config.hidden_size
    assert space is not None
    mixer = f"{path}.mixer"
    yield from _norm(config, f"{path}.norm", layer=number)
    second = config.mixer == "mamba2"
    mixed = space.inner + 2 * space.groups * space.state if second else space.inner
    into = space.inner + mixed + (space.heads if second else 0)
    yield from _linear(f"{mixer}.in_proj", into, size, space.bias, number)
    yield from _linear(f"{mixer}.out_proj", size, space.inner, space.bias, number)
    shapes: dict[str, tuple[int, ...]] = {"conv1d.weight": (mixed, 1, space.width)}
    if space.conv_bias:
        shapes["conv1d.bias"] = (mixed,)
    if second:
        shapes |= dict.fromkeys(("dt_bias", "A_log", "D"), (space.heads,))
        shapes["norm.weight"] = (space.inner,)
    else:
        yield from _linear(
            f"{mixer}.x_proj", space.rank + 2 * space.state, space.inner, False, number
        )
        yield from _linear(f"{mixer}.dt_proj", space.inner, space.rank, True, number)
        shapes |= {"A_log": (space.inner, space.state), "D": (space.inner,)}
    for name, shape in shapes.items():
        yield Weight(f"{mixer}.{name}", shape, "other", number)


def _head(config: ModelConfig, head: Head) -> Iterator[Weight]:
    size, transform = config.hidden_size, config.transforms.get(head)
    if transform:
        yield from _linear("transform.dense", size, size, config.transform_bias)
        if "norm" in transform:
            yield from _norm(config, "transform.norm")
    rows = output_rows(config, head)
    if head in ("causal", "masked", "seq2seq"):
        output = _linear("lm_head", rows, size, config.head_bias)
        tied = is_tied(config, head)
        yield from (w for w in output if not (tied and w.kind == "linear"))
    elif rows:
        bias = head == "token-classification" or config.score_bias
        yield from _linear("score", rows, size, bias)
