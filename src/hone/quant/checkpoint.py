"""Checkpoints in a smaller number format: some linear layers quantized, the rest bfloat16."""

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from hone.core.errors import CheckpointError, RequestError
from hone.core.files import atomic_dir, read_json, write_json
from hone.models import Model, load_config, load_model
from hone.models.checkpoint import dtype_name, save_weights
from hone.models.sentence import copy_sentence_files
from hone.models.weights import four_bit_layers, quantized_layers
from hone.quant.int8_checkpoint import int8_settings, int8_tensors
from hone.quant.kept import KEPT_DTYPE, float_tensors
from hone.quant.nf4_checkpoint import nf4_file_settings, nf4_tensors

_WEIGHTS = "model.safetensors"
_WEIGHT_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.pt",
    "*.pth",
    "config.json",
)


class _Method(NamedTuple):
    """How files of a number format are written.

    Attributes:
        layers: those of a model that are quantized.
        tensors: what files hold of their weights.
        settings: ``quantization_config``.
    """

    layers: Callable[[Model], Collection[str]]
    tensors: Callable[[Model], dict[str, Tensor]]
    settings: Callable[[Model], dict[str, Any]]


METHODS = {
    "int8": _Method(quantized_layers, int8_tensors, int8_settings),
    "nf4": _Method(four_bit_layers, nf4_tensors, nf4_file_settings),
}


def quantize_checkpoint(source: str | Path, target: str | Path, method: str = "int8") -> None:
    """Write the checkpoint ``source`` with quantized weights to ``target``, whole or not at all.

    Tokenizer files, the chat template, ``generation_config.json`` and what says how texts are
    embedded are copied as they are.

    Args:
        method: "int8" (one scale per output, files of compressed-tensors), or "nf4" (four bits
            with double quantization, files of bitsandbytes).

    Raises:
        CheckpointError: ``source`` cannot be read, is quantized already, or holds what the method
            cannot.
        CapacityError: the disk is full.
        RequestError: there is no such method.
    """
    source, target = Path(source), Path(target)
    if method not in METHODS:
        raise RequestError(f"The method {method!r} is unknown; choose {', '.join(METHODS)}.")
    if target.resolve() in (source.resolve(), *source.resolve().parents):
        # The target is replaced as a whole, and the model would go with it.
        raise CheckpointError(
            f"{target} is the model's directory or holds it; write to another directory."
        )
    if load_config(source).quantization_config is not None:
        raise CheckpointError(f"{source} is quantized already; quantize the original model.")
    model = load_model(source, "auto")
    layers, tensors, settings = METHODS[method]
    try:
        weights = float_tensors(model, layers(model)) | tensors(model)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    config = read_json(source / "config.json")
    config.pop("torch_dtype", None)
    config["dtype"] = dtype_name(KEPT_DTYPE)
    config["quantization_config"] = settings(model)
    with atomic_dir(target) as temporary:
        for file in sorted(source.iterdir()):
            if file.is_file() and not any(file.match(pattern) for pattern in _WEIGHT_FILES):
                shutil.copyfile(file, temporary / file.name)
        copy_sentence_files(source, temporary)
        write_json(temporary / "config.json", config)
        save_weights(weights, temporary / _WEIGHTS)
