"""What a family of checkpoints is: how its ``config.json`` reads, and how its weights are named.

A file of ``hone.models.families`` defines one :class:`Family`. Inside hone all families share the
names of ``hone.models.stack`` and ``heads`` (those of a Llama); rules say where the files differ.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from hone.core.config import nearest
from hone.core.errors import CheckpointError
from hone.models.config import Activation, Head, ModelConfig
from hone.models.positions import Rotary, read_rope

# The release whose files we match; readers use it only to tell old layouts from new ones.
TRANSFORMERS_VERSION = "5.23.0"

_SUFFIXES: dict[Head, str] = {
    "causal": "ForCausalLM",
    "masked": "ForMaskedLM",
    "seq2seq": "ForConditionalGeneration",
    "classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "embedding": "Model",
}
_OTHER_SUFFIXES: dict[str, Head] = {"LMHeadModel": "causal", "ForPreTraining": "masked"}
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "tanh": "tanh",
}
_PROBLEMS = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
_REQUIRED: Any = object()

T = TypeVar("T")


class Keys:
    """A ``config.json`` that is read key by key; what is wrong is said with the file's name."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = dict(values), where

    def filled(self, **defaults: Any) -> "Keys":
        """The same with the family's own ``defaults`` for keys that are missing; null stays."""
        return Keys(defaults | self.values, self.where)

    def renamed(self, **other_names: str) -> "Keys":
        """The same with the value of another name where ``name=other`` is missing."""
        found = {name: self.values[x] for name, x in other_names.items() if x in self.values}
        return Keys(found | self.values, self.where)

    def get(self, name: str, default: Any = _REQUIRED) -> Any:
        """The value, or ``default`` where it is missing or null.

        Raises:
            CheckpointError: there is neither.
        """
        value = self.values.get(name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise CheckpointError(f"{self.where}: the key {name!r} is missing.")
        return default

    def whole(self, name: str, default: Any = _REQUIRED) -> int:
        """A whole number."""
        return self._of(name, default, int, "a whole number")

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """A number."""
        return self._of(name, default, (int, float), "a number")

    def positive(self, name: str, default: Any = _REQUIRED) -> float:
        """A finite number above zero."""
        value = self.number(name, default)
        if not 0 < value < float("inf"):
            raise self.wrong(name, value, "a positive number")
        return value

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def activation(self, name: str, default: str) -> Activation:
        """An activation by one of Hugging Face's names."""
        value = self.get(name, default)
        if value not in _ACTIVATIONS:
            raise self.wrong(name, value, "one of " + ", ".join(_ACTIVATIONS))
        return _ACTIVATIONS[value]

    def layers(self, name: str, kind: str) -> tuple[int, ...] | None:
        """Which layers a list such as ``layer_types`` calls ``kind``; None without the list."""
        types = self.get(name, None)
        if types is None:
            return None
        if not isinstance(types, list) or not all(isinstance(entry, str) for entry in types):
            raise self.wrong(name, types, "a list of layer kinds")
        return tuple(layer for layer, entry in enumerate(types) if entry == kind)

    def wrong(self, name: str, value: Any, expected: str) -> CheckpointError:
        """The error for a value that cannot be."""
        return CheckpointError(f"{self.where}: {name} is {value!r}; expected {expected}.")

    def _of(self, name: str, default: Any, kind: Any, expected: str) -> Any:
        value = self.get(name, default)
        if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
            raise self.wrong(name, value, expected)
        return value


Split = Callable[[Tensor, ModelConfig], Sequence[Tensor]]
Join = Callable[[Sequence[Tensor], ModelConfig], Tensor]


@dataclass(frozen=True, slots=True)
class Rule:
    """A module (or a weight) of the files and what it is called here.

    ``*`` stands for a number, the same on both sides; what follows the path (``.weight``,
    ``.bias``, ``.weight_scale``) is kept.

    Attributes:
        theirs: the path in the files.
        ours: the path here, or several that the files hold as one.
        split: their tensor to ours, in the order of ``ours``; None for the same.
        join: the way back.
    """

    theirs: str
    ours: str | tuple[str, ...]
    split: Split | None = None
    join: Join | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """``ours`` as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass(frozen=True, slots=True)
class EachExpert:
    """A weight that the files hold once per expert and that is one stacked tensor here.

    Attributes:
        theirs: with two ``*``: the layer and the expert.
        ours: with one ``*``; the first dimension counts experts.
        part: which of ``parts`` equal blocks of the second dimension it fills.
        parts: how many there are.
    """

    theirs: str
    ours: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Family:
    """How the checkpoints of one ``model_type`` are read and written.

    Attributes:
        model_type: as in ``config.json``; also the file's name.
        class_name: what transformers' class names begin with.
        read: the content of ``config.json`` to a configuration.
        write: the keys of ``config.json`` that say what ``read`` reads.
        rules: where weights have other names or another layout; the first that matches counts.
        prefix: what precedes the body's weights in the files, except in files of a bare body.
        head: the usual one, where ``config.json`` names no architecture.
        heads: class names that are not made of ``class_name`` and the usual suffix.
        ignored: regular expressions of weights that are computed, or not needed here.
        carried: names of weights that transformers' class for a configuration has and no layer here
            reads; they go from the files that are read to those that are written.
        old_names: regular expressions and what replaces them in names that are not known as such:
            those of older files.
        features: what is special, for people.
    """

    model_type: str
    class_name: str
    read: Callable[[Keys], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig], Sequence[Rule | EachExpert]] = lambda _: ()
    prefix: str = "model"
    head: Head = "causal"
    heads: Mapping[Head, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = (r"rotary_emb\.inv_freq$",)
    carried: Callable[[ModelConfig], Sequence[str]] = lambda _: ()
    old_names: tuple[tuple[str, str], ...] = ()
    features: tuple[str, ...] = ()

    def architecture(self, head: Head) -> str:
        """The name of transformers' class for a model of this family with ``head``."""
        return self.heads.get(head, self.class_name + _SUFFIXES[head])

    def head_of(self, keys: Keys) -> Head:
        """The head that the files hold, by ``architectures``."""
        names = keys.get("architectures", None)
        if not names:
            return self.head
        name = str(names[0])
        for head, own in self.heads.items():
            if name == own:
                return head
        for head, suffix in _SUFFIXES.items():
            if name.endswith(suffix) and suffix != "Model":
                return head
        for suffix, head in _OTHER_SUFFIXES.items():
            if name.endswith(suffix):
                return head
        if name.endswith("Model"):
            return "embedding"
        raise keys.wrong("architectures", name, "a name that ends in one of " + _known_suffixes())


def _known_suffixes() -> str:
    return ", ".join([*_SUFFIXES.values(), *_OTHER_SUFFIXES])


def common_fields(keys: Keys) -> dict[str, Any]:
    """The fields of a configuration that every family writes in the same way."""
    eos = keys.get("eos_token_id", None)
    fields: dict[str, Any] = {
        "vocab_size": keys.whole("vocab_size"),
        "initializer_range": keys.number("initializer_range", 0.02),
        "bos_token_id": keys.whole("bos_token_id", None),
        "eos_token_id": tuple(eos) if isinstance(eos, list) else eos,
        "pad_token_id": keys.whole("pad_token_id", None),
        "decoder_start_token_id": keys.whole("decoder_start_token_id", None),
        "forced_bos_token_id": keys.whole("forced_bos_token_id", None),
        "forced_eos_token_id": keys.whole("forced_eos_token_id", None),
        "dtype": _dtype_name(keys),
        "quantization_config": keys.get("quantization_config", None),
    }
    labels = keys.get("id2label", None)
    if labels is not None:
        fields["labels"] = _labels(keys, labels)
    elif keys.get("num_labels", None) is not None:
        fields["labels"] = tuple(f"LABEL_{n}" for n in range(keys.whole("num_labels")))
    problem = keys.get("problem_type", None)
    if problem is not None:
        if problem not in _PROBLEMS:
            raise keys.wrong("problem_type", problem, "one of " + ", ".join(_PROBLEMS))
        fields["problem"] = _PROBLEMS[problem]
    elif len(fields.get("labels", (0, 0))) == 1:
        fields["problem"] = "regression"
    return fields


def decoder_fields(keys: Keys) -> dict[str, Any]:
    """:func:`common_fields` and the sizes of a decoder, in the names that most families use."""
    return common_fields(keys) | {
        "hidden_size": keys.whole("hidden_size"),
        "intermediate_size": keys.whole("intermediate_size"),
        "num_hidden_layers": keys.whole("num_hidden_layers"),
        "num_attention_heads": keys.whole("num_attention_heads"),
        "num_key_value_heads": keys.whole("num_key_value_heads", 0),
        "head_dim": keys.whole("head_dim", 0),
        "max_position_embeddings": keys.whole("max_position_embeddings", 2048),
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
    count = keys.whole("num_hidden_layers")
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


def written_activation(config: ModelConfig, usual: str = "gelu_pytorch_tanh") -> str:
    """Hugging Face's name of the activation; the one that was read, or else the family's ``usual``
    one, where that is the same.
    """
    names = ("hidden_activation", "hidden_act", "activation_function")
    found = next((config.extra[name] for name in names if config.extra.get(name)), None)
    return activation_name(config.activation, str(found), usual)


def activation_name(activation: str, *preferred: str) -> str:
    """Hugging Face's name of ``activation``: the first of ``preferred`` that means the same."""
    for name in (*preferred, "gelu_pytorch_tanh"):
        if _ACTIVATIONS.get(name) == activation:
            return name
    return activation


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


# Layouts that several families share.


def split_rows(*parts: Callable[[ModelConfig], int]) -> Split:
    """Their tensor holds ours behind one another; ``parts`` say how many rows each has."""

    def split(tensor: Tensor, config: ModelConfig) -> Sequence[Tensor]:
        sizes = [part(config) for part in parts]
        if tensor.shape[0] != sum(sizes):
            return [tensor] * len(sizes)  # of the wrong shape, which is reported by name
        return tensor.split(sizes)

    return split


def join_rows(tensors: Sequence[Tensor], config: ModelConfig) -> Tensor:
    """The inverse of :func:`split_rows`."""
    return torch.cat(tuple(tensors))


def split_heads(tensor: Tensor, config: ModelConfig) -> Sequence[Tensor]:
    """Their rows are a query, a key and a value of each head in turn (GPT-NeoX, BLOOM)."""
    qkv = tensor.unflatten(0, (config.num_attention_heads, 3, config.head_dim))
    return [part.flatten(0, 1) for part in qkv.unbind(1)]


def join_heads(tensors: Sequence[Tensor], config: ModelConfig) -> Tensor:
    """The inverse of :func:`split_heads`."""
    by_head = [part.unflatten(0, (config.num_attention_heads, -1)) for part in tensors]
    return torch.stack(by_head, dim=1).flatten(0, 2)


def query_rows(config: ModelConfig) -> int:
    """Rows of the product that makes queries."""
    return config.num_attention_heads * config.head_dim


def key_rows(config: ModelConfig) -> int:
    """Rows of the products that make keys, and values."""
    return config.num_key_value_heads * config.head_dim


def ffn_rows(config: ModelConfig) -> int:
    """Rows of the feed-forward layer."""
    return config.intermediate_size


@cache
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.escape(path).replace(r"\*", r"(\d+)") + r"(\..+)?$")


def match(path: str, name: str) -> tuple[tuple[str, ...], str] | None:
    """The numbers in ``name`` and what follows ``path`` in it; None when it begins otherwise."""
    found = _pattern(path).match(name)
    if found is None:
        return None
    *numbers, rest = found.groups()
    return tuple(numbers), rest or ""


def fill(path: str, numbers: Iterable[str]) -> str:
    """``path`` with its stars replaced."""
    for number in numbers:
        path = path.replace("*", number, 1)
    return path


def unknown_family(model_type: Any, known: Iterable[str], where: str) -> CheckpointError:
    """The error for a ``model_type`` that there is no family file for."""
    known = sorted(known)
    hint = nearest(str(model_type), known)
    return CheckpointError(
        f"{where}: model_type is {model_type!r}, an architecture that hone does not read. {hint}"
    )
