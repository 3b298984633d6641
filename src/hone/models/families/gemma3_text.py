"""Gemma 3's text models (Gemma Team 2025): five local layers to a global one, QK-norm.

Its text encoder (EmbeddingGemma) is the same without causality.
"""

from typing import Any

from hone.models.config import ModelConfig
from hone.models.families.gemma2 import DEFAULTS, gemma_fields, written_gemma
from hone.models.family import Family
from hone.models.fields import field_of, sliding_layers, whole_rotary
from hone.models.keys import Keys
from hone.models.positions import Rotary, write_rope


def read(keys: Keys) -> ModelConfig:
    """``Gemma3TextConfig``."""
    # Files made of a multimodal model's text_config leave out whatever is as in the class.
    keys = keys.filled(
        **DEFAULTS,
        vocab_size=262208,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        max_position_embeddings=131072,
        sliding_window_pattern=6,
    )
    both = keys.flag("use_bidirectional_attention", False)
    window, pattern = keys.whole("sliding_window", least=1), keys.whole("sliding_window_pattern")
    if pattern < 1:
        raise keys.wrong("sliding_window_pattern", pattern, "a whole number of 1 or more")
    return ModelConfig(
        **gemma_fields(keys),
        causal=not both,
        positions=whole_rotary(keys, 1_000_000.0, "full_attention"),
        local_positions=whole_rotary(keys, 10_000.0, "sliding_attention"),
        # With both sides the file says how many are seen in all.
        sliding_window=window // 2 + 1 if both else window,
        sliding_layers=sliding_layers(keys, lambda layer: (layer + 1) % pattern != 0),
        qk_norm=True,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """``Gemma3TextConfig``."""
    window = field_of(config, "sliding_window", int)
    local = field_of(config, "local_positions", Rotary)
    positions = field_of(config, "positions", Rotary)
    return written_gemma(config) | {
        "sliding_window": window if config.causal else (window - 1) * 2,
        "use_bidirectional_attention": not config.causal,
        "rope_parameters": {
            "full_attention": write_rope(positions),
            "sliding_attention": write_rope(local),
        },
    }


FAMILY = Family(
    "gemma3_text",
    "Gemma3",
    read,
    write,
    heads={
        "embedding": "Gemma3TextModel",
        "classification": "Gemma3TextForSequenceClassification",
    },
    features=("QK-norm", "sandwich norms", "local and global layers", "two rotary bases", "GeGLU"),
)
