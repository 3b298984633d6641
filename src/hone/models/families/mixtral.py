"""Mixtral (Jiang et al. 2024): a Mistral whose feed-forward layers are all mixtures of experts.

The weights of a token's experts always sum to one (section 2.1). Their training adds the balancing
loss only where ``output_router_logits`` is set; here it is always added, with the factor
``router_aux_loss_coef``. ``router_jitter_noise`` is kept and not applied.
"""

from collections.abc import Sequence
from typing import Any

from hone.models.config import Experts, ModelConfig
from hone.models.family import Family
from hone.models.fields import decoder_fields, field_of, whole_rotary, written_decoder
from hone.models.keys import Keys
from hone.models.positions import Rotary, write_rope
from hone.models.rules import EachExpert, Rule

_THETA = 1e6


def read(keys: Keys) -> ModelConfig:
    """``MixtralConfig``."""
    keys = keys.renamed(num_local_experts="num_experts").filled(
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    count, per_token = expert_counts(keys, "num_local_experts")
    return ModelConfig(
        **decoder_fields(keys),
        positions=whole_rotary(keys, _THETA),
        sliding_window=keys.whole("sliding_window", None, least=1),
        experts=Experts(
            count,
            per_token,
            size=keys.whole("intermediate_size", least=1),
            balance=keys.number("router_aux_loss_coef", 0.001),
        ),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """``MixtralConfig``."""
    positions = field_of(config, "positions", Rotary)
    experts = field_of(config, "experts", Experts)
    values = written_decoder(config) | {
        "sliding_window": config.sliding_window,
        "rope_parameters": write_rope(positions),
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "router_aux_loss_coef": experts.balance,
    }
    if config.head_dim * config.num_attention_heads == config.hidden_size:
        values.pop("head_dim")  # null, or what the file said
    return values


def expert_counts(keys: Keys, name: str) -> tuple[int, int]:
    """The number of experts, whose key is ``name``, and how many of them a token takes.

    Raises:
        CheckpointError: there are none, or a token would take none or more than there are.
    """
    count, per_token = keys.whole(name), keys.whole("num_experts_per_tok")
    if count < 1:
        raise keys.wrong(name, count, "1 or more")
    if not 1 <= per_token <= count:
        raise keys.wrong("num_experts_per_tok", per_token, f"1 to {count}, the {name}")
    return count, per_token


def rules(config: ModelConfig) -> Sequence[Rule | EachExpert]:
    """Files hold each expert by itself; w1 is the gate, w3 goes up and w2 down."""
    experts = "model.layers.*.block_sparse_moe.experts.*"
    return (
        Rule("model.layers.*.block_sparse_moe.gate", "model.layers.*.mlp.gate"),
        EachExpert(f"{experts}.w1.weight", "model.layers.*.mlp.gate_up_proj", part=0, parts=2),
        EachExpert(f"{experts}.w3.weight", "model.layers.*.mlp.gate_up_proj", part=1, parts=2),
        EachExpert(f"{experts}.w2.weight", "model.layers.*.mlp.down_proj"),
    )


FAMILY = Family("mixtral", "Mixtral", read, write, rules, features=("experts", "sliding window"))
