"""Fields of a configuration that many families read and write alike."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from hone.core.errors import CheckpointError
from hone.models.config import ModelConfig
from hone.models.keys import Keys, written_activation
from hone.models.positions import Rotary, read_rope

_PROBLEMS = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
T = TypeVar("T")


def common_fields(keys: Keys) -> dict[str, Any]:
    """The fields of a configuration that every family writes in the same way."""
    size = keys.whole("vocab_size", least=1)
    fields: dict[str, Any] = {
        "vocab_size": size,
        "initializer_range": keys.positive("initializer_range", 0.02),
        **special_tokens(keys, size),
        "dtype": _dtype_name(keys),
        "quantization_config": keys.object("quantization_config"),
    }
    labels = keys.get("id2label", None)
    if labels is not None:
        fields["labels"] = _labels(keys, labels)
    elif keys.get("num_labels", None) is not None:
        fields["labels"] = tuple(f"LABEL_{n}" for n in range(keys.whole("num_labels", least=1)))
    problem = keys.get("problem_type", None)
    if problem is not None:
        if not isinstance(problem, str) or problem not in _PROBLEMS:
            raise keys.wrong("problem_type", problem, "one of " + ", ".join(_PROBLEMS))
        fields["problem"] = _PROBLEMS[problem]
    elif len(fields.get("labels", (0, 0))) == 1:
        fields["problem"] = "regression"
    return fields


def special_tokens(keys: Keys, vocab_size: int) -> dict[str, Any]:
    """The ids of special tokens.

    Of those beyond the vocabulary only the ones that a model is given, or made to say, are refused:
    they would crash it.
    """
    fed = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")
    return {
        "bos_token_id": keys.token("bos_token_id"),
        "eos_token_id": keys.tokens("eos_token_id"),
        "pad_token_id": keys.token("pad_token_id"),
    } | {name: keys.fed_token(name, vocab_size) for name in fed}


def decoder_fields(keys: Keys) -> dict[str, Any]:
    """:func:`common_fields` and the sizes of a decoder, in the names that most families use."""
    return common_fields(keys) | {
        "hidden_size": keys.whole("hidden_size", least=1),
        "intermediate_size": keys.whole("intermediate_size", least=1),
        "num_hidden_layers": keys.whole("num_hidden_layers", least=1),
        "num_attention_heads": keys.whole("num_attention_heads", least=1),
        "num_key_value_heads": keys.whole("num_key_value_heads", 0),
        "head_dim": keys.whole("head_dim", 0),
        "max_position_embeddings": keys.whole("max_position_embeddings", 2048, least=1),
        "norm_eps": keys.positive("rms_norm_eps", 1e-6),
        "activation": keys.activation("hidden_act", "silu"),
        "tie_word_embeddings": keys.flag("tie_word_embeddings", False),
    }


def whole_rotary(
    keys: Keys, theta_default: float = 10000.0, layer_type: str | None = None
) -> Rotary:
    """The rotary positions of a family that turns whole heads; see :func:`read_rope`.

    Such families pass over a ``partial_rotary_factor``, so it does not count here either.
    """
    return replace(read_rope(keys.values, keys.where, theta_default, layer_type), fraction=1.0)


_FULL, _SLIDING = "full_attention", "sliding_attention"


def sliding_layers(keys: Keys, default: Callable[[int], bool]) -> tuple[int, ...]:
    """Which layers have the sliding window, by ``layer_types``.

    Args:
        default: whether a layer has it, in files without that list.

    Raises:
        CheckpointError: the list is not one of full and sliding attention for every layer.
    """
    count = keys.whole("num_hidden_layers", least=1)
    types = keys.get("layer_types", None)
    if types is None:
        return tuple(layer for layer in range(count) if default(layer))
    known = isinstance(types, list) and set(map(str, types)) <= {_FULL, _SLIDING}
    if not known or len(types) != count:
        raise keys.wrong("layer_types", types, f"{_FULL} or {_SLIDING} for each of {count} layers")
    return tuple(layer for layer, kind in enumerate(types) if kind == _SLIDING)


def written_layer_types(config: ModelConfig) -> list[str]:
    """``layer_types`` for what :func:`sliding_layers` reads."""
    layers = range(config.num_hidden_layers)
    return [_SLIDING if config.is_sliding(layer) else _FULL for layer in layers]


def field_of(config: ModelConfig, name: str, kind: type[T]) -> T:
    """A field that files of a family cannot do without.

    Raises:
        CheckpointError: ``config`` has none, so that it cannot be written as that family.
    """
    value = getattr(config, name)
    if not isinstance(value, kind):
        raise CheckpointError(
            f"{name} is {value!r}; files of the family {config.model_type!r} hold a "
            f"{kind.__name__} there."
        )
    return value


def written_common(config: ModelConfig) -> dict[str, Any]:
    """The keys of :func:`common_fields`."""
    eos = config.eos_token_id
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "initializer_range": config.initializer_range,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": config.pad_token_id,
        "use_cache": True,
    }
    for name in ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"):
        if getattr(config, name) is not None:
            values[name] = getattr(config, name)
    if config.head in ("classification", "token-classification"):
        problem = {ours: theirs for theirs, ours in _PROBLEMS.items()}[config.problem]
        values["id2label"] = {str(n): label for n, label in enumerate(config.labels)}
        values["label2id"] = {label: n for n, label in enumerate(config.labels)}
        # Left out by them where the number of labels says it.
        implied = "regression" if len(config.labels) == 1 else "single_label"
        said = config.problem != implied or config.extra.get("problem_type") is not None
        values["problem_type"] = problem if config.head == "classification" and said else None
    if config.quantization_config is not None:
        values["quantization_config"] = config.quantization_config
    return values


def written_decoder(config: ModelConfig) -> dict[str, Any]:
    """The keys of :func:`decoder_fields`."""
    return written_common(config) | {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": written_activation(config),
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def _labels(keys: Keys, labels: Any) -> tuple[str, ...]:
    """The names of ``id2label`` in the order of their numbers."""
    numbers = [str(number) for number in range(len(labels))] if isinstance(labels, dict) else []
    if not numbers or {str(key) for key in labels} != set(numbers):
        raise keys.wrong("id2label", labels, "an object with a name for each number from 0")
    by_number = {str(key): str(label) for key, label in labels.items()}
    return tuple(by_number[number] for number in numbers)


def _dtype_name(keys: Keys) -> str:
    name = keys.get("dtype", None) or keys.get("torch_dtype", None) or "float32"
    name = str(name).removeprefix("torch.")
    if name not in ("float32", "bfloat16", "float16"):
        raise keys.wrong("dtype", name, "float32, bfloat16 or float16")
    return name
