"""Mamba (Gu and Dao 2023): a selective state space in place of attention and feed-forward."""

from typing import Any

from hone.core.errors import CheckpointError
from hone.models.config import ModelConfig, StateSpace
from hone.models.family import Family
from hone.models.fields import common_fields, field_of, written_common
from hone.models.keys import Keys, written_activation
from hone.models.positions import NoPositions
from hone.models.rules import Rule

# What the family's files leave unsaid: no length is too long, this one is only announced.
CONTEXT = 2048


def read(keys: Keys) -> ModelConfig:
    """``MambaConfig``."""
    size = keys.whole("hidden_size", least=1)
    inner = keys.whole("intermediate_size", int(keys.positive("expand", 2) * size), least=1)
    rank = keys.get("time_step_rank", "auto")
    space = StateSpace(
        inner=inner,
        state=keys.whole("state_size", 16, least=1),
        width=keys.whole("conv_kernel", 4, least=1),
        rank=-(-size // 16) if rank == "auto" else keys.whole("time_step_rank", least=1),
        conv_bias=keys.flag("use_conv_bias", True),
        bias=keys.flag("use_bias", False),
    )
    return ModelConfig(
        **state_space_fields(keys, size, inner),
        mixer="mamba",
        state_space=space,
        tie_word_embeddings=keys.flag("tie_word_embeddings", True),
    )


def state_space_fields(keys: Keys, size: int, inner: int) -> dict[str, Any]:
    """The fields that Mamba and Mamba-2 read alike."""
    if keys.activation("hidden_act", "silu") != "silu":
        raise keys.wrong("hidden_act", keys.get("hidden_act"), "silu")
    return common_fields(keys) | {
        "hidden_size": size,
        "intermediate_size": inner,
        "num_hidden_layers": keys.whole("num_hidden_layers", least=1),
        "max_position_embeddings": keys.whole("max_position_embeddings", CONTEXT, least=1),
        "norm_eps": keys.positive("layer_norm_epsilon", 1e-5),
        "positions": NoPositions(),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """``MambaConfig``."""
    space = field_of(config, "state_space", StateSpace)
    if config.mixer != "mamba":
        raise CheckpointError(f"The mixer is {config.mixer!r}; Mamba's is 'mamba'.")
    return written_state_space(config) | {
        "intermediate_size": space.inner,
        "time_step_rank": space.rank,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def written_state_space(config: ModelConfig) -> dict[str, Any]:
    """The keys that Mamba and Mamba-2 write alike."""
    space = field_of(config, "state_space", StateSpace)
    return written_common(config) | {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "layer_norm_epsilon": config.norm_eps,
        "hidden_act": written_activation(config),
        "state_size": space.state,
        "conv_kernel": space.width,
        "expand": space.inner // config.hidden_size,
        "use_conv_bias": space.conv_bias,
        "use_bias": space.bias,
        "max_position_embeddings": config.max_position_embeddings,
    }


def rules(config: ModelConfig) -> tuple[Rule, ...]:
    """``backbone`` in place of ``model``."""
    return (
        Rule("backbone.embeddings", "model.embed_tokens"),
        Rule("backbone.layers.*", "model.layers.*"),
        Rule("backbone.norm_f", "model.norm"),
    )


FAMILY = Family(
    "mamba",
    "Mamba",
    read,
    write,
    rules,
    prefix="backbone",
    features=("selective scan", "constant memory per sequence"),
)
