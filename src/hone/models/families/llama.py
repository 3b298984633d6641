"""Llama (Touvron et al. 2023): the decoder whose names and defaults the others are measured by."""

from typing import Any

from hone.models.config import ModelConfig
from hone.models.family import Family
from hone.models.fields import decoder_fields, field_of, whole_rotary, written_decoder
from hone.models.keys import Keys
from hone.models.positions import Rotary, write_rope


def read(keys: Keys) -> ModelConfig:
    """``LlamaConfig``."""
    bias = keys.flag("attention_bias", False)
    return ModelConfig(
        **decoder_fields(keys),
        positions=whole_rotary(keys),
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=keys.flag("mlp_bias", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """``LlamaConfig``."""
    positions = field_of(config, "positions", Rotary)
    return written_decoder(config) | {
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "pretraining_tp": 1,
        "rope_parameters": write_rope(positions),
    }


FAMILY = Family(
    "llama",
    "Llama",
    read,
    write,
    features=("RMSNorm", "SwiGLU", "grouped-query attention", "every rotary scaling"),
)
