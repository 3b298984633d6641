"""What a step is computed on: a packed batch as tensors.

Suffix legend: N tokens of all sequences behind one another, M tokens of the sources, B sequences.
"""

from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from hone.data import Batch


class Batches(Protocol):
    """Batches by step, e.g. :class:`hone.data.PackedBatches`."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the batch of any step does."""

    def at(self, step: int) -> Batch:
        """The batch of ``step``, from 0; threads may ask for several at once."""


@dataclass(frozen=True, slots=True)
class TensorBatch:
    """A :class:`hone.data.Batch` as tensors; see there."""

    input_ids_N: Tensor  # noqa: N815
    position_ids_N: Tensor  # noqa: N815
    cu_seqlens: Tensor
    max_length: int
    labels_N: Tensor  # noqa: N815
    n_trained: int
    source_ids_M: Tensor | None = None  # noqa: N815
    source_cu_seqlens: Tensor | None = None
    targets_B: Tensor | None = None  # noqa: N815

    @classmethod
    def of(cls, batch: Batch, device: torch.device | str = "cpu") -> Self:
        """Copy ``batch`` to ``device``."""
        values: dict[str, Any] = {}
        for field in fields(batch):
            value = getattr(batch, field.name)
            is_array = isinstance(value, np.ndarray)
            values[field.name] = torch.from_numpy(value).to(device) if is_array else value
        return cls(**values)
