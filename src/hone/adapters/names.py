"""Where adapters go: a model's layers by the names that Hugging Face's modules have.

Files of adapters name layers so, and some families' layers are several here (GPT-2's ``c_attn``,
Phi-3's ``qkv_proj``): an adapter of such a layer has one A that the parts share.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hone.models import Model, ModelConfig, find_family
from hone.models.blocks import ExpertLayer
from hone.models.rules import EachExpert
from hone.models.weights import Place, known_name, places

# Weights that are read, and layers that are not called: an update beside them would be passed over.
_TABLES = ("relative_bias",)
_HEADS = ("lm_head", "score")
# Of a state space, transformers reads these weights past their layers, and peft refuses some.
_READ_THERE = ("dt_proj", "out_proj")


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer or an embedding of the files.

    Attributes:
        name: its path there.
        paths: the modules here that it is made of.
        widths: how many outputs each has (for an embedding, its tokens).
        place: how weights lie there.
        turned: they lie as inputs by outputs.
        embedding: it is one.
    """

    name: str
    paths: tuple[str, ...]
    widths: tuple[int, ...]
    place: Place
    turned: bool
    embedding: bool

    def join(self, parts: Sequence[Tensor], config: ModelConfig) -> Tensor:
        """``parts`` with rows for the outputs of each module, as one tensor of the whole layer."""
        found = self.place.read(self._named(parts), config)
        return found.t() if self.turned and found.ndim == 2 else found

    def split(self, whole: Tensor, parts: Sequence[Tensor], config: ModelConfig) -> None:
        """The way back, into ``parts``."""
        turned = self.turned and whole.ndim == 2
        self.place.write(whole.t() if turned else whole, self._named(parts), config)

    def _named(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.place.ours, parts, strict=True))


def find_layers(config: ModelConfig, modules: Mapping[str, nn.Module]) -> dict[str, Layer]:
    """The layers that an adapter can have updates of, by their names in files.

    Args:
        modules: those of the model without any adapter, by path.
    """
    shapes: dict[str, Tensor] = {}
    for path, module in modules.items():
        if _is_linear(module):
            shape = (int(module.out_features), 1)  # type: ignore[arg-type]
        elif isinstance(module, nn.Embedding) and path.rpartition(".")[2] not in _TABLES:
            shape = (module.num_embeddings, 1)
        else:
            continue
        shapes[f"{path}.weight"] = torch.empty(shape, device="meta")
    found = {}
    for name, place in places(find_family(config.model_type), config, shapes).items():
        paths = tuple(ours.removesuffix(".weight") for ours in place.ours)
        widths = tuple(len(shapes[ours]) for ours in place.ours)
        # A column for one input lies as a row where weights lie turned.
        turned = sum(widths) > 1 and tuple(place.read(shapes, config).shape) == (1, sum(widths))
        embedding = isinstance(modules[paths[0]], nn.Embedding)
        layer = Layer(name.removesuffix(".weight"), paths, widths, place, turned, embedding)
        found[layer.name] = layer
    return found


def all_linear(layers: Iterable[Layer], modules: Mapping[str, nn.Module]) -> list[Layer]:
    """The linear layers of ``layers`` but the head's last, and those that choose experts."""
    found = []
    for layer in layers:
        parent, _, last = layer.paths[0].rpartition(".")
        state_space = last in _READ_THERE and hasattr(modules[parent], "A_log")
        chooses = isinstance(modules[parent], ExpertLayer)
        if not (layer.embedding or layer.paths[0] in _HEADS or state_space or chooses):
            found.append(layer)
    return found


def find_tensors(config: ModelConfig, modules: Mapping[str, nn.Module]) -> dict[str, Place]:
    """The tensors that files of the whole model hold, by their names there; tied ones as well."""
    tensors = {
        f"{path}.{name}" if path else name: tensor.detach().to("meta")
        for path, module in modules.items()
        for name, tensor in module.named_parameters(recurse=False)
    }
    return places(find_family(config.model_type), config, tensors)


def saved_tensors(
    names: Sequence[str], tensors: Mapping[str, Place]
) -> tuple[dict[str, Place], list[str]]:
    """The tensors of the modules that ``names`` mean, and those modules' whole names."""
    found, modules = {}, dict[str, None]()
    for tensor, place in tensors.items():
        module = tensor.rpartition(".")[0]
        for name in names:
            start = f".{module}.".find(f".{name}.")
            if start >= 0:
                found[tensor] = place
                modules[module[: start + len(name)]] = None
    return found, list(modules)


def head_module(tensors: Mapping[str, Place]) -> str | None:
    """The module of the files that holds the layer that scores classes; None without one."""
    for name, place in tensors.items():
        if place.ours[0].startswith("score."):
            return name.partition(".")[0]
    return None


def owners(place: Place) -> tuple[str, ...]:
    """The modules here that hold the tensor of ``place``."""
    return tuple(ours.rpartition(".")[0] for ours in place.ours)


def is_per_expert(place: Place) -> bool:
    """Whether the tensor is a part of a stack of experts."""
    return isinstance(place.rule, EachExpert)


def known_layer(model: Model, name: str, layers: Mapping[str, Layer]) -> Layer | None:
    """The layer that a file calls ``name``, with the prefix of the whole model or without."""
    family = find_family(model.config.model_type)
    known = known_name(family, f"{name}.weight", {f"{each}.weight" for each in layers})
    return None if known is None else layers[known.removesuffix(".weight")]


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")
