"""Int8 checkpoints in the ``compressed-tensors`` format ``int-quantized``.

Every linear layer except the output layer is int8; the embedding (and with it a tied output layer),
the norms and the biases are bfloat16, because the format holds linear layers only.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hone.core.errors import CheckpointError
from hone.core.files import atomic_dir, read_json, write_json
from hone.models import Model, find_family, load_config, load_model
from hone.models.checkpoint import save_weights
from hone.models.weights import own_tensors, places
from hone.quant.int8 import Int8Linear, quantize_rows

QUANT_METHOD = "compressed-tensors"
_FORMAT = "int-quantized"
_IGNORED = ("lm_head",)
# Models of up to so many weights compute with a float copy of them: at that size reading fewer
# bytes gains less than the int8 product costs.
_WIDEN_UP_TO = 20_000_000
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


def quantization_config() -> dict[str, Any]:
    """``quantization_config`` of an int8 checkpoint, as compressed-tensors writes it."""
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
        "ignore": list(_IGNORED),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def quantize_checkpoint(source: str | Path, target: str | Path) -> None:
    """Write the checkpoint ``source`` with int8 weights to ``target``, whole or not at all.

    Tokenizer files, the chat template and ``generation_config.json`` are copied as they are.

    Raises:
        CheckpointError: ``source`` cannot be read, or is quantized already.
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
    tensors = _int8_tensors(model)
    config = read_json(source / "config.json")
    config.pop("torch_dtype", None)
    config["dtype"] = str(_KEPT_DTYPE).removeprefix("torch.")
    config["quantization_config"] = quantization_config()
    with atomic_dir(target) as temporary:
        for file in sorted(source.iterdir()):
            if file.is_file() and not any(file.match(pattern) for pattern in _WEIGHT_FILES):
                shutil.copyfile(file, temporary / file.name)
        write_json(temporary / "config.json", config)
        save_weights(tensors, temporary / _WEIGHTS)


def _int8_tensors(model: Model) -> dict[str, Tensor]:
    """What the files hold: the tensors of the model with quantized layers, under their names."""
    kept = {name: tensor.to(_KEPT_DTYPE) for name, tensor in own_tensors(model).items()}
    for name, layer in _linears(model, _ignores(_IGNORED)):
        codes, scale = quantize_rows(layer.weight.detach(), _KEPT_DTYPE)
        kept[f"{name}.weight"], kept[f"{name}.weight_scale"] = codes, scale
    config = model.config
    return {
        name: place.read(kept, config).clone(memory_format=torch.contiguous_format)
        for name, place in places(find_family(config.model_type), config, kept).items()
    }


def replace_layers(model: Model, settings: dict[str, Any]) -> None:
    """Swap linear layers for :class:`Int8Linear`, as ``settings`` say; weights are not filled.

    Raises:
        CheckpointError: ``settings`` describe anything but symmetric int8 weights per output.
    """
    _check(settings)
    for name, layer in list(_linears(model, _ignores(settings.get("ignore") or ()))):
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


def _linears(model: Model, ignored: Callable[[str], bool]) -> list[tuple[str, nn.Linear]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not ignored(name)
        and not (name == "lm_head" and model.config.tie_word_embeddings)
    ]


def _ignores(patterns: Any) -> Callable[[str], bool]:
    """compressed-tensors' rule: a name, or a regular expression after ``re:``."""

    def ignored(name: str) -> bool:
        return any(
            re.match(pattern[3:], name) is not None
            if pattern.startswith("re:")
            else pattern == name
            for pattern in patterns
        )

    return ignored


def _check(settings: dict[str, Any]) -> None:
    groups = settings.get("config_groups")
    group = next(iter(groups.values())) if isinstance(groups, dict) and len(groups) == 1 else {}
    weights = group.get("weights") or {}
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
