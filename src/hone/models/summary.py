"""What a configuration says about its model before any weight is read."""

import re
from dataclasses import dataclass
from typing import Any

from hone.models.config import ModelConfig
from hone.models.families import find_family
from hone.models.heads import make_model
from hone.models.meta import without_memory
from hone.models.positions import Rotary
from hone.models.weights import four_bit_layers, lies_turned, quantized_layers

BYTES = {"float32": 4, "bfloat16": 2}
# Which part of a model a weight belongs to, by its name; the first that matches counts.
_PARTS = {
    "normalisation": r"norm(\.|\d)|norm$|\.norm\.",
    "embedding": r"embed|shared\.weight|relative_bias",
    "experts": r"\.mlp\.(gate_up_proj|down_proj)$|shared_expert|\.mlp\.gate\.weight",
    "attention": r"self_attn|cross_attn",
    "feed-forward": r"\.mlp\.",
    "state space": r"\.mixer\.",
}
_HEAD = "head"
_POSITIONS = {
    "rotary": "rotary positions",
    "learned": "learned positions",
    "sinusoidal": "sinusoidal positions",
    "alibi": "ALiBi",
    "buckets": "buckets of relative positions",
    "none": "no positions",
}
_NORMS = {"rms": "RMS", "rms+1": "RMS, scaled by one plus the weight", "layer": "layer norm"}
_BLOCKS = {
    "pre": "before each layer",
    "post": "after each layer",
    "sandwich": "before and after each layer",
    "parallel": "before attention and feed-forward, side by side",
}


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """The figures of one architecture.

    Attributes:
        shape: names and values for people, in order.
        parameters: weights per part; tied ones count once, as embedding.
        active: weights that a token uses; fewer than all where there are experts.
        weight_bytes: of all weights per dtype; int8, where files can hold it, is the linear layers
            with one scale per output, nf4 those with double quantization, the rest in bfloat16.
        cache_bytes: that one more token of context takes, per dtype.
        state_bytes: of a sequence's state of constant size, in float32.
        features: what the architecture uses.
    """

    model_type: str
    architecture: str
    shape: dict[str, str]
    parameters: dict[str, int]
    active: int
    weight_bytes: dict[str, int]
    cache_bytes: dict[str, int]
    state_bytes: int
    features: tuple[str, ...]

    @property
    def total(self) -> int:
        """All weights."""
        return sum(self.parameters.values())

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "model_type": self.model_type,
            "architecture": self.architecture,
            "shape": self.shape,
            "parameters": self.parameters | {"total": self.total, "active": self.active},
            "weight_bytes": self.weight_bytes,
            "kv_bytes_per_token": self.cache_bytes,
            "state_bytes": self.state_bytes,
            "features": list(self.features),
        }


def summarise(config: ModelConfig) -> ModelSummary:
    """Count the weights of ``config`` and what it takes to run it; nothing is allocated."""
    family = find_family(config.model_type)
    with without_memory():
        model = make_model(config)
    parameters = dict.fromkeys((*_PARTS, _HEAD), 0)
    unused = 0
    for name, weight in model.named_parameters():
        part = _part(name)
        parameters[part] += weight.numel()
        if config.experts is not None and weight.ndim == 3 and part == "experts":
            idle = config.experts.count - config.experts.per_token
            unused += weight.numel() // config.experts.count * idle
    total = sum(parameters.values())
    weight_bytes = {"float32": 4 * total, "bfloat16": 2 * total}
    if not lies_turned(family, model):
        layers = quantized_layers(model).values()
        # A scale of two bytes per output.
        spared = sum(layer.weight.numel() - 2 * layer.out_features for layer in layers)
        weight_bytes["int8"] = 2 * total - spared
    weight_bytes["nf4"] = 2 * total - sum(
        2 * layer.weight.numel() - _nf4_bytes(layer.weight.numel())
        for layer in four_bit_layers(model).values()
    )
    numbers = _cached_numbers(config)
    return ModelSummary(
        model_type=config.model_type,
        architecture=family.architecture(config.head),
        shape=_shape(config),
        parameters={part: count for part, count in parameters.items() if count},
        active=total - unused,
        weight_bytes=weight_bytes,
        cache_bytes={name: size * numbers for name, size in BYTES.items()},
        state_bytes=4 * _state_numbers(config),
        features=features(config),
    )


