"""Where else the lines of ``metrics.jsonl`` may go: TensorBoard, Trackio."""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hone.core.errors import ConfigError

Record = Mapping[str, Any]


class Tracker(Protocol):
    """Receives the lines of a run."""

    def begin(self, kept: Sequence[Record]) -> None:
        """The run begins, or goes on.

        Args:
            kept: the lines that it goes on after. Whatever else was written before belongs to steps
                that will be done again, or to a run that was given up; it is to be forgotten.
        """

    def write(self, record: Record) -> None:
        """A line more; figures are those with a ``step`` and numbers."""

    def close(self) -> None:
        """The run is over for now."""


class TensorBoard:
    """Event files for TensorBoard in a folder of its own."""

    def __init__(self, folder: str | Path) -> None:
        """Name the folder to write to.

        Raises:
            ConfigError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("TensorBoard", "tensorboard") from error
        self._make, self._folder = SummaryWriter, Path(folder)

    def begin(self, kept: Sequence[Record]) -> None:
        """See :class:`Tracker`."""
        # TensorBoard then passes over what earlier files have of this step and later ones.
        purge = max((int(record["step"]) for record in kept), default=-1) + 1
        self._writer = self._make(str(self._folder), purge_step=purge)

    def write(self, record: Record) -> None:
        """See :class:`Tracker`."""
        for name, value in _figures(record).items():
            self._writer.add_scalar(name, value, int(record["step"]))

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._writer.close()


class Trackio:
    """A run in a local Trackio project.

    A run that goes on is written anew under its name: Trackio knows no way to take lines back.
    """

    def __init__(self, folder: str | Path, project: str = "hone", name: str | None = None) -> None:
        """Name the run.

        Args:
            folder: of the run; it tells runs of one name apart.
            project: Trackio's name for a group of runs.
            name: by default that of the folder.

        Raises:
            ConfigError: Trackio is not installed.
        """
        try:
            import trackio
        except ImportError as error:
            raise _missing("Trackio", "trackio") from error
        self._trackio = trackio
        self._folder, self._project = Path(folder).resolve(), project
        self._name = name or self._folder.name

    def begin(self, kept: Sequence[Record]) -> None:
        """See :class:`Tracker`."""
        with _quiet():
            for run in self._runs():
                if (run.config or {}).get("folder") == str(self._folder):
                    run.delete()
            self._run = self._trackio.init(
                self._project,
                self._name,
                config={"folder": str(self._folder)},
                auto_log_cpu=False,
                auto_log_gpu=False,
                embed=False,
            )
        for record in kept:
            self.write(record)

    def _runs(self) -> list[Any]:
        try:
            return list(self._trackio.Api().runs(self._project))
        except ValueError:  # there is no such project yet
            return []

    def write(self, record: Record) -> None:
        """See :class:`Tracker`."""
        self._run.log(_figures(record), step=int(record["step"]))

    def close(self) -> None:
        """See :class:`Tracker`."""
        with _quiet():
            self._trackio.finish()


def _figures(record: Record) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in record.items()
        if name != "step" and isinstance(value, int | float)
    }


def _missing(name: str, package: str) -> ConfigError:
    return ConfigError(
        f"{name} is not installed, so the run cannot be followed there. Install it with "
        f"`pip install {package}`, or follow the run in its metrics.jsonl."
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Standard output is for what the command was asked for."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
