"""Loading weights: safetensors files into a model, one tensor at a time.

The model is made on the meta device, given memory once, and filled from memory-mapped files: the
peak is its own size, in the dtype that is asked for, and one tensor.
"""

import re
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hone.core.errors import CapacityError, CheckpointError, DataError, RequestError
from hone.core.files import read_json
from hone.models.checkpoint import WEIGHTS, dtype_name
from hone.models.config import HEADS, Head, ModelConfig
from hone.models.config_files import load_config
from hone.models.families import find_family
from hone.models.filling import FLOATS, Decode, Filler, as_named, expected_tensors
from hone.models.heads import fits, make_model
from hone.models.meta import without_memory
from hone.models.model import Model
from hone.models.ties import check_ties, read_error
from hone.models.weights import aliases, known_name, layer_places, linear_layers

INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "consolidated.*")
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_INTEGERS = ("I8", "U8", "I32")
_FULL = r"allocate memory|(out of|not enough) memory"
# Changes the modules of a model on the meta device into those that the files of the method fill.
Replace = Callable[[Model, dict[str, Any], Collection[str]], None]
# How the files of a method are read into such a model.
Decoder = Callable[[Model], Decode]
_quantizations: dict[str, tuple[Replace, Decoder]] = {}
# Swaps layers of a model on the meta device, but for those of some names, for ones that take float
# weights by ``fill(weight)``.
Quantize = Callable[[Model, Collection[str]], None]


def register_quantization(method: str, replace: Replace, decoder: Decoder = as_named) -> None:
    """Teach :func:`load_model` a ``quantization_config.quant_method``.

    ``replace(model, quantization_config, kept)`` swaps layers of a model whose weights are on the
    meta device for ones whose ``state_dict`` has the names, shapes and dtypes of the files; the
    layers named in ``kept`` stay. Where files spell tensors otherwise, ``decoder(model)`` returns a
    function of a tensor and its name in a file to what it holds, by the names that are expected.
    """
    _quantizations[method] = replace, decoder


def load_model(
    directory: str | Path,
    dtype: str | torch.dtype = "auto",
    device: torch.device | str = "cpu",
    head: Head | None = None,
    labels: Sequence[str] | None = None,
    quantize: Quantize | None = None,
) -> Model:
    """Read a model from a checkpoint directory, in evaluation mode.

    Args:
        dtype: "float32", "bfloat16", "float16", or "auto" for what ``config.json`` says.
        device: where the weights go.
        head: the head to give the body; None for the one in the files. Weights that another head
            lacks in the files are initialised, and a warning names them.
        labels: names of the classes; where the files have another number of them, the layer that
            scores them is new.
        quantize: ``quantize(model, kept)`` swaps layers, all but those that files do not hold, for
            ones that take their weights as soon as these are read: no float model ever exists.

    Raises:
        CheckpointError: a missing, truncated or foreign file, or weights that do not fit
            ``config.json``; the message names the file and the weight.
        RequestError: ``device`` is not one, or not one of this machine.
        CapacityError: there is no memory for the weights.
    """
    path = Path(directory)
    device = _device(device)
    config = load_config(path, head)
    stored: Head | None = config.head
    if head is not None and not config.extra.get("architectures"):
        stored = None  # config.json does not say, so any head may be in the files, or none
    relabelled = labels is not None and len(labels) != len(config.labels)
    if labels is not None:
        config = replace(config, labels=tuple(labels))
    if relabelled:
        config = replace(
            config, problem="regression" if len(config.labels) == 1 else "single_label"
        )
    wanted = _dtype(config.dtype if dtype == "auto" else dtype)
    files = _weight_files(path)
    model = _make_empty(config, head, path, files, relabelled)
    apart, stand_ins = check_ties(model, files)
    if apart:
        warnings.warn(
            f"{path}: config.json ties the output layer to the embedding, and the files hold "
            "different weights for the two; they are used as they are.",
            stacklevel=2,
        )
        untied = replace(config, tie_word_embeddings=False)
        model = _make_empty(untied, head, path, files, relabelled)
    expected = expected_tensors(model)
    decode = as_named(model)
    if config.quantization_config is not None:
        if quantize is not None:
            raise CheckpointError(f"{path} is quantized already; load the original model.")
        decode = _quantizations[config.quantization_config["quant_method"]][1](model)
    spare: set[str] = set()
    if model.head != stored or model.head == "embedding":  # a file of a body may hold a head too
        spare = _other_heads(model, path, files)
    if relabelled:
        spare |= expected_tensors(_make_empty(config, head, path, files)).keys()
    if quantize is not None:
        with without_memory():
            new = set(linear_layers(model)) - _held_layers(model, files)
            quantize(model, new | ({"score"} if relabelled else set()))
    model.to(wanted)
    _allocate(model, device, f"the weights of {path} in {dtype_name(wanted)}")
    model.tie_weights()
    model.adjoin_weights(values=False)
    filler = Filler(model, expected, decode, spare, stand_ins, path)
    if relabelled:
        filler.renew("score")
    for file in files:
        filler.fill(file)
    filler.finish(stored)
    return model.eval()


