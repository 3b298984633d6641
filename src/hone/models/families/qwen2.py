"""Qwen2 (Yang et al. 2024): biases of queries, keys and values; upper layers may have a window."""

from typing import Any

from hone.models.config import ModelConfig
from hone.models.family import Family
from hone.models.fields import (
    decoder_fields,
    field_of,
    sliding_layers,
    whole_rotary,
    written_decoder,
    written_layer_types,
)
from hone.models.keys import Keys
from hone.models.positions import Rotary, write_rope

DEFAULTS = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def read(keys: Keys) -> ModelConfig:
    """``Qwen2Config``."""
    keys = keys.filled(**DEFAULTS)
    return ModelConfig(
        **decoder_fields(keys),
        **window_fields(keys),
        positions=whole_rotary(keys),
        attention_bias=True,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """``Qwen2Config``."""
    positions = field_of(config, "positions", Rotary)
    values = written_decoder(config) | written_window(config)
    if config.head_dim * config.num_attention_heads == config.hidden_size:
        values.pop("head_dim")  # the class has no such key, but takes one
    return values | {"rope_parameters": write_rope(positions)}


def window_fields(keys: Keys) -> dict[str, Any]:
    """The sliding window of Qwen models, in layers from ``max_window_layers`` on."""
    window = (
        keys.whole("sliding_window", None, least=1) if keys.flag("use_sliding_window") else None
    )
    first = keys.whole("max_window_layers")
    layers = sliding_layers(keys, lambda layer: window is not None and layer >= first)
    if layers and window is None:
        raise keys.wrong("layer_types", "sliding_attention", "a sliding_window for it, or none")
    return {"sliding_window": window, "sliding_layers": layers if window is not None else None}


def written_window(config: ModelConfig) -> dict[str, Any]:
    """The keys of :func:`window_fields`."""
    types = written_layer_types(config)
    full = types.index("sliding_attention") if "sliding_attention" in types else len(types)
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "max_window_layers": config.extra.get("max_window_layers", full),
        "layer_types": types,
    }


FAMILY = Family(
    "qwen2", "Qwen2", read, write, features=("biases of q, k, v", "sliding window", "YaRN")
)
