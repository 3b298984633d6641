"""Int8 checkpoints in the ``compressed-tensors`` format ``int-quantized``.

The layers of ``hone.models.weights.quantized_layers`` are int8; ``ignore`` names the linear layers
that are float.
"""

import re
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from hone.core.errors import CheckpointError
from hone.models import Model, find_family
from hone.models.rules import EachExpert
from hone.models.weights import (
    in_file,
    layer_places,
    lies_turned,
    linear_layers,
    places,
    quantized_layers,
)
from hone.quant.int8 import Int8Linear, quantize_rows
from hone.quant.kept import KEPT_DTYPE, float_layers

QUANT_METHOD = "compressed-tensors"
_FORMAT = "int-quantized"
# Models of up to so many weights compute with a float copy of them: at that size reading fewer
# bytes gains less than the int8 product costs.
_WIDEN_UP_TO = 20_000_000
_PATTERN = "re:"


def int8_settings(model: Model) -> dict[str, Any]:
    """``quantization_config`` of the int8 files of ``model``, as compressed-tensors writes it."""
    weights = {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "channel",
        "group_size": None,
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
    }
    return {
        "quant_method": QUANT_METHOD,
        "format": _FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": _ignored(model),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _ignored(model: Model) -> list[str]:
    """The linear layers that stay float, by their names in the files; experts as patterns."""
    family = find_family(model.config.model_type)
    names = float_layers(model, quantized_layers(model))
    experts = [rule.theirs for rule in family.rules(model.config) if isinstance(rule, EachExpert)]
    for path in experts if model.config.experts is not None else ():
        layer = in_file(family, model.config, path).removesuffix(".weight")
        names.add(_PATTERN + re.escape(layer).replace(r"\*", r"\d+") + "$")
    return sorted(names)


def int8_tensors(model: Model) -> dict[str, Tensor]:
    """What the files hold of the layers of ``model`` that are quantized.

    Raises:
        CheckpointError: the files of the family hold no linear layers.
    """
    config, family = model.config, find_family(model.config.model_type)
    if lies_turned(family, model):
        raise CheckpointError(
            f"Files of {config.model_type!r} hold weights as inputs by outputs, which "
            f"{QUANT_METHOD} does not know as linear layers; choose another method."
        )
    found = {}
    for name, layer in quantized_layers(model).items():
        codes, scale = quantize_rows(layer.weight.detach(), KEPT_DTYPE)
        found[f"{name}.weight"], found[f"{name}.weight_scale"] = codes, scale
    return {
        name: place.read(found, config).contiguous()
        for name, place in places(family, config, found).items()
    }


def replace_layers(model: Model, settings: dict[str, Any], kept: Collection[str] = ()) -> None:
    """Swap linear layers for :class:`Int8Linear`, as ``settings`` say; weights are not filled.

    Args:
        kept: layers that stay, whatever ``settings`` say.

    Raises:
        CheckpointError: ``settings`` describe anything but symmetric int8 weights per output.
    """
    _check(settings)
    ignored = _ignores(settings.get("ignore"))
    known = _names(model)
    for name, layer in linear_layers(model).items():
        tied = name == "lm_head" and model.config.tie_word_embeddings
        if tied or name in kept or any(ignored(each) for each in known[name]):
            continue
        parent, _, child = name.rpartition(".")
        with torch.device(layer.weight.device):
            int8 = Int8Linear(
                layer.in_features,
                layer.out_features,
                layer.bias is not None,
                layer.weight.dtype,
                widen=model.config.parameter_count <= _WIDEN_UP_TO,
            )
        setattr(model.get_submodule(parent), child, int8)


def _names(model: Model) -> dict[str, set[str]]:
    """What files may call each linear layer, with the prefix of the whole model and without."""
    family = find_family(model.config.model_type)
    prefix = family.prefix + "."
    names = {name: {name} for name in linear_layers(model)}
    for theirs, place in layer_places(family, model, list(names)).items():
        bare = theirs.removeprefix(prefix)
        for ours in place.ours:
            names[ours.removesuffix(".weight")] |= {theirs, bare, prefix + bare}
    return names


def _ignores(entries: Any) -> Callable[[str], bool]:
    """compressed-tensors' rule: a name, or a regular expression after ``re:``."""
    entries = [] if entries is None else entries
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise CheckpointError(
            f"quantization_config: ignore is {entries!r}; expected a list of names of layers."
        )
    names = {entry for entry in entries if not entry.startswith(_PATTERN)}
    patterns = [_compiled(entry) for entry in entries if entry.startswith(_PATTERN)]
    return lambda name: name in names or any(pattern.match(name) for pattern in patterns)


def _compiled(entry: str) -> re.Pattern[str]:
    try:
        return re.compile(entry.removeprefix(_PATTERN))
    except re.error as error:
        raise CheckpointError(
            f"quantization_config: ignore holds {entry!r}, no regular expression ({error})."
        ) from error


def _check(settings: dict[str, Any]) -> None:
    groups = settings.get("config_groups")
    group = next(iter(groups.values())) if isinstance(groups, dict) and len(groups) == 1 else {}
    group = group if isinstance(group, dict) else {}
    weights = group.get("weights")
    weights = weights if isinstance(weights, dict) else {}
    expected = {
        "format": (settings.get("format"), _FORMAT),
        "targets": (group.get("targets"), ["Linear"]),
        "weights.num_bits": (weights.get("num_bits"), 8),
        "weights.type": (weights.get("type"), "int"),
        "weights.symmetric": (weights.get("symmetric"), True),
        "weights.strategy": (weights.get("strategy"), "channel"),
        "input_activations": (group.get("input_activations"), None),
    }
    for key, (found, wanted) in expected.items():
        if found != wanted:
            raise CheckpointError(
                f"quantization_config: {key} is {found!r}; of {QUANT_METHOD}, hone reads "
                f"{wanted!r} (int8 weights, symmetric, one scale per output)."
            )
