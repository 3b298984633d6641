"""Filling a model with the tensors of files, each checked, and an account of what was found."""

import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hone.core.errors import CheckpointError
from hone.models.checkpoint import dtype_name
from hone.models.config import Head
from hone.models.families import find_family
from hone.models.model import Model
from hone.models.ties import read_error
from hone.models.weights import Place, aliases, known_name, own_tensors, places

# What weights may be in files; shorter floats come with scales that only their own methods know.
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# The weights of heads; all others belong to the body.
HEAD_PARTS = ("lm_head", "score", "transform")

# What a tensor of a file holds, by the names that are expected: by its own, or as several, or none.
Decode = Callable[[str, Tensor], dict[str, Tensor]]


def as_named(model: Model) -> Decode:
    """How files are read that hold tensors as they are."""
    return lambda name, tensor: {name: tensor}


@dataclass(frozen=True, slots=True)
class Expected:
    """A tensor that the files should hold."""

    place: Place
    shape: tuple[int, ...]
    is_float: bool
    dtype: torch.dtype


def expected_tensors(model: Model) -> dict[str, Expected]:
    """By its name in the files, what each should be, from a model on the meta device."""
    tensors = own_tensors(model)
    family, found = find_family(model.config.model_type), {}
    for name, place in places(family, model.config, tensors).items():
        tensor = place.read(tensors, model.config)
        found[name] = Expected(place, tuple(tensor.shape), tensor.is_floating_point(), tensor.dtype)
    return found


class _Weight:
    """Stands for the weight of a layer that stores a float weight in another form."""

    def __init__(self, layer: nn.Module) -> None:
        self._fill: Callable[[Tensor], None] = layer.fill  # type: ignore[assignment]

    def copy_(self, weight: Tensor) -> None:
        self._fill(weight)


class Filler:
    """Fills a model from files and keeps account of what was found."""

    def __init__(
        self,
        model: Model,
        expected: dict[str, Expected],
        decode: Decode,
        spare: set[str],
        stand_ins: dict[str, str],
        path: Path,
    ) -> None:
        self._model, self._expected, self._path = model, expected, path
        self._decode, self._stand_ins = decode, stand_ins
        tensors = own_tensors(model)
        self._tensors: dict[str, Tensor | _Weight] = dict(tensors)
        for each in expected.values():
            for own in each.place.ours if each.is_float else ():
                if not tensors[own].is_floating_point():
                    self._tensors[own] = _Weight(model.get_submodule(own.removesuffix(".weight")))
        self._family = find_family(model.config.model_type)
        self._spare = spare | aliases(self._family, model).keys()
        self._carried = set(self._family.carried(model.config))
        self._known = {*expected, *self._carried, *stand_ins}
        self._missing = dict.fromkeys(expected)
        self._new: set[str] = set()

    def renew(self, part: str) -> None:
        """Leave the weights of a part of the head as new, whatever the files hold."""
        self._new = {
            name
            for name, expected in self._expected.items()
            if any(ours.startswith(f"{part}.") for ours in expected.place.ours)
        }

    def fill(self, file: Path) -> None:
        """Copy every tensor of ``file`` to its place."""
        try:
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 (a handle is not iterable)
                    for part, tensor in self._parts(name, handle.get_tensor(name), file):
                        self._take(part, tensor, file)
        except (SafetensorError, OSError) as error:
            raise read_error(file, error) from error

    def _parts(self, name: str, tensor: Tensor, file: Path) -> Iterable[tuple[str, Tensor]]:
        try:
            return self._decode(name, tensor).items()
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from error

    def _take(self, name: str, tensor: Tensor, file: Path) -> None:
        known = self._known_as(name)
        if known in self._new:
            return
        if known in self._carried:
            if tensor.dtype in FLOATS:  # codes mean nothing without their scale
                self._model.carried[known] = tensor
        elif known is not None:
            self._copy(tensor, name, known, file)
        elif not self._may_be_left(name):
            raise CheckpointError(f"{file}: config.json has no place for the weight {name!r}.")

    def _known_as(self, name: str) -> str | None:
        found = known_name(self._family, name, self._known)
        return None if found is None else self._stand_ins.get(found, found)

    def _may_be_left(self, name: str) -> bool:
        if known_name(self._family, name, self._spare) is not None:
            return True
        return any(re.search(pattern, name) for pattern in self._family.ignored)

    def _copy(self, tensor: Tensor, name: str, known: str, file: Path) -> None:
        expected = self._expected[known]
        if tuple(tensor.shape) != expected.shape:
            raise CheckpointError(
                f"{file}: the weight {name!r} has the shape {list(tensor.shape)}; "
                f"config.json asks for {list(expected.shape)}."
            )
        # A number is rounded when it is copied to another float, but wraps in another integer.
        fits = tensor.dtype in FLOATS if expected.is_float else tensor.dtype == expected.dtype
        if not fits:
            raise CheckpointError(
                f"{file}: the weight {name!r} is {dtype_name(tensor.dtype)}; config.json "
                f"asks for {dtype_name(expected.dtype)}."
            )
        if expected.is_float and not bool(torch.isfinite(tensor.sum())):
            self._check_finite(tensor, name, file)
        try:
            with torch.no_grad():
                expected.place.write(tensor, self._tensors, self._model.config)
        except CheckpointError as error:
            raise CheckpointError(f"{file}: the weight {name!r}: {error}") from error
        self._missing.pop(known, None)

    def _check_finite(self, tensor: Tensor, name: str, file: Path) -> None:
        # A finite sum means finite terms; large ones may overflow in it.
        if not bool(torch.isfinite(tensor).all()):
            warnings.warn(f"{file}: {name!r} holds NaN or infinity.", stacklevel=5)

    def finish(self, stored: Head | None) -> None:
        """Initialise a head that was asked for and is not in the files; refuse other gaps."""
        new = set[str]()
        for name in self._missing:
            ours = set(self._expected[name].place.ours)
            in_head = all(own.partition(".")[0] in HEAD_PARTS for own in ours)
            if name not in self._new and (self._model.head == stored or not in_head):
                raise CheckpointError(f"{self._path}: the weight {name!r} is in none of its files.")
            new |= ours
        if new:
            self._model.initialise(seed=0, only=new)
            warnings.warn(
                f"{self._path} has no weights for the head {self._model.head!r}: "
                f"{', '.join(sorted(new))} are new and must be trained.",
                stacklevel=3,
            )
