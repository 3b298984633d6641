"""NF4 checkpoints in the format of bitsandbytes, as transformers reads and writes it.

A layer's codes are ``X.weight`` ``[⌈N · K / 2⌉, 1]``, its constants ``X.weight.absmax``,
``.quant_map`` and, where ``absmax`` is quantized, ``.nested_absmax`` and ``.nested_quant_map``; the
rest is JSON in the bytes of ``.quant_state.bitsandbytes__nf4``. What files join (queries, keys and
values) is quantized as one and shares its constants; what they hold turned (GPT-2) is turned back
first. ``llm_int8_skip_modules`` names the linear layers that are float.
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hone.core.errors import CheckpointError
from hone.models import Model, find_family
from hone.models.checkpoint import dtype_name
from hone.models.filling import Decode
from hone.models.rules import Rule
from hone.models.weights import (
    Place,
    four_bit_layers,
    known_name,
    linear_layers,
    own_tensors,
    places,
)
from hone.quant.kept import float_layers
from hone.quant.nf4 import (
    BLOCK,
    LEVELS,
    NESTED_BLOCK,
    Nested,
    Nf4State,
    block_absmax,
    layout,
    nf4_quantize,
)
from hone.quant.nf4_layer import QUANT_METHOD, Nf4Linear, check_finite, nf4_settings

_TENSOR = re.compile(r"(.+)\.weight(?:\.(\w+|quant_state\.bitsandbytes__\w+))?")
_JSON = "quant_state.bitsandbytes__nf4"
_NESTED = ("nested_absmax", "nested_quant_map", "nested_offset")


def replace_layers(model: Model, settings: dict[str, Any], kept: Collection[str] = ()) -> None:
    """Swap linear layers for :class:`Nf4Linear`; weights are not filled.

    Args:
        kept: layers that the files hold as floats.

    Raises:
        CheckpointError: ``settings`` describe anything but NF4, or rows of a joined weight are no
            whole blocks.
    """
    _check(settings)
    double = bool(settings.get("bnb_4bit_use_double_quant", False))
    found = {name: layer for name, layer in linear_layers(model).items() if name not in kept}
    weights = {f"{name}.weight": layer.weight for name, layer in found.items()}
    joined = {
        own.removesuffix(".weight")
        for place in places(find_family(model.config.model_type), model.config, weights).values()
        if _is_split(place)
        for own in place.ours
    }
    for name, layer in found.items():
        if name in joined and layer.in_features % BLOCK:
            raise CheckpointError(
                f"quantization_config: rows of {name!r} have {layer.in_features} weights, no whole "
                f"blocks of {BLOCK}, so it cannot be told apart from what it is stored with."
            )
        parent, _, child = name.rpartition(".")
        with torch.device(layer.weight.device):
            nf4 = Nf4Linear(
                layer.in_features,
                layer.out_features,
                layer.bias is not None,
                layer.weight.dtype,
                # The constants of a joined weight belong to all of it; here each part has its own.
                double and name not in joined,
            )
        setattr(model.get_submodule(parent), child, nf4)


def _check(settings: Mapping[str, Any]) -> None:
    expected = {
        "load_in_4bit": (settings.get("load_in_4bit"), True),
        "bnb_4bit_quant_type": (settings.get("bnb_4bit_quant_type"), "nf4"),
        "bnb_4bit_quant_storage": (settings.get("bnb_4bit_quant_storage", "uint8"), "uint8"),
    }
    for key, (found, wanted) in expected.items():
        if found != wanted:
            raise CheckpointError(
                f"quantization_config: {key} is {found!r}; of {QUANT_METHOD}, hone reads "
                f"{wanted!r} (NF4 weights)."
            )


class _Layer(NamedTuple):
    """A weight of the files.

    Attributes:
        rows: N of all the layers here that it fills.
        inputs: K.
        split: it is taken apart, or turned, to fill them.
        turned: files of floats hold it as inputs by outputs.
    """

    rows: int
    inputs: int
    split: bool
    turned: bool


def _layers(model: Model, layers: Mapping[str, nn.Linear | Nf4Linear]) -> dict[str, _Layer]:
    """The weights of ``layers`` in the files, by their names there."""
    family, config, found = find_family(model.config.model_type), model.config, {}
    # A column stands for each weight: what becomes of it shows what becomes of the whole.
    columns = {
        f"{name}.weight": torch.empty(layer.out_features, 1, device="meta")
        for name, layer in layers.items()
    }
    for name, place in places(family, config, columns).items():
        rows = sum(len(columns[own]) for own in place.ours)
        inputs = layers[place.ours[0].removesuffix(".weight")].in_features
        turned = place.read(columns, config).shape != (rows, 1)
        found[name] = _Layer(rows, inputs, _is_split(place), turned)
    return found


def _is_split(place: Place) -> bool:
    return isinstance(place.rule, Rule) and place.rule.split is not None


def decoder(model: Model) -> Decode:
    """How the tensors of NF4 files fill ``model``, whose layers are replaced."""
    return _Decoder(model).decode


class _Decoder:
    def __init__(self, model: Model) -> None:
        self._family = find_family(model.config.model_type)
        nf4 = {name: each for name, each in model.named_modules() if isinstance(each, Nf4Linear)}
        self._layers = _layers(model, nf4)
        self._gathered: dict[str, dict[str, Tensor]] = {}

    def decode(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        found = _TENSOR.fullmatch(name)
        if found is None:
            return {name: tensor}
        stem, part = found.groups()
        weight = known_name(self._family, f"{stem}.weight", self._layers)
        if weight is None:
            # What is to be said of a layer that is not here is said of its weight.
            return {name: tensor} if part is None else {}
        layer = self._layers[weight]
        codes_shape, absmax_shape, _ = layout(layer.rows, layer.inputs)
        if part is None:
            return {weight: _laid_out(tensor, codes_shape, layer)}
        if part == "quant_map":
            if not torch.equal(tensor.float(), torch.tensor(LEVELS)):
                raise CheckpointError(f"{name!r} holds other levels than those of NF4.")
            return {}
        if part.startswith("quant_state"):
            part, tensors = "nested_offset", _offset(name, tensor, layer)
            if tensors is None:
                return {}
            tensor = tensors
        if not layer.split:
            tensor = _laid_out(tensor, absmax_shape, layer) if part == "absmax" else tensor
            return {f"{weight}_{part}": tensor}
        absmax = self._absmax(weight, part, tensor, layer)
        return (
            {} if absmax is None else {f"{weight}_absmax": _laid_out(absmax, absmax_shape, layer)}
        )

    def _absmax(self, weight: str, part: str, tensor: Tensor, layer: _Layer) -> Tensor | None:
        """The magnitudes of a split weight, in float, once the files have shown all that they are
        computed from.
        """
        parts = self._gathered.setdefault(weight, {})
        parts[part] = tensor
        if part == "absmax" and tensor.dtype != torch.uint8:
            return tensor
        if not {"absmax", *_NESTED} <= parts.keys():
            return None
        del self._gathered[weight]
        nested = Nested(*(parts[name] for name in _NESTED))
        codes = parts["absmax"]  # none are needed
        return block_absmax(Nf4State(codes, codes, (layer.rows, layer.inputs), nested))


def _laid_out(tensor: Tensor, shape: tuple[int, ...], layer: _Layer) -> Tensor:
    """``tensor`` as it is here; of a turned weight, as its place turns it once more."""
    if tensor.numel() != torch.Size(shape).numel():
        return tensor  # of the wrong shape, which is reported by name
    tensor = tensor.reshape(shape)
    return tensor.t() if layer.turned else tensor


def _offset(name: str, tensor: Tensor, layer: _Layer) -> Tensor | None:
    """The mean of the magnitudes, if they are quantized, from the JSON of a layer."""
    try:
        values = json.loads(bytes(tensor.flatten().tolist()))
        expected = {"quant_type": "nf4", "blocksize": BLOCK, "shape": [layer.rows, layer.inputs]}
        if "nested_blocksize" in values:
            expected["nested_blocksize"] = NESTED_BLOCK
        for key, wanted in expected.items():
            if values[key] != wanted:
                raise CheckpointError(f"{name!r}: {key} is {values[key]!r}; expected {wanted!r}.")
        offset = values.get("nested_offset")
        return None if offset is None else torch.tensor(float(offset), dtype=torch.float32)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{name!r} does not describe an NF4 weight ({error!r}).") from error


def nf4_file_settings(model: Model) -> dict[str, Any]:
    """``quantization_config`` of the NF4 files of a float ``model``."""
    skipped = float_layers(model, four_bit_layers(model))
    # transformers makes linear layers of stacked experts, or has, depending on its version.
    tensors = own_tensors(model)
    for name in places(find_family(model.config.model_type), model.config, tensors):
        before, inside, _ = name.partition(".experts.")
        if inside:
            skipped.add(f"{before}.experts")
    return nf4_settings(skipped=skipped)


def nf4_tensors(model: Model) -> dict[str, Tensor]:
    """What NF4 files hold of the weights of the layers of a float ``model`` that are quantized.

    Raises:
        CheckpointError: a weight holds NaN or infinity.
    """
    layers = four_bit_layers(model)
    weights = {f"{name}.weight": layer.weight.detach() for name, layer in layers.items()}
    described, found = _layers(model, layers), dict[str, Tensor]()
    for name, place in places(find_family(model.config.model_type), model.config, weights).items():
        weight = place.read(weights, model.config)
        weight = weight.t().contiguous() if described[name].turned else weight
        state = nf4_quantize(weight)
        try:
            check_finite(state)
        except CheckpointError as error:
            raise CheckpointError(f"{name!r}: {error}") from error
        found |= _as_stored(name, state, weight.dtype)
    return found


def _as_stored(name: str, state: Nf4State, dtype: torch.dtype) -> dict[str, Tensor]:
    """A weight under the names of the files."""
    said = {
        "quant_type": "nf4",
        "blocksize": BLOCK,
        "dtype": dtype_name(dtype),
        "shape": list(state.shape),
    }
    parts = {"absmax": state.absmax.flatten(), "quant_map": torch.tensor(LEVELS)}
    if state.nested is not None:
        said["nested_blocksize"] = NESTED_BLOCK
        said["nested_dtype"] = "float32"
        said["nested_offset"] = float(state.nested.offset)
        parts["nested_absmax"] = state.nested.absmax
        parts["nested_quant_map"] = state.nested.quant_map
    parts[_JSON] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    return {name: state.codes.reshape(-1, 1)} | {f"{name}.{key}": t for key, t in parts.items()}
