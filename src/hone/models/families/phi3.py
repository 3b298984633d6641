"""Phi-3 and Phi-4-mini (Abdin et al. 2024): fused products, LongRoPE, partial rotation."""

from collections.abc import Sequence
from typing import Any

from hone.models.config import ModelConfig
from hone.models.family import Family
from hone.models.fields import decoder_fields, field_of, written_decoder
from hone.models.keys import Keys
from hone.models.positions import LongScaling, Rotary, read_rope, write_rope
from hone.models.rules import Rule, ffn_rows, join_rows, key_rows, query_rows, split_rows

_CONTEXT = "original_max_position_embeddings"


def read(keys: Keys) -> ModelConfig:
    """``Phi3Config``."""
    keys = keys.filled(
        rms_norm_eps=1e-5,
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=32000,
        pad_token_id=32000,
    )
    rotary = read_rope(keys.values, keys.where)
    if not isinstance(rotary.scaling, LongScaling | None):
        raise keys.wrong("rope_type", rotary.scaling.kind, "default or longrope")
    return ModelConfig(
        **decoder_fields(keys),
        positions=rotary,
        sliding_window=keys.whole("sliding_window", None, least=1),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """``Phi3Config``."""
    rotary = field_of(config, "positions", Rotary)
    values = written_decoder(config) | {
        "sliding_window": config.sliding_window,
        "rope_parameters": write_rope(rotary) | {"partial_rotary_factor": rotary.fraction},
    }
    if isinstance(rotary.scaling, LongScaling):
        values[_CONTEXT] = rotary.scaling.original_max_position_embeddings
    else:
        values[_CONTEXT] = config.extra.get(_CONTEXT, config.max_position_embeddings)
    if config.head_dim * config.num_attention_heads == config.hidden_size:
        values.pop("head_dim")  # the class has no such key, but takes one
    return values


def rules(config: ModelConfig) -> Sequence[Rule]:
    """One product makes queries, keys and values, and one makes the gate and what it gates."""
    layer = "model.layers.*."
    attention, mlp = layer + "self_attn.", layer + "mlp."
    return (
        Rule(
            attention + "qkv_proj",
            tuple(attention + name for name in ("q_proj", "k_proj", "v_proj")),
            split_rows(query_rows, key_rows, key_rows),
            join_rows,
        ),
        Rule(
            mlp + "gate_up_proj",
            tuple(mlp + name for name in ("gate_proj", "up_proj")),
            split_rows(ffn_rows, ffn_rows),
            join_rows,
        ),
    )


FAMILY = Family(
    "phi3",
    "Phi3",
    read,
    write,
    rules,
    features=("fused products", "LongRoPE", "partial rotary", "sliding window"),
)
