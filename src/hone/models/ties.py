"""Tied weights in files, which may hold the one tensor under any of its names, or under several."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hone.core.errors import CheckpointError
from hone.models.families import find_family
from hone.models.model import Model
from hone.models.weights import aliases, known_name, places

_OUTPUT = "lm_head.weight"


def check_ties(model: Model, files: Sequence[Path]) -> tuple[bool, dict[str, str]]:
    """Compare what ``files`` hold with what ``model`` shares.

    Returns:
        Whether the output layer is one of its own in the files, whatever ``config.json`` says; and
        by its other name, the usual name of each tied weight that has only another name there.

    Raises:
        CheckpointError: a file cannot be read, or holds different weights where there is one here.
    """
    family = find_family(model.config.model_type)
    tied, weights = aliases(family, model), model.state_dict()
    if not tied:
        return False, {}
    output = places(family, model.config, {_OUTPUT: weights[_OUTPUT]} if _OUTPUT in weights else {})
    held: dict[str, tuple[Path, str]] = {}
    for file in files:
        for name in _names(file):
            if (known := known_name(family, name, {*tied, *tied.values()})) is not None:
                held[known] = file, name
    apart, stand_ins = False, dict[str, str]()
    for usual in dict.fromkeys(tied.values()):
        every = (usual, *(alias for alias in tied if tied[alias] == usual))
        first, *others = [name for name in every if name in held] or [usual]
        if first != usual:
            stand_ins[first] = usual
        for other in others:
            if _same(held[first], held[other]):
                continue
            if other not in output:
                raise CheckpointError(
                    f"{held[other][0]}: the weights {held[first][1]!r} and {held[other][1]!r} "
                    f"differ; {model.config.model_type!r} has one for both."
                )
            apart = True
    return apart, stand_ins


def read_error(file: Path, error: Exception) -> CheckpointError:
    """The error for a file that is no whole safetensors file."""
    return CheckpointError(
        f"{file} is truncated or no safetensors file ({error}); copy or save it again."
    )


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as handle:
            return list(handle.keys())
    except (SafetensorError, OSError) as error:
        raise read_error(file, error) from error


def _same(one: tuple[Path, str], other: tuple[Path, str]) -> bool:
    """Whether two tensors hold the same bits, NaN included."""
    first, second = _read(*one), _read(*other)
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(first.view(torch.uint8), second.view(torch.uint8))


def _read(file: Path, name: str) -> Tensor:
    try:
        with safe_open(file, framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(name)
            return tensor
    except (SafetensorError, OSError) as error:
        raise read_error(file, error) from error
