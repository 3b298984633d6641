"""Models of one's own: any combination of choices, in files that only hone reads.

``config.json`` holds the fields of :class:`ModelConfig` by their own names, as far as they differ
from its defaults; weights have the names that they have in hone.
"""

from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hone.core.errors import CheckpointError
from hone.core.nearest import nearest
from hone.models.config import ModelConfig
from hone.models.family import Family
from hone.models.fields import special_tokens
from hone.models.keys import Keys
from hone.models.positions import POSITIONS, Rotary
from hone.models.rotary import SCALINGS

# Keys of the file that are no fields, or are read by whoever reads every family's.
_NOT_FIELDS = {"architectures", "transformers_version"}
_NOT_WRITTEN = {"extra", "model_type", "head", "dtype"}


def read(keys: Keys) -> ModelConfig:
    """The fields as they stand in the file."""
    tokens = special_tokens(keys, keys.whole("vocab_size", least=1))
    known = {name: value for name, value in tokens.items() if name in keys.values}
    return _config(keys.values | known, keys.where)


def _config(values: dict[str, Any], where: str) -> ModelConfig:
    values = {key: value for key, value in values.items() if key not in _NOT_FIELDS}
    known = {field.name for field in fields(ModelConfig)} - {"extra"}
    for key in values:
        if key not in known:
            raise CheckpointError(f"{where}: unknown key {key!r}. {nearest(key, known)}")
    for key in ("positions", "local_positions"):
        if values.get(key) is not None:
            values[key] = _positions(values[key], key, where)
    if values.get("encoder") is not None:
        if not isinstance(values["encoder"], dict):
            raise CheckpointError(
                f"{where}: encoder is {values['encoder']!r}; expected an object with its own keys."
            )
        values["encoder"] = _config(values["encoder"], where)
    try:
        return _checker().validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "config"
        raise CheckpointError(
            f"{where}: {name} is {first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}."
        ) from error


@cache
def _checker() -> TypeAdapter[ModelConfig]:
    return TypeAdapter(ModelConfig)


def _positions(value: Any, key: str, where: str) -> Any:
    if not isinstance(value, dict) or value.get("name") not in list(POSITIONS):
        raise CheckpointError(
            f"{where}: {key} is {value!r}; expected an object whose name is one of "
            f"{', '.join(POSITIONS)}."
        )
    value = dict(value)
    kind = POSITIONS[value.pop("name")]
    try:
        scaling = value.get("scaling")
        if kind is Rotary and scaling is not None:
            scaling = {k: tuple(v) if isinstance(v, list) else v for k, v in scaling.items()}
            value["scaling"] = SCALINGS[scaling.pop("kind")](**scaling)
        return kind(**value)
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{where}: {key} cannot be read: {error}.") from error


def write(config: ModelConfig) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    values: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        default = field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        if field.name not in _NOT_WRITTEN and value != default:
            values[field.name] = _plain(value)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, ModelConfig):
        return write(value)
    if is_dataclass(value) and not isinstance(value, type):
        plain = asdict(value)
        if name := getattr(value, "name", None):
            plain["name"] = name
        scaling = getattr(value, "scaling", None)
        if scaling is not None:
            plain["scaling"]["kind"] = scaling.kind
        return plain
    return list(value) if isinstance(value, tuple) else value


FAMILY = Family("hone", "Hone", read, write, features=("any combination of choices",))
