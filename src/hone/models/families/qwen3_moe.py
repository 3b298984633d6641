"""Qwen3-MoE (Yang et al. 2025, section 2): a Qwen3 with many small experts and none that is shared.

About the layers and the balancing loss see ``qwen2_moe``.
"""

from typing import Any

from hone.models.config import Experts, ModelConfig
from hone.models.families.qwen2_moe import DEFAULTS, read_experts, rules, written_experts
from hone.models.family import Family
from hone.models.fields import decoder_fields, field_of, whole_rotary, written_decoder
from hone.models.keys import Keys
from hone.models.positions import Rotary, write_rope


def read(keys: Keys) -> ModelConfig:
    """``Qwen3MoeConfig``; older files say ``num_experts``."""
    keys = keys.renamed(num_local_experts="num_experts").filled(
        **DEFAULTS,
        num_key_value_heads=4,
        num_local_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
    )
    bias = keys.flag("attention_bias", False)
    windowed = keys.flag("use_sliding_window")
    return ModelConfig(
        **decoder_fields(keys),
        sliding_window=keys.whole("sliding_window", None, least=1) if windowed else None,
        positions=whole_rotary(keys),
        attention_bias=bias,
        output_bias=bias,
        qk_norm=True,
        experts=read_experts(keys, "num_local_experts"),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """``Qwen3MoeConfig``; older programs read ``num_experts``."""
    positions = field_of(config, "positions", Rotary)
    experts = field_of(config, "experts", Experts)
    return (
        written_decoder(config)
        | written_experts(config, experts)
        | {
            "num_experts": experts.count,
            "num_local_experts": experts.count,
            "use_sliding_window": config.sliding_window is not None,
            "sliding_window": config.sliding_window,
            "attention_bias": config.attention_bias,
            "rope_parameters": write_rope(positions),
        }
    )


FAMILY = Family(
    "qwen3_moe",
    "Qwen3Moe",
    read,
    write,
    rules,
    features=("experts", "QK-norm", "sliding window"),
)
