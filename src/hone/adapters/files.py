"""Adapters in peft's files: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hone.adapters.adapter import OUTPUT, Adapter, Base, StandIn, build, with_head
from hone.adapters.config import (
    ALL_LINEAR,
    TASKS,
    LoraConfig,
    read_lora_config,
    write_lora_config,
)
from hone.adapters.layers import LoraEmbedding, LoraLinear, TokenRows, float_linear
from hone.adapters.names import Layer, known_layer, owners, saved_tensors
from hone.adapters.switch import Adapters, adapters_of
from hone.core.errors import CheckpointError, ConfigError, DataError
from hone.core.files import atomic_dir, read_json, write_json
from hone.models import Head, Model, find_family
from hone.models.checkpoint import save_weights
from hone.models.config import Problem
from hone.models.weights import Place, known_name

CONFIG = "adapter_config.json"
# What peft's files leave out: without it nobody knows how many classes the head needs.
LABELS = "labels.json"
WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_EMBEDDING_A, _EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
_MAGNITUDE = ".lora_magnitude_vector"
_ROWS = ".token_adapter.trainable_tokens_delta"
_UPDATES = (_A, _B, _EMBEDDING_A, _EMBEDDING_B, _MAGNITUDE)
# The own weight of a layer with an update or trained tokens, which is there if it was resized.
_WRAPPED = (".token_adapter.base_layer.", ".base_layer.")
# What peft may write a second time, of modules whose embedding was resized.
_TWICE = (".modules_to_save.", ".original_module.")


def is_adapter(directory: str | Path) -> bool:
    """Whether ``directory`` holds an adapter."""
    return (Path(directory) / CONFIG).is_file()


def read_adapter_config(directory: str | Path) -> LoraConfig:
    """The settings of the adapter in ``directory``.

    Raises:
        CheckpointError: there is none, or none that is read here.
    """
    return read_lora_config(_values(directory), str(Path(directory) / CONFIG))


def read_head(directory: str | Path) -> Head | None:
    """The head that the adapter in ``directory`` is for; None where it does not say."""
    values = _values(directory)
    task = values.get("task_type") if isinstance(values, dict) else None
    return next((head for head, name in TASKS.items() if name == task), None)


def read_labels(directory: str | Path) -> tuple[tuple[str, ...], Problem] | None:
    """The classes that the adapter in ``directory`` tells, and of what kind; None where it tells
    none, or was not written here: peft's files do not say.

    Raises:
        CheckpointError: the file that says is damaged.
    """
    file = Path(directory) / LABELS
    if not file.is_file():
        return None
    try:
        values = read_json(file)
        problem = values["problem"]
        if problem not in get_args(Problem):
            raise KeyError("problem")
        return tuple(str(label) for label in values["labels"]), problem
    except (DataError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} does not name labels and a problem; write the adapter once more."
        ) from error


def _values(directory: str | Path) -> Any:
    file = Path(directory) / CONFIG
    if not file.is_file():
        raise CheckpointError(f"{directory} has no {CONFIG}, so it is no adapter.")
    try:
        return read_json(file)
    except DataError as error:
        raise CheckpointError(str(error)) from error


def save_adapter(model: Model, directory: str | Path, name: str | None = None) -> None:
    """Write an adapter as a directory that peft opens, whole or not at all.

    Args:
        name: the adapter; None for the one in use.

    Raises:
        ConfigError: there is no such adapter.
        CapacityError: the disk is full.
    """
    adapters = adapters_of(model)
    adapter = adapters.known(name)
    base = adapters.base
    tensors = {
        _PREFIX + key: tensor.cpu().contiguous()
        for key, tensor in _written(adapters, adapter).items()
    }
    turned = any(layer.turned for layer in base.layers.values())
    names = [layer.name for layer in adapter.layers]
    with atomic_dir(directory) as temporary:
        values = write_lora_config(adapter.config, base.config.head, names, turned)
        write_json(temporary / CONFIG, values)
        if base.config.head in ("classification", "token-classification"):
            labels = {"labels": list(model.config.labels), "problem": model.config.problem}
            write_json(temporary / LABELS, labels)
        save_weights(tensors, temporary / WEIGHTS)


def _written(adapters: Adapters, adapter: Adapter) -> dict[str, Tensor]:
    """The tensors of an adapter's file, by their names after the prefix."""
    base, config = adapters.base, adapters.base.config
    found: dict[str, Tensor] = {}
    for layer in adapter.layers:
        parts = [adapter.stand_ins[path] for path in layer.paths]
        for suffix, values in _parts(parts).items():
            joined = suffix in (_B, _MAGNITUDE) and not layer.embedding
            found[layer.name + suffix] = layer.join(values, config) if joined else values[0]
    own = {
        f"{path}.{key}": tensor.detach()
        for path, module in adapter.stand_ins.items()
        for key, tensor in module.named_parameters()
        if not isinstance(module, StandIn)
    }
    found |= {name: place.read(own, config) for name, place in adapter.saved.items()}
    for name, layer in base.layers.items():
        path = layer.paths[0]
        stand_in = adapter.stand_ins.get(path)
        tied = path == OUTPUT and base.tied
        if isinstance(stand_in, TokenRows) and not (tied and base.embedding in adapter.stand_ins):
            found[name + _ROWS] = stand_in.trainable_tokens_delta.detach()
        if path not in (base.embedding, OUTPUT):
            continue
        current = stand_in.base if isinstance(stand_in, StandIn) else stand_in
        if f"{name}.weight" not in found and (
            adapters.resized or current not in (None, base.modules[path])
        ):
            rows = isinstance(stand_in, TokenRows)
            mark = _WRAPPED[0] if rows else _WRAPPED[1] if isinstance(stand_in, StandIn) else "."
            weight = (current or base.modules[path]).weight
            assert isinstance(weight, Tensor)
            if not any(weight.data_ptr() == other.data_ptr() for other in found.values()):
                found[f"{name}{mark}weight"] = weight.detach()  # a tied weight once
    return found


