"""What a step's gradients are the gradients of."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from torch import Tensor, nn

from hone.parallel import Processes
from hone.train.batches import TensorBatch


class Objective(Protocol):
    """Computes the gradients of one step."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """The settings that the gradients depend on, as JSON; ``objective`` is its name."""

    def backward(
        self,
        model: nn.Module,
        parts: Sequence[TensorBatch],
        divisor: float,
        after_part: Callable[[], None],
        processes: Processes,
    ) -> float:
        """Add the gradients of (summed loss of ``parts``) / ``divisor`` to the model's weights.

        Args:
            parts: what this process computes of the step, each part small enough for the memory;
                there may be none of them.
            divisor: what the whole step trains (over all parts and processes), divided by the scale
                of the loss where there is one.
            after_part: to be called after every backward pass that adds to the gradients; it takes
                them to where they are summed in float32.
            processes: those that compute the step together; their gradients are summed afterwards.

        Returns:
            The summed loss of ``parts``, not divided.
        """


class SummedLoss:
    """The sum of ``model.packed_loss(part)``: whatever is scored token by token or text by text."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """See :class:`Objective`."""
        return {"objective": "summed loss"}

    def backward(
        self,
        model: nn.Module,
        parts: Sequence[TensorBatch],
        divisor: float,
        after_part: Callable[[], None],
        processes: Processes,
    ) -> float:
        """See :class:`Objective`."""
        loss_of = cast(Callable[[TensorBatch], Tensor], model.packed_loss)
        losses = []
        for part in parts:
            loss = loss_of(part)
            (loss / divisor).backward()
            after_part()
            losses.append(loss.detach())
        # Read at the end: a device has its next part before it is asked how the last one went.
        return sum((loss.item() for loss in losses), 0.0)
