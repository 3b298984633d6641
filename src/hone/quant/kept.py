"""What stays float beside quantized layers in files."""

from collections.abc import Collection

import torch
from torch import Tensor

from hone.models import Model, find_family
from hone.models.weights import in_file, layer_places, linear_layers, own_tensors, places

KEPT_DTYPE = torch.bfloat16


def float_layers(model: Model, quantized: Collection[str]) -> set[str]:
    """Linear layers of ``model`` that are not among ``quantized``, by their names in the files."""
    config = model.config
    family = find_family(config.model_type)
    kept = [name for name in linear_layers(model) if name not in quantized]
    names = set(layer_places(family, model, kept))
    # Whatever its name in the files (GPT-NeoX: embed_out), others build it under this one.
    names |= {name for name in kept if name == "lm_head"}
    for name, tensor in model.carried.items():
        if name.endswith(".weight") and tensor.ndim == 2:
            names.add(in_file(family, config, name).removesuffix(".weight"))
    return names


def float_tensors(model: Model, quantized: Collection[str]) -> dict[str, Tensor]:
    """What files hold besides the weights of the layers ``quantized``."""
    config = model.config
    family = find_family(config.model_type)
    weights = {f"{name}.weight" for name in quantized}
    kept = {
        name: tensor.to(KEPT_DTYPE)
        for name, tensor in own_tensors(model).items()
        if name not in weights
    }
    found = {
        name: place.read(kept, config).contiguous()
        for name, place in places(family, config, kept).items()
    }
    return found | {
        in_file(family, config, name): tensor.to(KEPT_DTYPE)
        for name, tensor in model.carried.items()
    }