def _make_empty(
    config: ModelConfig, head: Head | None, path: Path, files: Sequence[Path], renewed: bool = False
) -> Model:
    """A model without memory, of the layers that ``files`` fill.

    Args:
        renewed: the layer that scores classes is new.
    """
    with without_memory():
        model = make_model(config, head, _dtype(config.dtype))
        if config.quantization_config is not None:
            kept = set(linear_layers(model)) - _held_layers(model, files, _INTEGERS)
            kept |= {"score"} if renewed else set()
            _replace_layers(model, config.quantization_config, path, kept)
    return model


def _held_layers(model: Model, files: Sequence[Path], kinds: Collection[str] = ()) -> set[str]:
    """The linear layers that ``files`` hold the weights of, in the dtypes ``kinds`` or in any."""
    family = find_family(model.config.model_type)
    found = layer_places(family, model, linear_layers(model))
    ours = {f"{name}.weight": place.ours for name, place in found.items()}
    held = set[str]()
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 (a handle is not iterable)
                    known = known_name(family, name, ours)
                    if known is None:
                        continue
                    if not kinds or handle.get_slice(name).get_dtype() in kinds:
                        held |= {own.removesuffix(".weight") for own in ours[known]}
        except (SafetensorError, OSError) as error:
            raise read_error(file, error) from error
    return held


def _dtype(name: str | torch.dtype) -> torch.dtype:
    dtype = name if isinstance(name, torch.dtype) else _DTYPES.get(name)
    if dtype not in FLOATS:
        shown = dtype_name(name) if isinstance(name, torch.dtype) else name
        raise CheckpointError(f"dtype {shown!r} is unknown; choose auto, {', '.join(_DTYPES)}.")
    return dtype


def _device(name: torch.device | str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise RequestError(f"The device {name!r} is unknown; choose e.g. cpu or cuda.") from error


def _allocate(model: Model, device: torch.device, what: str) -> None:
    """Give a model on the meta device memory."""
    try:
        # Says that the device is not there before anything large is asked for.
        torch.empty(1, device=device)
        model.to_empty(device=device)
    # PyTorch's three ways to say that a device is not there: a build without it asserts.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        # The allocator of the CPU has no error class of its own.
        if isinstance(error, torch.OutOfMemoryError) or re.search(_FULL, reason):
            raise CapacityError(f"There is no memory on {device} for {what}.") from error
        raise RequestError(
            f"The device '{device}' cannot be used ({reason}); choose another, e.g. cpu."
        ) from error


def _other_heads(model: Model, path: Path, files: Sequence[Path]) -> set[str]:
    """Names of the weights of the heads that may be in the files, when another is asked for."""
    family, names = find_family(model.config.model_type), set[str]()
    for head in HEADS:
        if head != model.head and fits(model.config, head):
            other = _make_empty(model.config, head, path, files)
            names |= {*expected_tensors(other), *aliases(family, other)}
    return names


def _replace_layers(model: Model, settings: Any, path: Path, kept: Collection[str]) -> None:
    file = path / "config.json"
    if not isinstance(settings, dict):
        raise CheckpointError(
            f"{file}: quantization_config is {settings!r}; expected an object with a quant_method."
        )
    method = settings.get("quant_method")
    if method not in _quantizations:
        known = ", ".join(sorted(_quantizations)) or "none"
        raise CheckpointError(
            f"{file}: quant_method is {method!r}; methods that are read: {known}."
        )
    try:
        _quantizations[method][0](model, settings, kept)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


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
                f"read. If you trust it, convert it with transformers: {_their_class(path)}"
                f".from_pretrained({str(path)!r}).save_pretrained(NEW_DIRECTORY), and so "
                "with AutoTokenizer."
            )
    raise CheckpointError(f"{path} has no {WEIGHTS} and no {INDEX}, so there are no weights.")


def _their_class(path: Path) -> str:
    """The class of transformers that keeps all of a checkpoint's weights."""
    config = load_config(path)
    return find_family(config.model_type).architecture(config.head)


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
