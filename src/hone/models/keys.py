"""Reading ``config.json`` key by key, and the names that its values have in other programs."""

from collections.abc import Mapping
from typing import Any

from hone.core.errors import CheckpointError
from hone.models.config import Activation, ModelConfig

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
