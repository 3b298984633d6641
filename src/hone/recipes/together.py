"""Several processes that train in one run, of which the first does everything else."""

from collections.abc import Callable
from pathlib import Path

from hone.parallel import Processes


class Together:
    """Has the other processes train when the first one does, and only then.

    The first process alone knows whether a run's training is done already; the others wait to be
    told.
    """

    def __init__(self, processes: Processes, train: Callable[[Path], None]) -> None:
        """``train(folder)`` is what every process does at the same time."""
        self._processes, self._train = processes, train
        self._told = False

    def train(self, folder: Path) -> None:
        """In the first process: train, with the others."""
        self._told = True
        self._processes.any(True)
        self._train(folder)

    def finish(self) -> None:
        """In the first process, at the end: let the others go if there was nothing to train."""
        if not self._told:
            self._processes.any(False)

    def follow(self, folder: Path) -> None:
        """In the other processes: train if the first one does."""
        if self._processes.any(False):
            self._train(folder)
