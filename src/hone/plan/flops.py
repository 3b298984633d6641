"""Floating-point operations of a model: two for each weight that a token is multiplied with.

Kaplan et al. 2020, section 2.1: 2 per weight forwards and 4 backwards, of which 2 are the weights'
gradients and 2 the inputs'; a frozen weight needs only the latter (Hu et al. 2021, section 4.2).
Attention adds products of every query with the keys that it sees (Narayanan et al. 2021, appendix).
"""

from dataclasses import dataclass

from hone.models.config import ModelConfig
from hone.plan.trained import Numbers
from hone.plan.weights import Weight, is_tied, weights_of


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of one token.

    Attributes:
        forward: of a forward pass.
        backward: of a backward pass.
        again: of what is computed a second time for it.
    """

    forward: float
    backward: float
    again: float = 0.0

    @property
    def total(self) -> float:
        """All of a training step."""
        return self.forward + self.backward + self.again


def active_weights(config: ModelConfig, weights: list[Weight] | None = None) -> int:
    """Weights that a token is multiplied with: no embedding, and only the experts it takes."""
    found = sum(_used(config, weight) for weight in weights or weights_of(config))
    return round(found) + (config.vocab_size * config.hidden_size if is_tied(config) else 0)


def attention_flops(config: ModelConfig, length: float) -> float:
    """Forward operations of one token's attention in all layers of a stack, when it sees
    ``length`` keys: two products with each key, of every head.
    """
    if config.mixer != "attention":
        return _scan_flops(config)
    per_key = 4 * config.num_attention_heads * config.head_dim
    seen = 0.0
    for layer in range(config.num_hidden_layers):
        window = config.sliding_window if config.is_sliding(layer) else None
        seen += length if window is None else min(length, window)
    return per_key * seen


def training_flops(
    config: ModelConfig,
    numbers: Numbers,
    lengths: tuple[int, ...],
    source_lengths: tuple[int, ...],
    checkpointing: str,
) -> Flops:
    """Operations of one token of training, on average over a micro-batch.

    Args:
        checkpointing: whole blocks are computed again, or ("selective") attention only.
    """
    tokens = sum(lengths)
    seen = sum(n * (n + 1) / 2 if config.causal else n * n for n in lengths) / tokens
    attention = attention_flops(config, seen)
    share = 1.0  # source tokens for each of the decoder's
    if config.encoder is not None:
        share = sum(source_lengths) / tokens
        square = sum(n * n for n in source_lengths) / sum(source_lengths)
        attention += share * attention_flops(config.encoder, square)
        crossed = sum(n * m for n, m in zip(lengths, source_lengths, strict=True)) / tokens
        attention += attention_flops(config, crossed)
    forward, weights_back = 0.0, 0.0
    for weight in numbers.weights:
        used = _used(config, weight) * (share if _reads_sources(weight) else 1.0)
        forward += 2 * used
        weights_back += 2 * used * (weight.name in numbers.trained)
    if is_tied(config):
        head = config.vocab_size * config.hidden_size
        forward += 2 * head
        weights_back += 2 * head * numbers.trains_embedding
    adapters = sum(rows * columns for rows, columns in numbers.factors)
    products = forward
    forward += 2 * adapters + attention
    # Attention has two products forwards and four backwards (with one more where it recomputes).
    backward = products + weights_back + 4 * adapters + 2 * attention
    again = {"none": 0.0, "blocks": forward, "selective": attention}[checkpointing]
    return Flops(forward, backward, again)


def _used(config: ModelConfig, weight: Weight) -> float:
    if weight.kind == "linear":
        return float(weight.count)
    if weight.kind == "experts":
        assert config.experts is not None
        return weight.count * config.experts.per_token / config.experts.count
    return 0.0


def _reads_sources(weight: Weight) -> bool:
    parts = weight.name.split(".")
    return parts[1] == "encoder" or ("cross_attn" in parts and parts[-2] in ("k_proj", "v_proj"))


def _scan_flops(config: ModelConfig) -> float:
    """Updating and reading the state: six operations for each of its numbers (Gu and Dao 2023)."""
    space = config.state_space
    assert space is not None
    return 6.0 * space.inner * space.state * config.num_hidden_layers