def _parts(modules: list[nn.Module]) -> dict[str, list[Tensor]]:
    """The weights of one layer's updates, by what follows its name in files."""
    found: dict[str, list[Tensor]] = {}
    for module in modules:
        assert isinstance(module, LoraLinear | LoraEmbedding)
        if isinstance(module, LoraLinear):
            every = {_A: module.lora_A, _B: module.lora_B}
        else:
            every = {_EMBEDDING_A: module.lora_embedding_A, _EMBEDDING_B: module.lora_embedding_B}
        if module.lora_magnitude_vector is not None:
            every[_MAGNITUDE] = module.lora_magnitude_vector
        for suffix, tensor in every.items():
            found.setdefault(suffix, []).append(tensor.detach())
    return found


def load_adapter(
    model: Model, directory: str | Path, name: str = "default", trained: bool = False
) -> Adapter:
    """Read an adapter of peft's or of hone's, and put it to use.

    Embeddings that were given more tokens stand in for the model's while the adapter is in use.

    Args:
        name: of the adapter, for :func:`set_adapter`.
        trained: go on training it.

    Raises:
        CheckpointError: a missing, truncated or foreign file, or an adapter of another model; the
            message names the file and the weight.
        ConfigError: the name is taken.
    """
    directory = Path(directory)
    config = read_adapter_config(directory)
    tensors = _read(directory)
    adapters = adapters_of(model)
    if name in adapters.adapters:
        raise ConfigError(f"There is an adapter {name!r} already; choose another name.")
    try:
        adapter = _Reader(model, adapters.base, config, tensors, directory / WEIGHTS).adapter()
    except ConfigError as error:
        raise CheckpointError(f"{directory / CONFIG}: {error}") from error
    adapter.trained = trained
    for weight in adapter.weights():
        weight.requires_grad_(trained)
    adapters.adapters[name] = adapter
    adapters.use(name)
    return adapter


def _read(directory: Path) -> dict[str, Tensor]:
    file = directory / WEIGHTS
    if not file.is_file():
        if (directory / _PICKLE).is_file():
            raise CheckpointError(
                f"{directory} holds its weights as a pickle ({_PICKLE}), which can run code when "
                "it is read. If you trust it, load it with peft and save it again."
            )
        raise CheckpointError(f"{directory} has no {WEIGHTS}, so there are no weights.")
    try:
        with safe_open(file, framework="pt") as handle:
            return {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is truncated or no safetensors file ({error}); copy or save it again."
        ) from error


