"""Adapters on a model: added, switched, merged into its weights and taken out again.

An adapter is a set of layers that stand in the places of the model's own, which they share. To
switch is to put others there; without an adapter the model is as it was, to the last object.
"""

import warnings
from dataclasses import replace

import torch
from torch import nn

from hone.adapters.adapter import OUTPUT, Adapter, Base, StandIn, build, with_head
from hone.adapters.config import LoraConfig
from hone.adapters.layers import float_linear
from hone.core.errors import CheckpointError, ConfigError
from hone.core.nearest import nearest
from hone.kernels.lora import frozen_weight
from hone.models import Model, write_config

_ATTRIBUTE = "adapters"


class Adapters:
    """The adapters of one model.

    Attributes:
        base: the model's own layers.
        adapters: by name.
        active: the name of the one in use; None for none.
        merged: it is in the weights.
        resized: the model was given more tokens, which files of adapters then hold.
    """

    def __init__(self, model: Model) -> None:
        self.base = Base(model)
        self.adapters: dict[str, Adapter] = {}
        self.active: str | None = None
        self.merged = False
        self.resized = False
        self.was_trained = {name: weight.requires_grad for name, weight in model.named_parameters()}
        self._placed: dict[str, nn.Module] = {}
        self._model = model
        model.requires_grad_(False)

    def use(self, name: str | None) -> None:
        """See :func:`set_adapter`."""
        if name is not None:
            self.known(name)
        self._place({} if name is None else self.adapters[name].stand_ins)
        if self.merged:
            self._model.adjoin_weights()
        self.active, self.merged = name, False
        self._model.config = self.base.config
        if name is not None:
            adapter = self.adapters[name]
            self._model.config = adapter.model_config
            for weight in adapter.weights():
                weight.requires_grad_(adapter.trained)

    def known(self, name: str | None) -> Adapter:
        """The adapter ``name``, or the one in use."""
        name = self.active if name is None else name
        if name is None:
            raise ConfigError("No adapter is in use; name one of " + self._names() + ".")
        if name not in self.adapters:
            raise ConfigError(f"There is no adapter {name!r}. {nearest(name, list(self.adapters))}")
        return self.adapters[name]

    def _names(self) -> str:
        return ", ".join(map(repr, self.adapters)) or "none"

    def merge(self) -> None:
        """See :func:`merge`."""
        adapter = self.known(None)
        if self.merged:
            raise ConfigError(f"The adapter {self.active!r} is merged already.")
        base, config = self.base, adapter.model_config
        dtype = self._model.dtype
        places = {
            path: module.merged(dtype) if isinstance(module, StandIn) else module
            for path, module in adapter.stand_ins.items()
        }
        quantized = {path: module for path, module in base.modules.items() if _quantized(module)}
        if quantized:
            for path, module in quantized.items():
                if path not in places:
                    weight_FE = frozen_weight(module, dtype)
                    places[path] = float_linear(weight_FE, module.bias)  # type: ignore[arg-type]
            extra = {key: x for key, x in config.extra.items() if key != "quantization_config"}
            config = replace(config, quantization_config=None, extra=extra)
        if base.tied:
            untied = self._untied(places)
            if untied:
                config = replace(config, tie_word_embeddings=False)
                written = write_config(config).get("tie_word_embeddings")
                if written is not False:
                    raise CheckpointError(
                        f"The adapter changes the embedding or the output layer alone, and files "
                        f"of {config.model_type!r} hold one weight for both; it cannot be merged."
                    )
        if quantized:
            warnings.warn(
                f"The base is quantized: its {len(quantized)} layers were dequantized to "
                f"{str(dtype).removeprefix('torch.')} to merge the adapter.",
                stacklevel=3,
            )
        if config.tie_word_embeddings is not adapter.model_config.tie_word_embeddings:
            warnings.warn(
                "The adapter changes the embedding or the output layer alone: they share no "
                "weight any more.",
                stacklevel=3,
            )
        self._place(places)
        self._model.config, self.merged = config, True
        self._model.requires_grad_(False)
        self._model.adjoin_weights()

    def _untied(self, places: dict[str, nn.Module]) -> bool:
        """Tie what is still equal; whether the output layer and the embedding differ."""
        embedding = places.get(self.base.embedding)
        output = places.get(OUTPUT)
        if embedding is None and output is None:
            return False
        if embedding is not None and output is not None:
            assert isinstance(embedding, nn.Embedding)
            assert isinstance(output, nn.Linear)
            if torch.equal(embedding.weight, output.weight):
                output.weight = embedding.weight
                return False
        return True

    def _place(self, wanted: dict[str, nn.Module]) -> None:
        """Put ``wanted`` in their places, and the model's own layers in those that are left.

        What was out of use follows the model's device, and but for updates its dtype.
        """
        device, dtype = self._model.device, self._model.dtype
        for path in self._placed.keys() | wanted.keys():
            parent, _, child = path.rpartition(".")
            current = self._model.get_submodule(path)
            module = wanted.get(path, self.base.modules[path])
            if module is not current:
                module.to(device, None if isinstance(module, StandIn) else dtype)
                module.train(current.training)
                setattr(self._model.get_submodule(parent), child, module)
        self._placed = dict(wanted)

    def forget(self) -> None:
        """See :func:`remove_adapters`."""
        delattr(self._model, _ATTRIBUTE)
        if not self._placed:
            for name, weight in self._model.named_parameters():
                weight.requires_grad_(self.was_trained.get(name, True))


