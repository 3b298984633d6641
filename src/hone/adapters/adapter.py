"""One adapter: the layers that stand in for a model's own while it is in use."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hone.adapters.config import ALL_LINEAR, LoraConfig
from hone.adapters.layers import LoraEmbedding, LoraLinear, TokenRows, begin_factor, float_linear
from hone.adapters.names import (
    Layer,
    all_linear,
    find_layers,
    find_tensors,
    head_module,
    is_per_expert,
    owners,
    saved_tensors,
)
from hone.core.errors import ConfigError
from hone.core.nearest import nearest
from hone.kernels.lora import frozen_weight
from hone.models import Model, ModelConfig
from hone.models.weights import Place

StandIn = LoraLinear | LoraEmbedding | TokenRows
EMBEDDING = "embed_tokens"
OUTPUT = "lm_head"


@dataclass(slots=True)
class Adapter:
    """What one adapter changes.

    Attributes:
        config: its settings.
        stand_ins: by path, what takes the place of the model's own layers: updates of them,
            trained copies, and layers with another number of tokens.
        layers: those of the files that have updates.
        saved: the tensors of the files that are trained copies.
        model_config: the model's while the adapter is in use.
        trained: gradients are computed.
    """

    config: LoraConfig
    stand_ins: dict[str, nn.Module]
    layers: list[Layer]
    saved: dict[str, Place]
    model_config: ModelConfig
    trained: bool = True

    def weights(self) -> Iterator[nn.Parameter]:
        """What is trained."""
        copies = {path for place in self.saved.values() for path in owners(place)}
        found: dict[nn.Parameter, None] = {}  # a weight that layers share once
        for path, module in self.stand_ins.items():
            for name, weight in module.named_parameters():
                if path in copies or (isinstance(module, StandIn) and "base." not in name):
                    found[weight] = None
        yield from found


class Base:
    """A model's own layers, whatever stands in for them at the moment.

    Attributes:
        modules: by path.
        config: the model's without an adapter.
        layers: see :func:`find_layers`.
        tensors: see :func:`find_tensors`.
    """

    def __init__(self, model: Model) -> None:
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        self.config = model.config
        self.layers = find_layers(self.config, self.modules)
        self.tensors = find_tensors(self.config, self.modules)
        self.paired = self.config.encoder is not None

    @property
    def embedding(self) -> str:
        """The path of the embedding of tokens."""
        return "model.shared" if self.paired else f"model.{EMBEDDING}"

    @property
    def tied(self) -> bool:
        """Whether the output layer shares the embedding's weight."""
        output = self.modules.get(OUTPUT)
        embedding = self.modules[self.embedding]
        return isinstance(output, nn.Linear) and output.weight is embedding.weight

    def targets(self, config: LoraConfig) -> list[Layer]:
        """The layers that ``config`` adapts.

        Raises:
            ConfigError: there are none, or one that cannot be adapted.
        """
        linear = all_linear(self.layers.values(), self.modules)
        if config.targets == ALL_LINEAR:
            rest = replace(config, targets=r".*", layers=None)
            found = [layer for layer in linear if rest.wants(layer.name)]
        else:
            found = [layer for layer in self.layers.values() if config.wants(layer.name)]
        if not found and (config.targets or not (config.modules_to_save or config.token_ids)):
            last = sorted({layer.name.rpartition(".")[2] for layer in linear})
            shown = config.targets if isinstance(config.targets, str) else list(config.targets)
            raise ConfigError(
                f"No layer of this {self.config.model_type!r} model matches the targets {shown!r}; "
                f"its linear layers are {', '.join(last)}, or name all by {ALL_LINEAR!r}."
            )
        if self.paired and any(layer.embedding for layer in found):
            raise ConfigError(
                "The embedding of an encoder-decoder serves both halves; hone adapts none of them. "
                "Choose linear layers as targets."
            )
        return found

    def saved(self, config: LoraConfig) -> tuple[dict[str, Place], list[str]]:
        """The tensors that are trained whole, and the names of their modules in files.

        Raises:
            ConfigError: a name means nothing here, or what cannot be copied.
        """
        for name in config.modules_to_save:
            if not saved_tensors([name], self.tensors)[0]:
                known = sorted(
                    {tensor.rpartition(".")[0].rpartition(".")[2] for tensor in self.tensors}
                )
                raise ConfigError(
                    f"modules_to_save names {name!r}, which this {self.config.model_type!r} model "
                    f"does not have. {nearest(name, known)}"
                )
        found, names = saved_tensors(config.modules_to_save, self.tensors)
        self.check_copies(found)
        return found, names

    def check_copies(self, tensors: Mapping[str, Place]) -> None:
        """Refuse tensors whose modules cannot be copied for an adapter."""
        for name, place in tensors.items():
            shared = self.paired and self.embedding in owners(place)
            parts = any(True for path in owners(place) for _ in self.modules[path].children())
            if shared or is_per_expert(place) or parts:
                raise ConfigError(
                    f"{name!r} cannot be trained whole beside an adapter: hone copies linear "
                    "layers, norms and the embeddings of a model with one stack."
                )


