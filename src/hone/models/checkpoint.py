"""Checkpoint directories: ``config.json``, ``model.safetensors``, tokenizer files.

What transformers writes is read, and what is written here opens in transformers.
"""

import errno
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from hone.core.errors import CheckpointError, DataError
from hone.core.files import atomic_dir, explain_os_error, read_json, write_json
from hone.models.config import Head, ModelConfig
from hone.models.families import find_family
from hone.models.family import TRANSFORMERS_VERSION
from hone.models.keys import Keys
from hone.models.model import Model
from hone.models.sentence import read_sentence_files, write_sentence_files
from hone.models.weights import file_tensors

WEIGHTS = "model.safetensors"
# Spellings of older releases, for which there is a newer one in what is written.
_OLD_KEYS = {"torch_dtype": "dtype", "rope_theta": "rope_parameters"}
_OLD_KEYS |= {"rope_scaling": "rope_parameters", "num_labels": "id2label"}


class TokenizerFiles(Protocol):
    """A tokenizer that can write its files into a directory."""

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""

    def save(self, directory: Path) -> None:
        """Write tokenizer files into ``directory``."""


def read_config(values: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The architecture that the content of a ``config.json`` describes, in any layout.

    Args:
        where: the file's name for error messages.

    Raises:
        CheckpointError: an unknown family, a missing or wrong key, sizes that do not fit.
    """
    keys = Keys(values, where)
    family = find_family(values.get("model_type"), where)
    try:
        config = family.read(keys)
    except CheckpointError as error:
        message = str(error)
        if message.startswith(where):
            raise
        raise CheckpointError(f"{where}: {message}") from error
    return replace(
        config, model_type=family.model_type, head=family.head_of(keys), extra=dict(values)
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The content of ``config.json`` as the current transformers writes it.

    Keys that were read and mean nothing here are kept.
    """
    family = find_family(config.model_type)
    values = config.extra | {
        "architectures": [family.architecture(config.head)],
        "dtype": config.dtype,
        "model_type": config.model_type,
        "transformers_version": TRANSFORMERS_VERSION,
    }
    values |= family.write(config)
    stale = {old for old, new in _OLD_KEYS.items() if old in values and new in values}
    return {key: values[key] for key in sorted(values) if key not in stale}


def save_checkpoint(
    directory: str | Path,
    model: Model,
    tokenizer: TokenizerFiles | None = None,
    generation: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> None:
    """Write a whole checkpoint directory, or nothing.

    Args:
        tokenizer: its ``save(directory)`` is called.
        generation: more keys for ``generation_config.json``.
        config: more keys for ``config.json``, e.g. ``quantization_config``.

    Raises:
        CapacityError: the disk is full.
        HoneError: the directory cannot be written.
    """
    with atomic_dir(directory) as temporary:
        write_checkpoint(temporary, model, tokenizer, generation, config)


def write_checkpoint(
    directory: Path,
    model: Model,
    tokenizer: TokenizerFiles | None = None,
    generation: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> None:
    """:func:`save_checkpoint` into a directory that the caller makes whole or removes."""
    values = write_config(model.config)
    values["dtype"] = dtype_name(model.dtype)
    write_json(directory / "config.json", values | (config or {}))
    if model.head in ("causal", "seq2seq"):
        special = ["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"]
        special += ["forced_bos_token_id", "forced_eos_token_id"]
        token_ids = {name: values[name] for name in special if values.get(name) is not None}
        version = {"transformers_version": values["transformers_version"]}
        write_json(directory / "generation_config.json", token_ids | (generation or {}) | version)
    if model.head == "embedding":
        write_sentence_files(directory, model.config)
    family = find_family(model.config.model_type)
    save_weights(file_tensors(family, model.config, model), directory / WEIGHTS)
    if tokenizer is not None:
        check_vocabulary(model.config, tokenizer.vocab_size, directory)
        tokenizer.save(directory)


def check_vocabulary(config: ModelConfig, vocab_size: int, where: str | Path) -> None:
    """Refuse a tokenizer with more ids than the model has embeddings.

    Raises:
        CheckpointError: naming both sizes.
    """
    if vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer has {vocab_size} tokens and the model embeddings for "
            f"{config.vocab_size}; use the tokenizer that the model was trained with."
        )


def save_weights(tensors: dict[str, Tensor], file: Path) -> None:
    """Write ``tensors`` as transformers does, readable by whoever may read the directory.

    Raises:
        CapacityError: the disk is full.
        HoneError: the file cannot be written.
    """
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:  # the library hides the system's error in its text
        full = "No space left" in str(error)
        raise explain_os_error(
            OSError(errno.ENOSPC if full else errno.EIO, str(error)), file, "write"
        ) from error
    file.chmod(0o644)  # the library makes it private


def load_config(directory: str | Path, head: Head | None = None) -> ModelConfig:
    """Read ``config.json`` of a checkpoint directory, and how its embeddings are pooled.

    Args:
        head: the one that is wanted. Pooling matters for embeddings only, and a directory that says
            how to pool is one of embeddings unless another head is asked for.

    Raises:
        CheckpointError: no directory, no or broken ``config.json``, an unknown architecture.
    """
    path = Path(directory)
    file = path / "config.json"
    if not path.is_dir():
        raise CheckpointError(f"{path} is no directory; a checkpoint is a directory of files.")
    if not file.exists():
        raise CheckpointError(f"{path} has no config.json, so it is not a checkpoint.")
    try:
        values = read_json(file)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(values).__name__}.")
    config = read_config(values, str(file))
    return read_sentence_files(path, config) if head in (None, "embedding") else config


def dtype_name(dtype: torch.dtype) -> str:
    """The name of ``dtype`` in files."""
    return str(dtype).removeprefix("torch.")
