"""``metrics.jsonl``: one line per report of a run, none lost and none twice across a resume."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hone.core.errors import CheckpointError
from hone.core.files import explain_os_error, make_directory


def plain(value: Any) -> Any:
    """``value`` as JSON has it: numbers of NumPy and torch as Python's, None for one not finite."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsLog:
    """Appends JSON lines to a file that starts out with exactly ``bytes_kept`` bytes."""

    def __init__(self, path: Path, bytes_kept: int = 0) -> None:
        """Open ``path``, cut off what was written after the checkpoint that is resumed.

        Raises:
            CheckpointError: the file is shorter than when the checkpoint was written.
            HoneError: it cannot be written.
        """
        self.path = path
        make_directory(path.parent)
        try:
            # Without a buffer nothing is left that could be written again after a failure.
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__
            size = os.fstat(self._file.fileno()).st_size
            if size < bytes_kept:
                self._file.close()
                raise CheckpointError(
                    f"{path} has {size} bytes, and had {bytes_kept} when the checkpoint was "
                    "written: it was changed since. Put it back, or start over with --fresh."
                )
            self._file.truncate(bytes_kept)
        except OSError as error:
            raise explain_os_error(error, path) from error
        self.bytes_written = bytes_kept

    def records(self) -> list[dict[str, Any]]:
        """The lines that are in the file.

        Raises:
            CheckpointError: they are not as they were written.
        """
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise CheckpointError(
                f"{self.path} was changed since the checkpoint was written: {error}. Put it back, "
                "or start over with --fresh."
            ) from error

    def write(self, record: dict[str, Any]) -> None:
        """Append one line; numbers that are not finite become null, as JSON has no others.

        Raises:
            CapacityError: the disk is full; there is no part of the line in the file.
        """
        line = (json.dumps(plain(record), ensure_ascii=False) + "\n").encode()
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self.bytes_written)
            raise explain_os_error(error, self.path) from error
        self.bytes_written += len(line)

    def sync(self) -> int:
        """Make all lines safe on the disk; returns their number of bytes."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        return self.bytes_written

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
