"""What every rule of update is to the optimizer, and which weights decay."""

from typing import Protocol

from torch import Tensor

# No weights of a product, though some have two dimensions: decay would change how fast a state
# space forgets.
_UNDECAYED = ("A_log", "D")


class Rule(Protocol):
    """Updates float32 weights from their ``.grad``."""

    def step(self, rate: float) -> None:
        """Update every weight; ``rate`` is the learning rate of this step."""

    def state(self) -> dict[str, Tensor]:
        """All that a step reads and changes besides the weights, by a unique name, as views."""


def decays(name: str, weight: Tensor) -> bool:
    """Whether weight decay is for this weight: for matrices, not for norms and biases."""
    return weight.ndim >= 2 and name.rpartition(".")[2] not in _UNDECAYED
