"""What a training pass keeps for its backward pass, and what that computes again instead.

Between the passes autograd keeps every tensor that some gradient needs. A function that a keeper
calls is a piece (Chen et al. 2016, section 4.1): of what was made inside of it nothing is kept, and
when the backward pass asks for it, the piece runs once more from its inputs. It runs as it did
before, with gradients, so that every bit is the same. Whole blocks can be pieces, or (selective
recomputation, Korthikanti et al. 2022, section 5) what is cheap beside a product: norms,
activations, what attention does between its two products with weights.
"""

import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from hone.core.errors import ConfigError

Mode = Literal["none", "blocks", "selective"]

# A tensor made inside of a piece is kept all the same if it is smaller than the piece's first
# input by this factor: a scale for each row is not worth a second computation.
_SMALL = 32
# Tensors of fewer bytes do not travel: waiting for the bus takes longer than they save.
_LEAST_OFFLOADED = 1 << 16


class Keeper:
    """Keeps whatever autograd asks for."""

    def inside(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """``function(*inputs)``, a piece whose outputs are kept where they are needed."""
        return function(*inputs)

    def cheap(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """``function(*inputs)``, a piece whose outputs are computed again too.

        It draws no random numbers.
        """
        return function(*inputs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Recomputation:
    """How a body saves memory in training; see ``Model.set_activation_checkpointing``.

    Raises:
        ConfigError: there is no such mode, or ``every`` is not a positive number.
    """

    mode: Mode = "none"
    every: int = 1
    offload: bool = False

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            known = ", ".join(get_args(Mode))
            raise ConfigError(f"Activation checkpointing is one of {known}, not {self.mode!r}.")
        if self.every < 1:
            raise ConfigError(f"Every how many blocks must be at least 1, not {self.every}.")

    def keeper(self, weights: Iterable[Tensor], device: torch.device) -> Keeper:
        """The keeper of one pass through layers of these ``weights``."""
        offload = self.offload and device.type != "cpu"
        if not torch.is_grad_enabled() or (self.mode == "none" and not offload):
            return Keeper()
        return SparingKeeper(weights, offload)


def warn_of_useless_offload() -> None:
    """Say that there is no other memory to move tensors to."""
    warnings.warn(
        "offload_activations does nothing on a CPU: its memory is where they would go.",
        stacklevel=3,
    )


class SparingKeeper(Keeper):
    """Keeps the inputs of pieces, and what is asked for outside of pieces.

    With ``offload`` that waits in the host's memory. Autograd asks while the keeper is entered.
    """

    def __init__(self, weights: Iterable[Tensor], offload: bool = False) -> None:
        """``weights``: those of the layers, which stay where they are anyway."""
        self._weights = {_pointer(weight) for weight in weights}
        self._offload = offload
        # By address, which another tensor may have when the storage is no more.
        self._outcomes: dict[int, tuple[StorageWeakRef, _Output]] = {}
        self._copies: dict[tuple[Any, ...], tuple[StorageWeakRef, _OnHost]] = {}
        self._entered = ExitStack()

    def __enter__(self) -> Self:
        self._entered.enter_context(saved_tensors_hooks(self.pack, unpack))
        return self

    def __exit__(self, *error: object) -> None:
        self._entered.close()
        # Pieces know their keeper: it must not hold the others' tensors until the last is run.
        self._outcomes.clear()
        self._copies.clear()

    def inside(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """See :class:`Keeper`."""
        return _Piece(self, function, inputs, draws=True).first_run(inputs)

    def cheap(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """See :class:`Keeper`."""
        piece = _Piece(self, function, inputs, draws=False)
        outputs = piece.first_run(inputs)
        given = {_pointer(x) for x in inputs if isinstance(x, Tensor)}
        for number, output in enumerate(_as_tuple(outputs)):
            if isinstance(output, Tensor) and (pointer := _pointer(output)) not in given:
                storage = StorageWeakRef(output.untyped_storage())
                self._outcomes[pointer] = storage, _Output(piece, number, output.dtype)
        return outputs

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is a weight of the layers, or a part of some."""
        return _pointer(tensor) in self._weights

    def pack(self, tensor: Tensor) -> Any:
        """What autograd holds in place of ``tensor``."""
        # Never the tensor itself: it may hold the very node that holds it.
        alone = tensor.detach()
        if self.is_weight(tensor):
            return alone
        known = self._outcomes.get(_pointer(tensor))
        if known is not None and not known[0].expired() and known[1].dtype == tensor.dtype:
            offset = int(tensor.storage_offset())
            return _View(known[1], tensor.shape, tensor.stride(), offset)
        if self._offload and tensor.nbytes >= _LEAST_OFFLOADED:
            return self._to_host(alone)
        return alone

    def _to_host(self, tensor: Tensor) -> "_OnHost":
        """A copy of ``tensor``, the same one for all that ask for it."""
        key = (_pointer(tensor), tensor.shape, tensor.stride(), tensor.storage_offset())
        known = self._copies.get(key)
        if known is None or known[0].expired():
            known = StorageWeakRef(tensor.untyped_storage()), _OnHost(tensor)
            self._copies[key] = known
        return known[1]


class _Piece:
    """A function that runs again when the backward pass asks for what was made inside of it."""

    def __init__(
        self,
        keeper: SparingKeeper,
        function: Callable[..., Any],
        inputs: tuple[Any, ...],
        draws: bool,
    ) -> None:
        self._keeper, self._function = keeper, function
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        self._size, self._device = tensors[0].numel(), tensors[0].device
        self._inputs = [keeper.pack(x) if isinstance(x, Tensor) else x for x in inputs]
        self._wanted = [isinstance(x, Tensor) and x.requires_grad for x in inputs]
        self._draws = draws
        self._random: Tensor | None = None
        self._made: dict[int, Tensor] = {}

    def first_run(self, inputs: tuple[Any, ...]) -> Any:
        """The outputs, with a graph that holds places in this piece in place of tensors."""
        given = {_pointer(x) for x in inputs if isinstance(x, Tensor)}
        count = 0

        def pack(tensor: Tensor) -> Any:
            nonlocal count
            if not self._is_made_inside(tensor, given):
                return self._keeper.pack(tensor)
            count += 1
            return _Place(self, count - 1)

        before = _random_state(self._device) if self._draws else None
        with saved_tensors_hooks(pack, unpack):
            outputs = self._function(*inputs)
        if before is not None and not torch.equal(before, _random_state(self._device)):
            self._random = before
        return outputs

    def run_again(self) -> tuple[Any, ...]:
        """The outputs without a graph; what is made inside waits for :meth:`take`."""
        inputs = [unpack(packed) for packed in self._inputs]
        inputs = [
            x.detach().requires_grad_(wanted) if isinstance(x, Tensor) else x
            for x, wanted in zip(inputs, self._wanted, strict=True)
        ]
        given = {_pointer(x) for x in inputs if isinstance(x, Tensor)}
        made: list[Tensor] = []

        def note(tensor: Tensor) -> Any:
            if self._is_made_inside(tensor, given):
                made.append(tensor.detach())

        with ExitStack() as during:
            if self._random is not None:
                devices = [self._device] if self._device.type == "cuda" else []
                during.enter_context(torch.random.fork_rng(devices))
                _set_random_state(self._random, self._device)
            during.enter_context(torch.enable_grad())
            during.enter_context(saved_tensors_hooks(note, unpack))
            outputs = _as_tuple(self._function(*inputs))
        self._made = dict(enumerate(made))
        return tuple(x.detach() if isinstance(x, Tensor) else x for x in outputs)

    def take(self, number: int) -> Tensor:
        """What autograd asked for as number ``number``, which it does once."""
        if number not in self._made:
            self.run_again()
        return self._made.pop(number)

    def _is_made_inside(self, tensor: Tensor, given: set[int]) -> bool:
        small = tensor.numel() * _SMALL <= self._size
        return not (small or _pointer(tensor) in given or self._keeper.is_weight(tensor))


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor made inside of a piece."""

    piece: _Piece
    number: int

    def tensor(self) -> Tensor:
        return self.piece.take(self.number)


@dataclass(frozen=True, slots=True)
class _Output:
    """An output of a piece."""

    piece: _Piece
    number: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class _View:
    """What a later layer reads of a piece's output."""

    output: _Output
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int

    def tensor(self) -> Tensor:
        whole: Tensor = self.output.piece.run_again()[self.output.number]
        return whole.as_strided(self.shape, self.stride, self.offset)


class _OnHost:
    """A copy in memory from which a device reads without its processor."""

    def __init__(self, tensor: Tensor) -> None:
        self._device = tensor.device
        pinned = tensor.device.type == "cuda"
        self._copy = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
        self._copy.copy_(tensor, non_blocking=pinned)

    def tensor(self) -> Tensor:
        return self._copy.to(self._device, non_blocking=self._copy.is_pinned())


def unpack(packed: Any) -> Any:
    """The tensor that autograd asked :meth:`SparingKeeper.pack` to keep."""
    return packed.tensor() if isinstance(packed, _Place | _View | _OnHost) else packed


def _pointer(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _as_tuple(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
