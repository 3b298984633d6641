"""One run at a time in a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hone.core.errors import HoneError
from hone.core.files import make_directory


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make ``folder`` and hold its lock; the system gives it back even when the process is killed.

    Raises:
        HoneError: another run has it, or the folder cannot be made.
    """
    make_directory(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise HoneError(
            f"Another run is training in {folder}. Wait for it, or choose another folder."
        ) from error
    except OSError:
        pass  # a disk that cannot lock folders
    try:
        yield
    finally:
        os.close(descriptor)