def adapters_of(model: Model) -> Adapters:
    """The adapters of ``model``, none at first."""
    found = vars(model).get(_ATTRIBUTE)
    if found is None:
        found = Adapters(model)
        setattr(model, _ATTRIBUTE, found)
    assert isinstance(found, Adapters)
    return found


def add_adapter(model: Model, config: LoraConfig, name: str = "default", seed: int = 0) -> Adapter:
    """Make a new adapter that changes nothing yet, and put it to use, to be trained.

    All of the model's weights are frozen but the adapter's. Those of updates are float32. A model
    that scores classes has its head trained whole, as with peft.

    Args:
        name: of the adapter, for :func:`set_adapter`.
        seed: of the first values.

    Raises:
        ConfigError: nothing matches ``config``, or the name is taken.
    """
    adapters = adapters_of(model)
    if name in adapters.adapters:
        raise ConfigError(f"There is an adapter {name!r} already; choose another name.")
    config = with_head(config, adapters.base)
    layers = adapters.base.targets(config)
    saved, modules = adapters.base.saved(config)
    config = replace(config, modules_to_save=modules)
    adapters.adapters[name] = build(adapters.base, config, layers, saved, seed, {})
    adapters.use(name)
    return adapters.adapters[name]


def set_adapter(model: Model, name: str | None) -> None:
    """Use the adapter ``name``, or none; nothing is copied. A merge is undone.

    Raises:
        ConfigError: there is no such adapter.
    """
    adapters_of(model).use(name)


def merge(model: Model) -> None:
    """Put the adapter in use into the model's weights, which costs nothing from then on.

    Sums are made in float32 and rounded once. The model's own weights stay in memory, so that
    :func:`unmerge` brings back every bit; :func:`remove_adapters` lets them go. A quantized model
    is dequantized, all of it; where an embedding and the output layer no longer share a weight, the
    configuration says so. Warnings tell of both.

    Raises:
        ConfigError: no adapter is in use, or it is merged.
        CheckpointError: no file of this family could hold the result.
    """
    adapters_of(model).merge()


def unmerge(model: Model) -> None:
    """Undo :func:`merge`, to the last bit."""
    adapters = adapters_of(model)
    adapters.use(adapters.active)


def remove_adapters(model: Model) -> None:
    """Forget all adapters; what is merged stays in the weights.

    Raises:
        ConfigError: an adapter is in use and not merged.
    """
    adapters = adapters_of(model)
    if adapters.active is not None and not adapters.merged:
        raise ConfigError("Merge the adapter first, or use none (set_adapter(model, None)).")
    adapters.forget()


@torch.no_grad()
def resize_vocabulary(model: Model, tokens: int) -> None:
    """Give the embedding and the output layer so many tokens, before any adapter is added.

    New rows begin as the mean of all, which no text finds more or less likely than the others
    (Hewitt 2021). Files of adapters then hold the embedding, as peft writes it.

    Raises:
        ConfigError: there are adapters, or the model is an encoder-decoder.
    """
    adapters = adapters_of(model)
    if adapters.adapters or adapters.base.paired:
        raise ConfigError(
            "Only a model with one stack and no adapter can be given another number of tokens."
        )
    base = adapters.base
    embedding, output, tied = base.modules[base.embedding], base.modules.get(OUTPUT), base.tied
    assert isinstance(embedding, nn.Embedding)
    embedding.weight = _with_rows(embedding.weight, tokens)
    embedding.num_embeddings = tokens
    if isinstance(output, nn.Linear):
        output.weight = embedding.weight if tied else _with_rows(output.weight, tokens)
        output.out_features = tokens
        if output.bias is not None:
            output.bias = _with_rows(output.bias, tokens)
    model.config = adapters.base.config = replace(model.config, vocab_size=tokens)
    adapters.resized = True


def _with_rows(weight: torch.Tensor, rows: int) -> nn.Parameter:
    """The first ``rows`` of a weight; those that it does not have are the mean of all."""
    more = max(0, rows - len(weight))
    mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
    parts = (weight[:rows], mean.expand(more, *weight.shape[1:]))
    return nn.Parameter(torch.cat(parts), requires_grad=False)


def _quantized(module: nn.Module) -> bool:
    return hasattr(module, "dequantize")
