"""Mamba-2 (Dao and Gu 2024): state space duality, heads, and a gated norm."""

import math
from typing import Any

from hone.core.errors import CheckpointError
from hone.models.config import ModelConfig, StateSpace
from hone.models.families.mamba import rules, state_space_fields, written_state_space
from hone.models.family import Family
from hone.models.fields import field_of
from hone.models.keys import Keys


def read(keys: Keys) -> ModelConfig:
    """``Mamba2Config``."""
    size = keys.whole("hidden_size", least=1)
    heads = keys.whole("num_heads", 128, least=1)
    channels = keys.whole("head_dim", 64, least=1)
    inner = int(keys.positive("expand", 2) * size)
    groups = keys.whole("n_groups", 8, least=1)
    if heads * channels != inner or heads % groups:
        raise CheckpointError(
            f"{keys.where}: num_heads {heads} of head_dim {channels} in {groups} n_groups do not "
            f"make expand · hidden_size = {inner} channels."
        )
    space = StateSpace(
        inner=inner,
        state=keys.whole("state_size", 128, least=1),
        width=keys.whole("conv_kernel", 4, least=1),
        heads=heads,
        groups=groups,
        conv_bias=keys.flag("use_conv_bias", True),
        bias=keys.flag("use_bias", False),
        step_limits=_step_limits(keys),
    )
    return ModelConfig(
        **state_space_fields(keys, size, inner),
        mixer="mamba2",
        state_space=space,
        tie_word_embeddings=keys.flag("tie_word_embeddings", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """``Mamba2Config``."""
    space = field_of(config, "state_space", StateSpace)
    if config.mixer != "mamba2":
        raise CheckpointError(f"The mixer is {config.mixer!r}; Mamba-2's is 'mamba2'.")
    return written_state_space(config) | {
        "num_heads": space.heads,
        "head_dim": space.inner // space.heads,
        "n_groups": space.groups,
        "time_step_limit": [_in_json(limit) for limit in space.step_limits],
        "tie_word_embeddings": config.tie_word_embeddings,
    }


# JSON has no infinity; transformers writes it so.
_INFINITY = {"__float__": "Infinity"}


def _step_limits(keys: Keys) -> tuple[float, float]:
    limits = keys.get("time_step_limit", [0.0, math.inf])
    pair = limits if isinstance(limits, list | tuple) else ()
    numbers = [math.inf if limit == _INFINITY else limit for limit in pair]
    known = len(numbers) == 2 and all(type(number) in (int, float) for number in numbers)
    if not known or not 0 <= numbers[0] <= numbers[1]:
        raise keys.wrong("time_step_limit", limits, "two numbers of 0 or more, the smaller first")
    return float(numbers[0]), float(numbers[1])


def _in_json(value: float) -> Any:
    return _INFINITY if value == math.inf else value


FAMILY = Family(
    "mamba2",
    "Mamba2",
    read,
    write,
    rules,
    prefix="backbone",
    features=("state space duality", "grouped B and C", "constant memory per sequence"),
)
