"""Gemma 2 (Gemma Team 2024): norms around each layer, capped scores, every other layer local."""

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
from hone.models.keys import Keys, written_activation
from hone.models.positions import Rotary, write_rope

DEFAULTS = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}


def read(keys: Keys) -> ModelConfig:
    """``Gemma2Config``."""
    keys = keys.filled(
        **DEFAULTS,
        max_position_embeddings=8192,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    )
    if keys.flag("use_bidirectional_attention", False):
        raise keys.wrong("use_bidirectional_attention", True, "false")
    return ModelConfig(
        **gemma_fields(keys),
        positions=whole_rotary(keys),
        sliding_window=keys.whole("sliding_window", least=1),
        sliding_layers=sliding_layers(keys, lambda layer: layer % 2 == 0),
        attention_softcap=keys.positive("attn_logit_softcapping", None),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """``Gemma2Config``."""
    positions = field_of(config, "positions", Rotary)
    return written_gemma(config) | {
        "sliding_window": config.sliding_window,
        "attn_logit_softcapping": config.attention_softcap,
        "rope_parameters": write_rope(positions),
    }


def gemma_fields(keys: Keys) -> dict[str, Any]:
    """What the generations of Gemma have in common."""
    fields = decoder_fields(keys)
    scalar = keys.number("query_pre_attn_scalar")
    if scalar <= 0:
        raise keys.wrong("query_pre_attn_scalar", scalar, "a positive number")
    bias = keys.flag("attention_bias", False)
    return fields | {
        # The first files call it hidden_act as well, where it may name the exact GELU: not meant.
        "activation": keys.activation("hidden_activation", "gelu_pytorch_tanh"),
        "attention_scale": None if scalar == fields["head_dim"] else scalar**-0.5,
        "attention_bias": bias,
        "output_bias": bias,
        "block": "sandwich",
        "norm": "rms+1",
        "embedding_scale": fields["hidden_size"] ** 0.5,
        "logit_softcap": keys.positive("final_logit_softcapping", None),
    }


def written_gemma(config: ModelConfig) -> dict[str, Any]:
    """The keys of :func:`gemma_fields`, and the kinds of layers."""
    scale, values = config.attention_scale, written_decoder(config)
    values.pop("hidden_act")
    return values | {
        "hidden_activation": written_activation(config),
        "query_pre_attn_scalar": config.head_dim if scale is None else _scalar(scale),
        "attention_bias": config.attention_bias,
        "final_logit_softcapping": config.logit_softcap,
        "layer_types": written_layer_types(config),
    }


def _scalar(scale: float) -> float:
    scalar = scale**-2
    return round(scalar) if round(scalar) ** -0.5 == scale else scalar


FAMILY = Family(
    "gemma2",
    "Gemma2",
    read,
    write,
    features=("sandwich norms", "soft caps", "alternating sliding window", "GeGLU"),
)
