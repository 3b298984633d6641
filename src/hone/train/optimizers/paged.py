"""State that waits in the host's memory and visits the device for its update.

On a CUDA device the tensors are pinned, so that copies run on the device's own queue at the full
rate of the bus; on a CPU they are where they would be anyway, and nothing is copied.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# Weights at a time. On a CPU, temporaries of 1 MB, which the cache holds while the calls' own time
# no longer counts; on a device, of 64 MB, enough to keep it busy.
_PART = {"cpu": 2**18, "cuda": 2**24}


def new_state(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, paged: bool
) -> Tensor:
    """Zeros of ``shape`` on ``device``, or for it in the host's memory."""
    if paged and device.type == "cuda":
        return torch.zeros(shape, dtype=dtype, pin_memory=True)
    return torch.zeros(shape, dtype=dtype, device=device)


def is_visitor(state: Tensor, device: torch.device) -> bool:
    """Whether ``state`` waits elsewhere than on ``device``."""
    return state.device != device


@contextmanager
def visiting(states: Sequence[Tensor], device: torch.device) -> Iterator[list[Tensor]]:
    """``states`` on ``device`` for the time of the block; changes to visitors are copied back.

    The copies are queued, not waited for: call :func:`settle` before the host reads them.
    """
    guests = [
        state.to(device, non_blocking=True, copy=True) if is_visitor(state, device) else state
        for state in states
    ]
    yield guests
    for state, guest in zip(states, guests, strict=True):
        if guest is not state:
            state.copy_(guest, non_blocking=True)


def settle(device: torch.device) -> None:
    """Wait until what was queued for ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def part_size(device: torch.device) -> int:
    """How many weights to update at a time, a multiple of every block size."""
    return _PART.get(device.type, _PART["cuda"])