def with_head(config: LoraConfig, base: Base) -> LoraConfig:
    """``config`` for a model that scores classes: its head is trained too, as peft does it."""
    head = head_module(base.tensors)
    if head is None or any(head == name for name in config.modules_to_save):
        return config
    return replace(config, modules_to_save=(*config.modules_to_save, head))


def build(
    base: Base,
    config: LoraConfig,
    layers: Sequence[Layer],
    saved: dict[str, Place],
    seed: int,
    bases: Mapping[str, nn.Module],
) -> Adapter:
    """A new adapter, which changes nothing yet.

    Args:
        layers: those that get updates.
        saved: tensors whose modules get copies.
        bases: what to use in place of the model's own layers, by path.

    Raises:
        ConfigError: tokens that there are not.
    """
    generator = torch.Generator().manual_seed(seed)
    modules = {**base.modules, **bases}
    stand_ins: dict[str, nn.Module] = {}
    for layer in layers:
        rank, scale = config.rank(layer.name), config.scale(layer.name)
        if layer.embedding:
            embedding = modules[layer.paths[0]]
            assert isinstance(embedding, nn.Embedding)
            adapted = LoraEmbedding(embedding, rank, scale, config.dora)
            factor = torch.empty(adapted.lora_embedding_B.shape).normal_(generator=generator)
            with torch.no_grad():
                adapted.lora_embedding_B.copy_(factor)
            stand_ins[layer.paths[0]] = adapted
            continue
        first = modules[layer.paths[0]]
        inputs, device = int(first.in_features), _device(first)  # type: ignore[arg-type]
        factor_a = begin_factor(rank, inputs, config.init, device, generator)
        for path in layer.paths:
            stand_ins[path] = LoraLinear(
                modules[path], factor_a, scale, config.dropout, config.dora
            )
    for path, ids in _tokens(base, config).items():
        _add_rows(base, modules, stand_ins, path, ids)
    for path in {path for place in saved.values() for path in owners(place)}:
        if path in stand_ins:
            raise ConfigError(f"{path!r} is adapted and trained whole; choose one of the two.")
        stand_ins[path] = modules[path] if path in bases else _copy(modules[path])
    for path, module in bases.items():
        stand_ins.setdefault(path, module)
    return Adapter(config, stand_ins, list(layers), saved, _sized(base.config, modules, base))


def _tokens(base: Base, config: LoraConfig) -> dict[str, Sequence[int]]:
    """The tokens to train, by the paths of embeddings."""
    if not config.token_ids:
        return {}
    if base.paired:
        raise ConfigError("hone trains no tokens of an encoder-decoder's embedding.")
    if not isinstance(config.token_ids, Mapping):
        return {base.embedding: config.token_ids}
    found = {}
    for name, ids in config.token_ids.items():
        known = {n: layer for n, layer in base.layers.items() if f".{n}".endswith(f".{name}")}
        paths = {layer.paths[0] for layer in known.values()}
        if len(paths) != 1 or not paths <= {base.embedding, OUTPUT}:
            raise ConfigError(
                f"token_ids names the embedding {name!r}, which this {base.config.model_type!r} "
                "model does not have; give a list of tokens."
            )
        found[paths.pop()] = ids
    return found


def _add_rows(
    base: Base,
    modules: Mapping[str, nn.Module],
    stand_ins: dict[str, nn.Module],
    path: str,
    ids: Sequence[int],
) -> None:
    weight = modules[path].weight
    assert isinstance(weight, Tensor)
    wrong = [i for i in ids if not 0 <= i < len(weight)]
    if wrong or len(set(ids)) < len(ids):
        raise ConfigError(
            f"token_ids holds {wrong[0]}; the model's tokens are 0 to {len(weight) - 1}."
            if wrong
            else "token_ids names a token twice."
        )
    if path in stand_ins:
        raise ConfigError("Give an embedding an update, or train some of its tokens, not both.")
    rows = TokenRows(modules[path], torch.tensor(ids, dtype=torch.int64))
    stand_ins[path] = rows
    if path == base.embedding and base.tied and OUTPUT not in stand_ins:
        stand_ins[OUTPUT] = TokenRows(modules[OUTPUT], rows.token_ids, rows.trainable_tokens_delta)


def _copy(module: nn.Module) -> nn.Module:
    """A copy to train; of a quantized layer, a float one."""
    if hasattr(module, "in_features") and not isinstance(module, nn.Linear):
        bias = module.bias if isinstance(module.bias, Tensor) else None
        return float_linear(frozen_weight(module, torch.float32), bias)
    return copy.deepcopy(module)


def _sized(config: ModelConfig, modules: Mapping[str, nn.Module], base: Base) -> ModelConfig:
    tokens = len(modules[base.embedding].weight)  # type: ignore[arg-type]
    return config if tokens == config.vocab_size else replace(config, vocab_size=tokens)


def _device(module: nn.Module) -> torch.device:
    for tensors in (module.parameters(), module.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")
