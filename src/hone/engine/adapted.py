"""Adapters as directories: the model that one is for, and both made one checkpoint."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import torch

import hone.quant  # noqa: F401 - makes quantized checkpoints readable
from hone.adapters import (
    is_adapter,
    load_adapter,
    merge,
    read_adapter_config,
    read_head,
    read_labels,
    remove_adapters,
)
from hone.core.errors import CheckpointError, HoneError
from hone.core.files import atomic_dir
from hone.core.hub import find_checkpoint, resolve
from hone.models import Head, Model, load_model, write_checkpoint
from hone.models.sentence import copy_sentence_files

# Of a checkpoint, what the merged model has of its own.
_WEIGHTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.pt",
    "*.pth",
    "adapter_config.json",
    "README.md",
)


def find_model(path: str | Path) -> tuple[Path, Path | None]:
    """The checkpoint that ``path`` means and, where that is an adapter or a run that made one, the
    adapter's directory beside its base's.

    Raises:
        CheckpointError: there is none, or the adapter's base is not to be found.
    """
    path = resolve(path)
    adapter = next((x for x in (path, path / "adapter") if is_adapter(x)), None)
    if adapter is None:
        return find_checkpoint(path), None
    base = read_adapter_config(adapter).base
    if base is None:
        raise CheckpointError(
            f"{adapter / 'adapter_config.json'}: base_model_name_or_path is missing; write the "
            "directory or the name of the model there that the adapter is for."
        )
    beside = adapter / base
    try:
        return find_checkpoint(beside if beside.is_dir() else base), adapter
    except HoneError as error:
        raise CheckpointError(f"{adapter} is an adapter of {base}: {error}") from error


def load_adapted(
    directory: Path,
    adapter: Path,
    dtype: str = "auto",
    device: str | torch.device = "cpu",
    head: Head | None = None,
) -> Model:
    """The model in ``directory`` with an adapter: merged into float weights, beside others.

    Args:
        head: None for the one that the adapter is for.

    Raises:
        CheckpointError: a directory cannot be read, or they do not fit one another.
    """
    told = read_labels(adapter)
    with warnings.catch_warnings():
        # A head that the base lacks is new for a moment only: the adapter brings it.
        warnings.filterwarnings("ignore", message=".*must be trained")
        labels = told[0] if told else None
        model = load_model(directory, dtype, device, head or read_head(adapter), labels)
    if told:
        model.config = replace(model.config, problem=told[1])
    load_adapter(model, adapter)
    if model.config.quantization_config is None:
        merge(model)
        remove_adapters(model)
    return model


def merge_checkpoint(
    adapter: str | Path, target: str | Path, base: str | Path | None = None
) -> Path:
    """Write the model that an adapter and its base make together, whole or not at all.

    It has the base's dtype. Tokenizer files are the adapter's where it has some, else the base's.

    Args:
        base: the model to merge into; None for the one that the adapter names.

    Returns:
        The base's directory.

    Raises:
        CheckpointError: a directory cannot be read, or is to be replaced by the result.
        CapacityError: the disk is full.
    """
    if base is None:
        source, found = find_model(adapter)
        if found is None:
            raise CheckpointError(f"{source} is a whole model and no adapter.")
    else:
        source, found = find_checkpoint(base), resolve(adapter)
    target = Path(target)
    for folder in (source, found):
        if target.resolve() in (folder.resolve(), *folder.resolve().parents):
            # The target is replaced as a whole, and what it is made of would go with it.
            raise CheckpointError(f"{target} is or holds {folder}; write to another directory.")
    model = load_adapted(source, found)
    if model.config.quantization_config is not None:
        merge(model)
        remove_adapters(model)
    with atomic_dir(target) as temporary:
        write_checkpoint(temporary, model)
        written = {file.name for file in temporary.iterdir()} - {"generation_config.json"}
        for folder in (source, found):
            for file in sorted(folder.iterdir()):
                if file.is_file() and file.name not in written and not _is_weights(file):
                    shutil.copyfile(file, temporary / file.name)
        copy_sentence_files(source, temporary)
    return source


def _is_weights(file: Path) -> bool:
    """Whether a file holds weights, or says what an adapter is."""
    return any(file.match(pattern) for pattern in _WEIGHTS)
