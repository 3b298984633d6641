"""How much memory a piece of work takes, as the allocator of tensors counts it."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Peak(Generic[T]):
    """What a piece of work took.

    Attributes:
        bytes: most bytes that tensors held at one time, above those held before.
        held: bytes of what the work made and did not free: its result, gradients and the like.
        result: what the work returned.
    """

    bytes: int
    held: int
    result: T


def measure_peak(work: Callable[[], T], device: torch.device | str = "cpu") -> Peak[T]:
    """Run ``work`` once, counting the memory of tensors on ``device``.

    What operators take and free inside themselves counts. On a CPU every operator is recorded,
    which takes about 0.1 ms for each. Not seen there: what other threads take, the scratch memory
    of matrix libraries, which they do not get from PyTorch, and that a tensor made before ``work``
    is freed in it.
    """
    if torch.device(device).type != "cpu":
        return _measure_cuda(work, torch.device(device))
    # The recorder would report its own start and stop on the error stream.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.autograd.profiler.profile(profile_memory=True) as recorder:
        result = work()
    assert recorder.kineto_results is not None
    most, held = 0, 0
    # By address: PyTorch's own running total goes wrong when a tensor that was made under one
    # recorder is freed under none.
    sizes: dict[int, int] = {}
    for _, address, size in sorted(_changes(recorder.kineto_results.experimental_event_tree())):
        if size > 0:
            sizes[address] = size
            held += size
            most = max(most, held)
        else:
            held -= sizes.pop(address, 0)
    return Peak(most, held, result)


def _changes(events: list[Any]) -> Iterator[tuple[int, int, int]]:
    """When, at which address and how many bytes were taken, or given back when negative."""
    for event in events:
        fields = event.extra_fields
        allocation = isinstance(fields, torch._C._profiler._ExtraFields_Allocation)
        if allocation and fields.device.type == "cpu":
            yield event.start_time_ns, fields.ptr, fields.alloc_size
        yield from _changes(event.children)


def _measure_cuda(work: Callable[[], T], device: torch.device) -> Peak[T]:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = work()
    torch.cuda.synchronize(device)
    most, after = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
    return Peak(most - before, after - before, result)
