"""Checkpoint directories: ``config.json``, ``model.safetensors``, tokenizer files.

What transformers writes is read, and what is written here opens in transformers.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hone.core.errors import CheckpointError, DataError
from hone.core.files import atomic_dir, read_json, write_json
from hone.models.config import LlamaConfig
from hone.models.llama import LlamaForCausalLM

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "consolidated.*")
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class TokenizerFiles(Protocol):
    """A tokenizer that can write its files into a directory."""

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""

    def save(self, directory: Path) -> None:
        """Write tokenizer files into ``directory``."""


# Changes the modules of a model on the meta device into those that the files of the method fill.
Replace = Callable[[LlamaForCausalLM, dict[str, Any]], None]
_quantizations: dict[str, Replace] = {}


def register_quantization(method: str, replace: Replace) -> None:
    """Teach :func:`load_model` a ``quantization_config.quant_method``.

    ``replace(model, quantization_config)`` swaps layers of a model whose weights are on the meta
    device for ones whose ``state_dict`` has the names, shapes and dtypes of the files.
    """
    _quantizations[method] = replace


def save_checkpoint(
    directory: str | Path,
    model: LlamaForCausalLM,
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
    model: LlamaForCausalLM,
    tokenizer: TokenizerFiles | None = None,
    generation: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> None:
    """:func:`save_checkpoint` into a directory that the caller makes whole or removes."""
    values = model.config.to_dict()
    values["dtype"] = _name(model.dtype)
    write_json(directory / "config.json", values | (config or {}))
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    token_ids = {name: values[name] for name in special if values[name] is not None}
    transformers_version = {"transformers_version": values["transformers_version"]}
    write_json(
        directory / "generation_config.json",
        token_ids | (generation or {}) | transformers_version,
    )
    save_weights(_named_tensors(model), directory / WEIGHTS)
    if tokenizer is not None:
        check_vocabulary(model.config, tokenizer.vocab_size, directory)
        tokenizer.save(directory)


def check_vocabulary(config: LlamaConfig, vocab_size: int, where: str | Path) -> None:
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
    """Write ``tensors`` as transformers does, readable by whoever may read the directory."""
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)  # the library makes it private


def _named_tensors(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """The tensors to save: tied embeddings once, each in memory of its own."""
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    # Adjoined weights share one block of memory, which safetensors would refuse.
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def load_config(directory: str | Path) -> LlamaConfig:
    """Read ``config.json`` of a checkpoint directory.

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
    return LlamaConfig.from_dict(values, str(file))


def load_model(
    directory: str | Path,
    dtype: str | torch.dtype = "auto",
    device: torch.device | str = "cpu",
) -> LlamaForCausalLM:
    """Read a model from a checkpoint directory, in evaluation mode.

    Args:
        dtype: "float32", "bfloat16", "float16", or "auto" for what ``config.json`` says.
        device: where the weights go.

    Raises:
        CheckpointError: a missing, truncated or foreign file, or weights that do not fit
            ``config.json``; the message names the file and the weight.
    """
    path = Path(directory)
    config = load_config(path)
    if isinstance(dtype, str):
        name = config.dtype if dtype == "auto" else dtype
        if name not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise CheckpointError(f"dtype {dtype!r} is unknown; choose auto, {known}.")
        wanted = _DTYPES[name]
    else:
        wanted = dtype
    with torch.device("meta"):
        model = LlamaForCausalLM(config, _DTYPES[config.dtype])
    if config.quantization_config is not None:
        _replace_layers(model, config.quantization_config, path)
    tensors, origins = _read_weights(path, device)
    _check_weights(model, tensors, origins, path)
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    model.to(wanted)
    model.adjoin_weights()
    return model.eval()


def _replace_layers(model: LlamaForCausalLM, settings: dict[str, Any], path: Path) -> None:
    method = settings.get("quant_method")
    replace = _quantizations.get(str(method))
    if replace is None:
        known = ", ".join(sorted(_quantizations)) or "none"
        raise CheckpointError(
            f"{path / 'config.json'}: quant_method is {method!r}; methods that are read: {known}."
        )
    replace(model, settings)


def _weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one, or those its index names."""
    if (path / WEIGHTS).exists():
        return [path / WEIGHTS]
    if (path / INDEX).exists():
        return _indexed_files(path / INDEX)
    for pattern in _PICKLES:
        if any(path.glob(pattern)):
            raise CheckpointError(
                f"{path} holds its weights as a pickle ({pattern}), which can run code when it is "
                f"read; save it as {WEIGHTS} first."
            )
    raise CheckpointError(f"{path} has no {WEIGHTS} and no {INDEX}, so there are no weights.")


def _indexed_files(index: Path) -> list[Path]:
    try:
        content = read_json(index)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: the key 'weight_map' is missing or empty.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}, which lies outside its directory.")
        if not (index.parent / name).exists():
            raise CheckpointError(f"{index} names {name}, which is not there; copy it too.")
    return [index.parent / name for name in names]


def _read_weights(
    path: Path, device: torch.device | str
) -> tuple[dict[str, Tensor], dict[str, Path]]:
    """All tensors by name, and the file that each came from."""
    tensors: dict[str, Tensor] = {}
    origins: dict[str, Path] = {}
    for file in _weight_files(path):
        try:
            with safe_open(file, framework="pt", device=str(device)) as handle:
                for name in handle.keys():  # noqa: SIM118 (a handle is not iterable)
                    tensors[name] = handle.get_tensor(name)
                    origins[name] = file
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} is truncated or no safetensors file ({error}); copy or save it again."
            ) from error
    return tensors, origins


def _check_weights(
    model: LlamaForCausalLM, tensors: dict[str, Tensor], origins: dict[str, Path], path: Path
) -> None:
    """Compare names, shapes and kinds with the model's; drops what is known to be redundant."""
    expected = model.state_dict()
    if model.config.tie_word_embeddings:
        expected.pop("lm_head.weight")
        tensors.pop("lm_head.weight", None)
    # Written by transformers before 4.31; computed here.
    for name in [name for name in tensors if name.endswith("rotary_emb.inv_freq")]:
        del tensors[name]
    for name, tensor in expected.items():
        found = tensors.get(name)
        if found is None:
            raise CheckpointError(f"{path}: the weight {name!r} is in none of its files.")
        if found.shape != tensor.shape:
            raise CheckpointError(
                f"{origins[name]}: the weight {name!r} has the shape {list(found.shape)}; "
                f"config.json asks for {list(tensor.shape)}."
            )
        if found.is_floating_point() != tensor.is_floating_point():
            raise CheckpointError(
                f"{origins[name]}: the weight {name!r} is {_name(found.dtype)}; config.json "
                f"asks for {_name(tensor.dtype)}."
            )
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            warnings.warn(f"{origins[name]}: {name!r} holds NaN or infinity.", stacklevel=3)
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise CheckpointError(
            f"{origins[unknown[0]]}: config.json has no place for the weight {unknown[0]!r}."
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
