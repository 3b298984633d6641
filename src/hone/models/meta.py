"""Models without memory: their layers, names and shapes, and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NoInitialValues(TorchFunctionMode):
    """Leaves out the random values that PyTorch's layers give to their weights.

    On the meta device they have no effect, and computing that takes a second of imports.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs.get("tensor", args[0] if args else None)
        return func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Tensors that are made here are on the meta device."""
    with torch.device("meta"), _NoInitialValues():
        yield