class _Reader:
    """Turns the tensors of a file into an adapter of a model."""

    def __init__(
        self, model: Model, base: Base, config: LoraConfig, tensors: dict[str, Tensor], file: Path
    ) -> None:
        self._model, self._base, self._file = model, base, file
        self._config = with_head(config, base)
        self._updates: dict[str, dict[str, Tensor]] = {}  # by layer
        self._rows: dict[str, Tensor] = {}
        self._whole: dict[str, Tensor] = {}  # by the tensor's name in files
        for key, tensor in tensors.items():
            self._sort(key, tensor)

    def _sort(self, key: str, tensor: Tensor) -> None:
        """Note where a tensor belongs."""
        if not key.startswith(_PREFIX):
            raise self._wrong(key, f"the name does not begin with {_PREFIX!r}")
        if not tensor.is_floating_point():
            raise self._wrong(key, f"it is {tensor.dtype}, not a float")
        name = key.removeprefix(_PREFIX)
        if name.endswith(_MAGNITUDE + ".weight"):
            name = name.removesuffix(".weight")
        for suffix in _UPDATES:
            if name.endswith(suffix):
                if self._is_unread(name.removesuffix(suffix)):
                    return
                layer = self._layer(key, name.removesuffix(suffix))
                self._updates.setdefault(layer.name, {})[suffix] = tensor
                return
        if name.endswith(_ROWS):
            self._rows[self._layer(key, name.removesuffix(_ROWS)).paths[0]] = tensor
            return
        if any(mark in name for mark in _TWICE):
            return
        plain = name
        for mark in _WRAPPED:
            plain = plain.replace(mark, ".")
        family = find_family(self._base.config.model_type)
        known = known_name(family, plain, self._base.tensors)
        if known is None:
            raise self._wrong(key, "this model has no place for it")
        if plain == name or not self._is_own(known, tensor):
            self._whole[known] = tensor

    def _is_unread(self, name: str) -> bool:
        """Whether transformers' model has the layer and no output comes from it."""
        config = self._base.config
        family = find_family(config.model_type)
        return known_name(family, f"{name}.weight", family.carried(config)) is not None

    def _layer(self, key: str, name: str) -> Layer:
        layer = known_layer(self._model, name, self._base.layers)
        if layer is None:
            raise self._wrong(key, f"this model has no layer {name!r}")
        return layer

    def _wrong(self, key: str, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._file}: the weight {key!r} cannot be used: {what}. The adapter is for "
            f"{self._config.base or 'another model'}."
        )

    def _is_own(self, name: str, tensor: Tensor) -> bool:
        """Whether the model has the same weight."""
        own = self._base.tensors[name].read(self._own(), self._base.config)
        return own.shape == tensor.shape and torch.equal(own, tensor.to(own))

    def _own(self) -> dict[str, Tensor]:
        return {
            f"{path}.{name}": tensor.detach()
            for path, module in self._base.modules.items()
            for name, tensor in module.named_parameters(recurse=False)
        }

    def adapter(self) -> Adapter:
        """The adapter, filled."""
        layers = [self._base.layers[name] for name in self._updates]
        self._check_complete()
        bases, saved = self._copies()
        config = replace(
            self._config,
            modules_to_save=sorted({name.rpartition(".")[0] for name in saved}),
        )
        adapter = build(self._base, config, layers, saved, 0, bases)
        for layer in layers:
            self._fill(adapter, layer, self._updates[layer.name])
        for path, rows in self._rows.items():
            stand_in = adapter.stand_ins.get(path)
            if not isinstance(stand_in, TokenRows):
                raise CheckpointError(f"{self._file}: {CONFIG} names no tokens for {path!r}.")
            self._copy(path + _ROWS, rows, stand_in.trainable_tokens_delta)
        wanted = {path for path, each in adapter.stand_ins.items() if isinstance(each, TokenRows)}
        if missing := wanted - self._rows.keys() - {OUTPUT}:
            raise CheckpointError(
                f"{self._file}: the trained tokens of {min(missing)!r} are missing."
            )
        own = {
            f"{path}.{key}": tensor.detach()
            for path, module in adapter.stand_ins.items()
            for key, tensor in module.named_parameters()
        }
        for name in saved:
            self._base.tensors[name].write(self._whole[name], own, self._base.config)
        return adapter

    def _check_complete(self) -> None:
        """Refuse a file without what its settings name."""
        if self._config.targets != ALL_LINEAR:
            for name in self._base.layers:
                if self._config.wants(name) and name not in self._updates:
                    raise CheckpointError(
                        f"{self._file}: there is no update of the layer {name!r}, which {CONFIG} "
                        "names."
                    )
        for name, found in self._updates.items():
            layer = self._base.layers[name]
            expected = {_EMBEDDING_A, _EMBEDDING_B} if layer.embedding else {_A, _B}
            expected |= {_MAGNITUDE} if self._config.dora else set()
            if found.keys() != expected:
                differing = min(found.keys() ^ expected)
                what = "missing" if differing in expected else "unexpected"
                raise CheckpointError(
                    f"{self._file}: the weight {_PREFIX + name + differing!r} is {what}."
                )

    def _copies(self) -> tuple[dict[str, nn.Module], dict[str, Place]]:
        """What takes the place of the model's own layers under updates, or has other numbers of
        tokens; and the tensors that are trained copies.
        """
        own, config = self._own(), self._base.config
        adapted = {path for name in self._updates for path in self._base.layers[name].paths}
        adapted |= self._rows.keys()
        listed, _ = saved_tensors(self._config.modules_to_save, self._base.tensors)
        bases: dict[str, nn.Module] = {}
        saved: dict[str, Place] = {}
        for name, tensor in self._whole.items():
            place = self._base.tensors[name]
            path, shape = owners(place)[0], place.read(own, config).shape
            tokens = path in (self._base.embedding, OUTPUT) and not self._base.paired
            if path not in adapted and (name in listed or not tokens):
                saved[name] = place
            if tensor.shape == shape and name in saved:
                continue
            if not tokens or tensor.shape[1:] != shape[1:]:
                what = f"its shape is {list(tensor.shape)} and the model's {list(shape)}"
                raise self._wrong(_PREFIX + name, what)
            bases[path] = self._with_weight(path, tensor)
        self._base.check_copies(saved)
        self._check_sizes(bases)
        return bases, saved

    def _with_weight(self, path: str, weight: Tensor) -> nn.Module:
        """An embedding or an output layer like the model's, with another number of tokens."""
        module = self._base.modules[path]
        assert isinstance(module, nn.Embedding | nn.Linear)
        weight = weight.to(module.weight)
        if isinstance(module, nn.Embedding):
            return nn.Embedding.from_pretrained(weight)
        if module.bias is not None and len(weight) != len(module.bias):
            raise self._wrong(path, "the output layer has a bias, which the file does not resize")
        return float_linear(weight, module.bias)

    def _check_sizes(self, bases: dict[str, nn.Module]) -> None:
        """See that the output layer has as many tokens as the embedding; tie it again."""
        embedding = bases.get(self._base.embedding)
        output = bases.get(OUTPUT, self._base.modules.get(OUTPUT))
        if not isinstance(embedding, nn.Embedding) or not isinstance(output, nn.Linear):
            return
        same = OUTPUT in bases and torch.equal(output.weight, embedding.weight)
        if self._base.tied and (same or OUTPUT not in bases):
            bases[OUTPUT] = float_linear(embedding.weight, output.bias)
            bases[OUTPUT].weight = embedding.weight
        elif len(output.weight) != len(embedding.weight):
            raise CheckpointError(
                f"{self._file}: the embedding has {len(embedding.weight)} tokens and the output "
                f"layer {len(output.weight)}; save the adapter with the output layer among its "
                "modules_to_save."
            )

    def _fill(self, adapter: Adapter, layer: Layer, found: Mapping[str, Tensor]) -> None:
        parts = _parts([adapter.stand_ins[path] for path in layer.paths])
        for suffix, tensor in found.items():
            key = layer.name + suffix
            targets = parts[suffix]
            if layer.embedding or suffix == _A:
                self._copy(key, tensor, targets[0])
                continue
            whole = torch.empty_like(layer.join(targets, self._base.config))
            self._copy(key, tensor, whole)
            layer.split(whole, targets, self._base.config)

    def _copy(self, key: str, tensor: Tensor, target: Tensor) -> None:
        if tensor.shape != target.shape:
            raise self._wrong(
                _PREFIX + key,
                f"its shape is {list(tensor.shape)}, and {CONFIG} and the model ask for "
                f"{list(target.shape)}",
            )
        with torch.no_grad():
            target.copy_(tensor)