def _nf4_bytes(weights: int) -> int:
    """Of a layer with NF4 weights and double quantization; see ``hone.quant.nf4``."""
    blocks = -(weights // -64)
    levels_and_offset = 257
    return -(weights // -2) + blocks + 4 * (-(blocks // -256) + levels_and_offset)


def _part(name: str) -> str:
    for part, pattern in _PARTS.items():
        if re.search(pattern, name):
            return part
    return _HEAD


def _cached_numbers(config: ModelConfig) -> int:
    if config.mixer != "attention" or not config.causal:
        return 0
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def _state_numbers(config: ModelConfig) -> int:
    space = config.state_space
    if config.mixer == "attention" or space is None:
        return 0
    groups = 2 * space.groups * space.state if config.mixer == "mamba2" else 0
    per_layer = space.inner * space.state + (space.inner + groups) * (space.width - 1)
    return config.num_hidden_layers * per_layer


def _shape(config: ModelConfig) -> dict[str, str]:
    shape = {
        "layers": str(config.num_hidden_layers),
        "hidden size": f"{config.hidden_size:,}",
    }
    if config.encoder is not None:
        encoder = config.encoder
        shape["layers"] = f"{encoder.num_hidden_layers} encoder, {config.num_hidden_layers} decoder"
    if config.mixer == "attention":
        shape["heads"] = (
            f"{config.num_attention_heads} query, {config.num_key_value_heads} key/value "
            f"of {config.head_dim}"
        )
        sliding = sum(config.is_sliding(layer) for layer in range(config.num_hidden_layers))
        if config.sliding_window is not None and sliding:
            where = "" if sliding == config.num_hidden_layers else f" in {sliding} layers"
            shape["window"] = f"{config.sliding_window:,} tokens{where}; the cache keeps all"
        gate = "gated " if config.gated else ""
        if not all(config.has_experts(layer) for layer in range(config.num_hidden_layers)):
            shape["feed-forward"] = f"{config.intermediate_size:,}, {gate}{config.activation}"
    space = config.state_space
    if space is not None:
        shape["state space"] = f"{space.inner:,} channels, {space.state} numbers each"
        if space.heads:
            shape["state space"] += f", {space.heads} heads"
    experts = config.experts
    if experts is not None:
        shape["experts"] = f"{experts.count} of {experts.size:,}, {experts.per_token} per token"
        if experts.shared_size:
            shape["experts"] += f", a shared one of {experts.shared_size:,}"
    shape |= {
        "vocabulary": f"{config.vocab_size:,}",
        "context": "any length" if config.extrapolates else f"{config.max_position_embeddings:,}",
        "positions": _positions(config),
        "norm": f"{_NORMS[config.norm]}, {_BLOCKS[config.block]}",
    }
    if config.head in ("classification", "token-classification"):
        shape["labels"] = ", ".join(config.labels)
    return shape


def _positions(config: ModelConfig) -> str:
    if config.mixer != "attention":
        return "in the recurrence"
    positions = config.positions
    if not isinstance(positions, Rotary):
        return positions.name
    text = f"rotary, base {positions.theta:,.0f}"
    if positions.fraction < 1:
        text += f", {positions.fraction:.0%} of each head"
    if positions.scaling is not None:
        text += f", {positions.scaling.kind} scaling"
    return text


def features(config: ModelConfig) -> tuple[str, ...]:
    """The choices of ``config`` by the names that papers give them."""
    attention = config.mixer == "attention"
    grouped = config.num_key_value_heads
    kinds = {
        "multi-head attention": attention and grouped == config.num_attention_heads,
        "multi-query attention": attention and grouped == 1 < config.num_attention_heads,
        "grouped-query attention": attention and 1 < grouped < config.num_attention_heads,
        "bidirectional attention": attention and not config.causal,
        "cross-attention": config.encoder is not None,
        "sliding window": config.sliding_window is not None,
        f"{_POSITIONS[config.positions.name]}": attention,
        "partial rotary": isinstance(config.positions, Rotary) and config.positions.fraction < 1,
        "QK-norm": config.qk_norm,
        "attention soft cap": config.attention_softcap is not None,
        "logit soft cap": config.logit_softcap is not None,
        "parallel residual": config.block == "parallel",
        "sandwich norm": config.block == "sandwich",
        "post-norm": config.block == "post",
        "mixture of experts": config.experts is not None,
        "shared expert": config.experts is not None and config.experts.shared_size > 0,
        "Mamba": config.mixer == "mamba",
        "Mamba-2": config.mixer == "mamba2",
        "biases": config.attention_bias,
        "tied embeddings": config.tie_word_embeddings
        and config.head in ("causal", "masked", "seq2seq"),
    }
    return tuple(name for name, used in kinds.items() if used)
