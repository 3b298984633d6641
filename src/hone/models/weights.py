"""Weights between their names in a file and their names here.

A :class:`Place` says for one tensor of a file which of the model's tensors it holds, and how. The
places of a whole model are made from its own tensors, on the meta device too, so that what a file
should hold is known before it is opened.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from hone.models.blocks import ExpertLayer
from hone.models.config import ModelConfig
from hone.models.family import Family
from hone.models.model import Model
from hone.models.rules import EachExpert, Rule, fill, match

# The last layers of heads.
_OUTPUTS = ("lm_head", "score")


class Target(Protocol):
    """What values are copied into: a tensor, or what stores them in another form."""

    def copy_(self, values: Tensor, /) -> object:
        """Take over ``values``."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of a file belongs: whole tensors here, or one expert's part of one."""

    ours: tuple[str, ...]
    rule: Rule | EachExpert | None = None
    expert: int = 0

    def read(self, tensors: Mapping[str, Tensor], config: ModelConfig) -> Tensor:
        """The tensor as it stands in a file."""
        parts = [tensors[name] for name in self.ours]
        if isinstance(self.rule, EachExpert):
            return self._expert(parts[0], self.rule)
        if self.rule is None or self.rule.join is None:
            return parts[0]
        return self.rule.join(parts, config)

    def write(self, tensor: Tensor, tensors: Mapping[str, Target], config: ModelConfig) -> None:
        """Copy a file's ``tensor``, whose shape is right, into the model's."""
        parts = [tensors[name] for name in self.ours]
        if isinstance(self.rule, EachExpert):
            assert isinstance(parts[0], Tensor), "experts are tensors"
            self._expert(parts[0], self.rule).copy_(tensor)
            return
        found = [tensor]
        if self.rule is not None and self.rule.split is not None:
            found = list(self.rule.split(tensor, config))
        for part, value in zip(parts, found, strict=True):
            part.copy_(value)

    def _expert(self, tensor: Tensor, rule: EachExpert) -> Tensor:
        return tensor[self.expert].chunk(rule.parts)[rule.part]


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model that files hold, by the names that they have here; tied ones once."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    persistent = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        if name in persistent:
            tensors[name] = buffer
    return {name: tensor.detach() for name, tensor in tensors.items()}


def aliases(family: Family, model: Model) -> dict[str, str]:
    """Names under which files may hold a tied weight once more, and its usual one."""
    every, own = model.state_dict(keep_vars=True), own_tensors(model)
    usual: dict[int, str] = {}
    for name, place in places(family, model.config, own).items():
        usual |= {id(every[ours]): name for ours in place.ours}
    tied = {name: tensor for name, tensor in every.items() if name not in own}
    return {
        alias: usual[id(tied[place.ours[0]])]
        for alias, place in places(family, model.config, tied).items()
    }


def known_name(family: Family, name: str, known: Collection[str]) -> str | None:
    """Which of the ``known`` names a file of ``family`` means by ``name``; None for none."""
    newer = name
    for pattern, replacement in family.old_names:
        newer = re.sub(pattern, replacement, newer)
    # Files of a bare body leave its prefix out; files of a whole model do not.
    prefix = family.prefix + "."
    for written in (name, newer):
        for candidate in (written, prefix + written, written.removeprefix(prefix)):
            if candidate in known:
                return candidate
    return None


def places(family: Family, config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Place]:
    """The tensors of a file of ``family`` that hold ``tensors``, by their names there."""
    rules = family.rules(config)
    found: dict[str, Place] = {}
    for name, tensor in tensors.items():
        for their_name, place in _places_of(name, tensor, rules):
            found.setdefault(in_file(family, config, their_name), place)
    return found


def in_file(family: Family, config: ModelConfig, name: str) -> str:
    """What a weight of the whole model is called: files of a bare body leave its prefix out."""
    return name.removeprefix(family.prefix + ".") if config.head == "embedding" else name


def _places_of(
    name: str, tensor: Tensor, rules: Sequence[Rule | EachExpert]
) -> list[tuple[str, Place]]:
    stacked = []
    for rule in rules:
        if isinstance(rule, EachExpert):
            found = match(rule.ours, name)
            if found is not None and not found[1]:  # ".weight" follows in a layer without experts
                stacked += [
                    (fill(rule.theirs, (*found[0], str(x))), Place((name,), rule, x))
                    for x in range(tensor.shape[0])
                ]
            continue
        for path in rule.paths:
            if (found := match(path, name)) is not None:
                numbers, rest = found
                ours = tuple(fill(p, numbers) + rest for p in rule.paths)
                return [(fill(rule.theirs, numbers) + rest, Place(ours, rule))]
    return stacked or [(name, Place((name,)))]


def file_tensors(family: Family, config: ModelConfig, model: Model) -> dict[str, Tensor]:
    """All tensors of ``model`` as a file holds them, contiguous.

    Those that lie in the model as in the file share its memory; joined and turned ones are new.
    """
    tensors = own_tensors(model)
    found = {
        name: place.read(tensors, config).contiguous()
        for name, place in places(family, config, tensors).items()
    }
    return found | {
        in_file(family, config, name): tensor.to(model.dtype)
        for name, tensor in model.carried.items()
    }


def quantized_layers(model: Model) -> dict[str, nn.Linear]:
    """The layers of ``model`` whose weights a quantized file holds as integers, by name.

    Small ones whose errors cost most stay as they are: the last layer of a head, what chooses and
    weighs experts, and Mamba's projection to time steps. Experts are no linear layers here.
    """
    return {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear
        and name not in _OUTPUTS
        and not isinstance(model.get_submodule(name.rpartition(".")[0]), ExpertLayer)
    }


def four_bit_layers(model: Model) -> dict[str, nn.Linear]:
    """Those of :func:`quantized_layers` that four bits are enough for.

    The last products of T5's blocks stay float: they are large, which is why transformers computes
    them in float32 whatever the rest is in, and never quantizes them.
    """
    layers = quantized_layers(model)
    if model.config.model_type != "t5":
        return layers
    return {name: layer for name, layer in layers.items() if not name.endswith(".down_proj")}


def linear_layers(model: Model) -> dict[str, nn.Linear]:
    """Every float linear layer of ``model``, by name."""
    return {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}


def layer_places(family: Family, model: Model, names: Iterable[str]) -> dict[str, Place]:
    """Where files hold the weights of the layers ``names``, by the layers' names there."""
    weights = {f"{name}.weight": model.get_parameter(f"{name}.weight") for name in names}
    found = places(family, model.config, weights)
    return {name.removesuffix(".weight"): place for name, place in found.items()}


def lies_turned(family: Family, model: Model) -> bool:
    """Whether files hold weights as inputs by outputs, unlike a linear layer (GPT-2)."""
    layers = quantized_layers(model)
    shapes = {f"{name}.weight": layer.weight.detach().to("meta") for name, layer in layers.items()}
    return any(
        place.read(shapes, model.config).shape[1] != shapes[place.ours[0]].shape[1]
        for place in layer_places(family, model, layers).values()
    )
