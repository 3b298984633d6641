"""When waiting requests may join those that run: in batches, or at any step.

``static`` and ``dynamic`` batching are what servers did before Orca (Yu et al. 2022, section 3.1)
scheduled single steps, which is ``continuous``; they are here to be compared with.
"""

from typing import Literal, Protocol, get_args

from hone.core.errors import ConfigError
from hone.core.nearest import nearest
from hone.engine.waiting import WaitingLine

PolicyName = Literal["continuous", "dynamic", "static"]


class Policy(Protocol):
    """Says whether the next in line may start now."""

    def admits(self, now: float, running: int, waiting: WaitingLine) -> bool:
        """Whether the first of ``waiting`` may join ``running`` others."""

    def admitted(self) -> None:
        """One has joined."""

    def delay(self, now: float, running: int, waiting: WaitingLine) -> float:
        """Seconds until :meth:`admits` may change its mind with nothing new; 0 for now."""


class Continuous:
    """Whoever finds room starts."""

    def admits(self, now: float, running: int, waiting: WaitingLine) -> bool:
        """Always."""
        return True

    def admitted(self) -> None:
        """Nothing to note."""

    def delay(self, now: float, running: int, waiting: WaitingLine) -> float:
        """None."""
        return 0.0


class Batches:
    """A batch starts when the one before has ended, to its last member, and takes ``most``; it
    waits up to ``wait_s`` for these to come.
    """

    def __init__(self, most: int, wait_s: float) -> None:
        """No batch runs yet."""
        self._most, self._wait_s = most, wait_s
        self._left = 0

    def admits(self, now: float, running: int, waiting: WaitingLine) -> bool:
        """While the batch is being filled."""
        if not running:
            self._left = self._most if self._ready(now, waiting) else 0
        self._left = min(self._left, len(waiting))
        return self._left > 0

    def admitted(self) -> None:
        """One place less."""
        self._left -= 1

    def delay(self, now: float, running: int, waiting: WaitingLine) -> float:
        """Until the batch has waited long enough."""
        if running or not waiting or self._ready(now, waiting):
            return 0.0
        return waiting.oldest() + self._wait_s - now

    def _ready(self, now: float, waiting: WaitingLine) -> bool:
        return len(waiting) >= self._most or now - waiting.oldest() >= self._wait_s


def make_policy(name: str, most: int, wait_s: float) -> Policy:
    """The policy ``name`` for batches of ``most``.

    Raises:
        ConfigError: there is no such policy.
    """
    if name == "continuous":
        return Continuous()
    if name == "static":
        return Batches(most, 0.0)
    if name == "dynamic":
        return Batches(most, wait_s)
    raise ConfigError(
        f"There is no batching policy {name!r}. {nearest(name, get_args(PolicyName))}"
    )
