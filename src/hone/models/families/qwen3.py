"""Qwen3 (Yang et al. 2025): queries and keys are normalised per head, heads have a size apart."""

from typing import Any

from hone.models.config import ModelConfig
from hone.models.families.qwen2 import DEFAULTS, window_fields, written_window
from hone.models.family import Family
from hone.models.fields import decoder_fields, field_of, whole_rotary, written_decoder
from hone.models.keys import Keys
from hone.models.positions import Rotary, write_rope


def read(keys: Keys) -> ModelConfig:
    """``Qwen3Config``."""
    keys = keys.filled(**DEFAULTS, head_dim=128)
    bias = keys.flag("attention_bias", False)
    return ModelConfig(
        **decoder_fields(keys),
        **window_fields(keys),
        positions=whole_rotary(keys),
        attention_bias=bias,
        output_bias=bias,
        qk_norm=True,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """``Qwen3Config``."""
    positions = field_of(config, "positions", Rotary)
    return (
        written_decoder(config)
        | written_window(config)
        | {
            "attention_bias": config.attention_bias,
            "rope_parameters": write_rope(positions),
        }
    )


FAMILY = Family("qwen3", "Qwen3", read, write, features=("QK-norm", "sliding window", "YaRN"))
