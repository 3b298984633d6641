"""Checkpoint directories: ``config.json``, ``model.safetensors``, tokenizer files.

What transformers writes is read, and what is written here opens in transformers.
"""

import errno
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from hone.core.errors import CheckpointError
from hone.core.files import atomic_dir, explain_os_error, write_json
from hone.models.config import ModelConfig
from hone.models.config_files import write_config
from hone.models.families import find_family
from hone.models.model import Model
from hone.models.sentence import write_sentence_files
from hone.models.weights import file_tensors

WEIGHTS = "model.safetensors"


class TokenizerFiles(Protocol):
    """A tokenizer that can write its files into a directory."""

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""

    def save(self, directory: Path) -> None:
        """Write tokenizer files into ``directory``."""


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


def dtype_name(dtype: torch.dtype) -> str:
    """The name of ``dtype`` in files."""
    return str(dtype).removeprefix("torch.")
