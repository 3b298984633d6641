"""Qwen2-MoE (Yang et al. 2024, section 2.2.2): experts, and a shared one that all tokens take.

Some layers may be plain: those in ``mlp_only_layers``, and with ``decoder_sparse_step`` n all but
every n-th. Their training adds the balancing loss only where ``output_router_logits`` is set; here
it is always added, with the factor ``router_aux_loss_coef``.
"""

from collections.abc import Sequence
from typing import Any

from hone.models.config import Experts, ModelConfig
from hone.models.families.mixtral import expert_counts
from hone.models.families.qwen2 import window_fields, written_window
from hone.models.family import Family
from hone.models.fields import (
    decoder_fields,
    field_of,
    sliding_layers,
    whole_rotary,
    written_decoder,
)
from hone.models.keys import Keys
from hone.models.positions import Rotary, write_rope
from hone.models.rules import EachExpert, Rule

DEFAULTS = {
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.001,
}


def read(keys: Keys) -> ModelConfig:
    """``Qwen2MoeConfig``."""
    keys = keys.filled(
        **DEFAULTS,
        num_key_value_heads=16,
        max_window_layers=28,
        num_experts=60,
        num_experts_per_tok=4,
        moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632,
    )
    shared = keys.whole("shared_expert_intermediate_size")
    if shared < 1:
        raise keys.wrong("shared_expert_intermediate_size", shared, "1 or more")
    return ModelConfig(
        **decoder_fields(keys),
        **_window_fields(keys),
        positions=whole_rotary(keys),
        attention_bias=keys.flag("qkv_bias", True),
        experts=read_experts(keys, "num_experts", shared),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """``Qwen2MoeConfig``."""
    positions = field_of(config, "positions", Rotary)
    experts = field_of(config, "experts", Experts)
    values = written_decoder(config) | written_window(config)
    if config.head_dim * config.num_attention_heads == config.hidden_size:
        values.pop("head_dim")  # the class has no such key, but takes one
    return (
        values
        | written_experts(config, experts)
        | {
            "num_experts": experts.count,
            "shared_expert_intermediate_size": experts.shared_size,
            "qkv_bias": config.attention_bias,
            "rope_parameters": write_rope(positions),
        }
    )


def _window_fields(keys: Keys) -> dict[str, Any]:
    # Unlike in a Qwen2, without a list it is every other layer below max_window_layers.
    below = keys.whole("max_window_layers") if keys.flag("use_sliding_window") else 0
    sliding = sliding_layers(keys, lambda layer: layer % 2 == 0 and layer < below)
    kinds = ("full_attention", "sliding_attention")
    types = [kinds[layer in sliding] for layer in range(keys.whole("num_hidden_layers", least=1))]
    return window_fields(Keys(keys.values | {"layer_types": types}, keys.where))


def read_experts(keys: Keys, count_key: str, shared_size: int = 0) -> Experts:
    """The experts of a Qwen, whose number has the key ``count_key``."""
    count, per_token = expert_counts(keys, count_key)
    return Experts(
        count,
        per_token,
        size=keys.whole("moe_intermediate_size", least=1),
        shared_size=shared_size,
        normalise=keys.flag("norm_topk_prob"),
        layers=_expert_layers(keys),
        balance=keys.number("router_aux_loss_coef"),
    )


def written_experts(config: ModelConfig, experts: Experts) -> dict[str, Any]:
    """The keys of :func:`read_experts`, without the number of experts."""
    values = {
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.size,
        "norm_topk_prob": experts.normalise,
        "router_aux_loss_coef": experts.balance,
    }
    # What was read says the same layers in its own way.
    said = {name: config.extra.get(name) for name in ("decoder_sparse_step", "mlp_only_layers")}
    sizes = {"num_hidden_layers": config.num_hidden_layers}
    if config.extra and _expert_layers(Keys(said | sizes, "config.json")) == experts.layers:
        return values | {name: value for name, value in said.items() if value is not None}
    plain = [n for n in range(config.num_hidden_layers) if not config.has_experts(n)]
    return values | {"decoder_sparse_step": 1, "mlp_only_layers": plain}


def _expert_layers(keys: Keys) -> tuple[int, ...] | None:
    """Which layers have experts; None for all."""
    every, plain = keys.whole("decoder_sparse_step", 1), keys.get("mlp_only_layers", [])
    if every < 1:
        raise keys.wrong("decoder_sparse_step", every, "1 or more")
    if not isinstance(plain, list) or not all(type(layer) is int for layer in plain):
        raise keys.wrong("mlp_only_layers", plain, "a list of the numbers of layers")
    count = keys.whole("num_hidden_layers", least=1)
    layers = tuple(n for n in range(count) if (n + 1) % every == 0 and n not in plain)
    return None if len(layers) == count else layers


def rules(config: ModelConfig) -> Sequence[Rule | EachExpert]:
    """Files hold each expert by itself."""
    layer, experts = "model.layers.*.mlp", "model.layers.*.mlp.experts.*"
    return (
        EachExpert(f"{experts}.gate_proj.weight", f"{layer}.gate_up_proj", part=0, parts=2),
        EachExpert(f"{experts}.up_proj.weight", f"{layer}.gate_up_proj", part=1, parts=2),
        EachExpert(f"{experts}.down_proj.weight", f"{layer}.down_proj"),
    )


FAMILY = Family(
    "qwen2_moe",
    "Qwen2Moe",
    read,
    write,
    rules,
    features=("experts", "shared expert", "biases of q, k, v", "sliding window"),
)
