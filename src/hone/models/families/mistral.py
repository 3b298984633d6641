"""Mistral 7B (Jiang et al. 2023): every layer may have a sliding window (section 2)."""

from typing import Any

from hone.models.config import ModelConfig
from hone.models.family import Family
from hone.models.fields import decoder_fields, field_of, whole_rotary, written_decoder
from hone.models.keys import Keys
from hone.models.positions import Rotary, write_rope


def read(keys: Keys) -> ModelConfig:
    """``MistralConfig``."""
    keys = keys.filled(
        num_key_value_heads=8,
        max_position_embeddings=131072,
        sliding_window=4096,
        bos_token_id=1,
        eos_token_id=2,
    )
    return ModelConfig(
        **decoder_fields(keys),
        positions=whole_rotary(keys),
        sliding_window=keys.whole("sliding_window", None, least=1),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """``MistralConfig``."""
    positions = field_of(config, "positions", Rotary)
    return written_decoder(config) | {
        "sliding_window": config.sliding_window,
        "rope_parameters": write_rope(positions),
    }


FAMILY = Family("mistral", "Mistral", read, write, features=("sliding window",))
