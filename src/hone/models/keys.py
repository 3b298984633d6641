"""Reading ``config.json`` key by key, and the names that its values have in other programs."""

import sys
from collections.abc import Mapping
from typing import Any

from hone.core.errors import CheckpointError
from hone.models.config import LARGEST, Activation, ModelConfig

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
_REQUIRED: Any = object()
_LARGEST_FLOAT = sys.float_info.max


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

    def whole(self, name: str, default: Any = _REQUIRED, least: int = 0) -> int:
        """A whole number from ``least`` to what a tensor's size can be."""
        value = self.get(name, default)
        if value is default or (type(value) is int and least <= value <= LARGEST):
            return value
        raise self.wrong(name, value, f"a whole number from {least} to {LARGEST}")

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """A finite number."""
        value = self.get(name, default)
        if value is default or (type(value) in (int, float) and abs(value) <= _LARGEST_FLOAT):
            return value
        raise self.wrong(name, value, "a finite number")

    def positive(self, name: str, default: Any = _REQUIRED) -> float:
        """A finite number above zero."""
        value = self.number(name, default)
        if value is not default and value <= 0:
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
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise self.wrong(name, value, "one of " + ", ".join(_ACTIVATIONS))
        return _ACTIVATIONS[value]

    def names(self, name: str) -> list[str]:
        """A list of names; empty where the key is missing or null."""
        value = self.get(name, [])
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise self.wrong(name, value, "a list of names")
        return value

    def object(self, name: str) -> dict[str, Any] | None:
        """An object; None where the key is missing or null."""
        value = self.get(name, None)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, value, "an object")
        return value

    def token(self, name: str) -> int | None:
        """The id of a special token; None where there is none, for which some files say -1.

        It may lie beyond the vocabulary, as in small models with a family's usual ids: no text has
        such a token, and nothing looks it up. Where one is fed to a model, see :meth:`fed_token`.
        """
        value = self.get(name, None)
        if value is None or (type(value) is int and value == -1):
            return None
        if type(value) is not int or not 0 <= value <= LARGEST:
            raise self.wrong(name, value, "the id of a token: a whole number of 0 or more")
        return value

    def tokens(self, name: str) -> int | tuple[int, ...] | None:
        """The id of a special token, or a list of them; see :meth:`token`."""
        value = self.get(name, None)
        if not isinstance(value, list):
            return self.token(name)
        found = (Keys({name: entry}, self.where).token(name) for entry in value)
        return tuple(entry for entry in found if entry is not None)

    def fed_token(self, name: str, vocab_size: int) -> int | None:
        """The id of a token that models are given or made to say, so that it must be one."""
        value = self.token(name)
        if value is not None and value >= vocab_size:
            raise self.wrong(name, value, f"the id of a token, less than vocab_size {vocab_size}")
        return value

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
