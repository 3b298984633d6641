"""What a LoRA adapter is: its settings, and ``adapter_config.json`` as peft reads and writes it."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hone.core.errors import CheckpointError, ConfigError
from hone.models.config import Head

ALL_LINEAR = "all-linear"

TASKS: dict[Head, str] = {
    "causal": "CAUSAL_LM",
    "seq2seq": "SEQ_2_SEQ_LM",
    "classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "embedding": "FEATURE_EXTRACTION",
}
# Ways to begin that leave the base as it is; others (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ) change
# it, so that the adapter's file alone does not say what the model computes.
_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")
# What peft notes and no computation reads.
_NOTES = {
    "auto_mapping",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Low-rank updates (Hu et al. 2021), and what is trained beside them.

    Layers have the names that Hugging Face's modules of the family have, such as ``q_proj`` or
    ``model.layers.0.mlp.up_proj`` (GPT-2: ``c_attn``).

    Attributes:
        r: the rank.
        alpha: the update is scaled by alpha / r.
        dropout: the share of the inputs that the update does not see in training.
        targets: the layers: "all-linear" for every linear layer but the head, a regular expression
            for whole names, or a sequence of names or their last parts.
        exclude: layers to leave out, in the same way.
        rslora: scale by alpha / √r (Kalajdzievski 2023).
        dora: learn the magnitude of each output apart from its direction (Liu et al. 2024).
        modules_to_save: modules that are trained whole, by the last parts of their names.
        token_ids: tokens whose embeddings are trained, of the embedding that reads texts or, in a
            mapping, by the names of embeddings.
        layers: the numbers of the layers to adapt, where ``targets`` is a sequence; None for all.
        layers_pattern: what the list of layers is called.
        rank_pattern, alpha_pattern: other ranks and alphas, by regular expressions for the ends of
            names.
        init: True for A uniform and B zero, as published; "gaussian" for A normal with 1/r.
        base: the model that the adapter is for: a directory or a name on the hub.
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | Sequence[str] = ALL_LINEAR
    exclude: str | Sequence[str] = ()
    rslora: bool = False
    dora: bool = False
    modules_to_save: Sequence[str] = ()
    token_ids: Sequence[int] | Mapping[str, Sequence[int]] = ()
    layers: Sequence[int] | None = None
    layers_pattern: str | Sequence[str] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    init: bool | str = True
    base: str | None = None

    def __post_init__(self) -> None:
        for rank in (self.r, *self.rank_pattern.values()):
            if rank < 1:
                raise ConfigError(f"The rank r of an adapter is {rank}; choose 1 or more.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(
                f"An adapter's dropout is {self.dropout:g}; choose from 0 to below 1."
            )
        for text in (self.targets, self.exclude, *self.rank_pattern, *self.alpha_pattern):
            if isinstance(text, str) and text != ALL_LINEAR:
                try:
                    re.compile(text)
                except re.error as error:
                    raise ConfigError(
                        f"{text!r} is no regular expression ({error}); to name layers one by one, "
                        "give a list."
                    ) from error

    def wants(self, name: str) -> bool:
        """Whether the layer ``name`` is adapted, as peft decides it; not for "all-linear"."""
        if _named(self.exclude, name) or saves(self.modules_to_save, name):
            return False
        if not _named(self.targets, name):
            return False
        if self.layers is None or isinstance(self.targets, str):
            return True
        patterns = self.layers_pattern
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        # The first number counts: a later one is that of an expert.
        for pattern in patterns or [r"[^.]*"]:
            found = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name)
            if found is not None:
                return int(found[1]) in self.layers
        return False

    def rank(self, name: str) -> int:
        """The rank at the layer ``name``."""
        return int(_by_pattern(self.rank_pattern, name, self.r))

    def scale(self, name: str) -> float:
        """What the update of the layer ``name`` is scaled by."""
        alpha, rank = _by_pattern(self.alpha_pattern, name, self.alpha), self.rank(name)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def saves(modules: Sequence[str], name: str) -> bool:
    """Whether one of ``modules``, which are the last parts of names, is or holds the module."""
    return any(f".{module}." in f".{name}." for module in modules)


def _named(names: str | Sequence[str], name: str) -> bool:
    if isinstance(names, str):
        return bool(names) and re.fullmatch(names, name) is not None
    return any(name == each or name.endswith(f".{each}") for each in names)


def _by_pattern(patterns: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return otherwise


def write_lora_config(
    config: LoraConfig, head: Head, targets: Sequence[str], turned: bool
) -> dict[str, Any]:
    """The content of ``adapter_config.json``.

    Args:
        head: of the model, which says the task.
        targets: the names of the layers that are adapted.
        turned: the family's files hold weights as inputs by outputs.
    """
    layers = None if config.layers is None else list(config.layers)
    tokens = config.token_ids
    if isinstance(tokens, Mapping):
        tokens = {name: list(ids) for name, ids in tokens.items()}
    alpha = int(config.alpha) if config.alpha == int(config.alpha) else config.alpha
    by_name = config.targets == ALL_LINEAR
    return {
        "alpha_pattern": dict(config.alpha_pattern),
        "base_model_name_or_path": config.base,
        "bias": "none",
        "exclude_modules": _list_or_text(config.exclude) or None,
        "fan_in_fan_out": turned,
        "inference_mode": True,
        "init_lora_weights": config.init,
        "layers_pattern": _list_or_text(config.layers_pattern) or None,
        "layers_to_transform": layers,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": list(config.modules_to_save) or None,
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": dict(config.rank_pattern),
        "target_modules": sorted(targets) if by_name else _list_or_text(config.targets),
        "task_type": TASKS.get(head),
        "trainable_token_indices": (tokens if isinstance(tokens, dict) else list(tokens)) or None,
        "use_dora": config.dora,
        "use_rslora": config.rslora,
    }


def _list_or_text(names: str | Sequence[str]) -> str | list[str]:
    return names if isinstance(names, str) else list(names)


def read_lora_config(values: Any, where: str) -> LoraConfig:
    """The settings that the content of an ``adapter_config.json`` describes.

    Args:
        where: the file's name for error messages.

    Raises:
        CheckpointError: no LoRA adapter, a wrong value, or a key that is not read here and would
            change what is computed.
    """
    if not isinstance(values, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {type(values).__name__}.")
    keys = _Keys(values, where)
    kind = keys.take("peft_type", None, lambda _: True, "")
    if kind != "LORA":
        raise CheckpointError(f"{where}: peft_type is {kind!r}; hone reads adapters of 'LORA'.")
    text_or_names = "a name or a list of names"
    targets = keys.take("target_modules", [], _is_names, text_or_names)
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        targets = ALL_LINEAR
    layers = keys.take("layers_to_transform", None, _is_numbers, "a number or a list of numbers")
    tokens = keys.take("trainable_token_indices", [], _is_tokens, "ids of tokens, or a table")
    keys.take("bias", "none", lambda found: found == "none", "'none': hone trains no bias")
    try:
        config = LoraConfig(
            r=keys.take("r", 8, _is_count, "a whole number of 1 or more"),
            alpha=float(keys.take("lora_alpha", 8, _is_number, "a number")),
            dropout=float(keys.take("lora_dropout", 0.0, _is_number, "a number")),
            targets=targets,
            exclude=keys.take("exclude_modules", [], _is_names, text_or_names),
            rslora=keys.take("use_rslora", False, _is_flag, "true or false"),
            dora=keys.take("use_dora", False, _is_flag, "true or false"),
            modules_to_save=keys.take("modules_to_save", [], _is_list, "a list of names"),
            token_ids=tokens,
            layers=[layers] if isinstance(layers, int) else layers,
            layers_pattern=keys.take("layers_pattern", [], _is_names, text_or_names),
            rank_pattern=keys.take("rank_pattern", {}, _is_table_of(_is_count), "ranks by name"),
            alpha_pattern=keys.take(
                "alpha_pattern", {}, _is_table_of(_is_number), "alphas by name"
            ),
            init=keys.take(
                "init_lora_weights",
                True,
                lambda found: found in _INITS,
                "one that leaves the base model as it is: "
                + ", ".join(str(init) for init in _INITS),
            ),
            base=keys.take("base_model_name_or_path", None, _is_text, "a name or a path") or None,
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error
    keys.refuse_others()
    return config


class _Keys:
    """A table that is read key by key."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self._values, self._where = values, where
        self._left = set(values) - _NOTES

    def take(self, name: str, otherwise: Any, right: Callable[[Any], bool], expected: str) -> Any:
        """The value; ``otherwise`` where it is missing or null."""
        self._left.discard(name)
        value = self._values.get(name)
        if value is None:
            return otherwise
        if not right(value):
            raise CheckpointError(f"{self._where}: {name} is {value!r}; expected {expected}.")
        return value

    def refuse_others(self) -> None:
        """Keys that nothing took may not say anything."""
        for name in sorted(self._left):
            if self._values[name]:
                raise CheckpointError(
                    f"{self._where}: {name} is {self._values[name]!r}, which hone does not know, "
                    "and which may change what the adapter computes."
                )


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _is_names(value: Any) -> bool:
    return isinstance(value, str) or _is_list(value)


def _is_numbers(value: Any) -> bool:
    entries = value if isinstance(value, list) else [value]
    return all(type(entry) is int and entry >= 0 for entry in entries)


def _is_tokens(value: Any) -> bool:
    lists = list(value.values()) if isinstance(value, dict) else [value]
    return all(isinstance(each, list) and _is_numbers(each) for each in lists)


def _is_table_of(right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(right(each) for each in value.values())
