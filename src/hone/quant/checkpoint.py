"""Int8 checkpoints in the ``compressed-tensors`` format ``int-quantized``.

The layers of ``hone.models.weights.quantized_layers`` are int8. The rest is bfloat16: the format
holds linear layers only, and ``ignore`` names those that it shall not look for.
"""

import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hone.core.errors import CheckpointError
from hone.core.files import atomic_dir, read_json, write_json
from hone.models import Model, find_family, load_config, load_model
from hone.models.checkpoint import save_weights
from hone.models.rules import EachExpert
from hone.models.sentence import copy_sentence_files
from hone.models.weights import (
    in_file,
    layer_places,
    lies_turned,
    linear_layers,
    own_tensors,
    places,
    quantized_layers,
)
from hone.quant.int8 import Int8Linear, quantize_rows

QUANT_METHOD = "compressed-tensors"
_FORMAT = "int-quantized"
# Models of up to so many weights compute with a float copy of them: at that size reading fewer
# bytes gains less than the int8 product costs.
_WIDEN_UP_TO = 20_000_000
_PATTERN = "re:"
_KEPT_DTYPE = torch.bfloat16
_WEIGHTS = "model.safetensors"
_WEIGHT_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.pt",
    "*.pth",
    "config.json",
)


def quantization_config(model: Model) -> dict[str, Any]:
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
        "ignore": _float_layers(model),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def quantize_checkpoint(source: str | Path, target: str | Path) -> None:
    """Write the checkpoint ``source`` with int8 weights to ``target``, whole or not at all.

    Tokenizer files, the chat template, ``generation_config.json`` and what says how texts are
    embedded are copied as they are.

    Raises:
        CheckpointError: ``source`` cannot be read, is quantized already, or is of a family whose
            files hold no linear layers.
        CapacityError: the disk is full.
    """
    source, target = Path(source), Path(target)
    if target.resolve() in (source.resolve(), *source.resolve().parents):
        # The target is replaced as a whole, and the model would go with it.
        raise CheckpointError(
            f"{target} is the model's directory or holds it; write to another directory."
        )
    if load_config(source).quantization_config is not None:
        raise CheckpointError(f"{source} is quantized already; quantize the original model.")
    model = load_model(source, "auto")
    if lies_turned(find_family(model.config.model_type), model):
        raise CheckpointError(
            f"{source}: files of {model.config.model_type!r} hold weights as inputs by outputs, "
            f"which {QUANT_METHOD} does not know as linear layers; quantize another model."
        )
    tensors = _int8_tensors(model)
    config = read_json(source / "config.json")
    config.pop("torch_dtype", None)
    config["dtype"] = str(_KEPT_DTYPE).removeprefix("torch.")
    config["quantization_config"] = quantization_config(model)
    with atomic_dir(target) as temporary:
        for file in sorted(source.iterdir()):
            if file.is_file() and not any(file.match(pattern) for pattern in _WEIGHT_FILES):
                shutil.copyfile(file, temporary / file.name)
        copy_sentence_files(source, temporary)
        write_json(temporary / "config.json", config)
        save_weights(tensors, temporary / _WEIGHTS)


def _int8_tensors(model: Model) -> dict[str, Tensor]:
    """What the files hold: the tensors of the model with quantized layers, under their names."""
    kept = {name: tensor.to(_KEPT_DTYPE) for name, tensor in own_tensors(model).items()}
    for name, layer in quantized_layers(model).items():
        codes, scale = quantize_rows(layer.weight.detach(), _KEPT_DTYPE)
        kept[f"{name}.weight"], kept[f"{name}.weight_scale"] = codes, scale
    config = model.config
    family = find_family(config.model_type)
    found = {
        name: place.read(kept, config).contiguous()
        for name, place in places(family, config, kept).items()
    }
    return found | {
        in_file(family, config, name): tensor.to(_KEPT_DTYPE)
        for name, tensor in model.carried.items()
    }


def _float_layers(model: Model) -> list[str]:
    """The linear layers that stay float, by their names in the files; experts as patterns."""
    config = model.config
    family = find_family(config.model_type)
    quantized = quantized_layers(model)
    kept = [name for name in linear_layers(model) if name not in quantized]
    names = set(layer_places(family, model, kept))
    # Whatever its name in the files (GPT-NeoX: embed_out), others build it under this one.
    names |= {name for name in kept if name == "lm_head"}
    for name, tensor in model.carried.items():
        if name.endswith(".weight") and tensor.ndim == 2:
            names.add(in_file(family, config, name).removesuffix(".weight"))
    experts = [rule.theirs for rule in family.rules(config) if isinstance(rule, EachExpert)]
    for path in experts if config.experts is not None else ():
        layer = in_file(family, config, path).removesuffix(".weight")
        names.add(_PATTERN + re.escape(layer).replace(r"\*", r"\d+") + "$")
    return sorted(names)


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
