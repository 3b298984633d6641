"""Files that appear whole or not at all.

Everything is written to a temporary name beside its target, flushed to the disk and renamed, so a
killed process or a full disk leaves either the old content or the new, never a part.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hone.core.errors import CapacityError, DataError, HoneError

_TEMPORARY = ".hone-tmp-"


def _temporary_name(path: Path) -> Path:
    return path.parent / f"{_TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}"


def explain_os_error(error: OSError, path: Path, doing: str = "write") -> HoneError:
    """The sentence for an ``OSError`` met while ``doing`` something to ``path``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CapacityError(
            f"The disk that holds {path} is full. Free some space and run the same command again: "
            "what was finished is kept."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return HoneError(
            f"Cannot {doing} {path}: permission denied. Choose a place that you may write to."
        )
    return HoneError(f"Cannot {doing} {path}: {error.strerror or error}.")


def make_directory(path: Path) -> None:
    """Create ``path`` and its parents; raises :class:`HoneError` with a sentence if it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise HoneError(f"Cannot create the folder {path}: a file is in the way.") from error
    except OSError as error:
        raise explain_os_error(error, path, "create") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; when the block succeeds its file becomes ``path``, else it is gone.

    Raises:
        CapacityError: the disk is full.
        HoneError: the target cannot be written.
    """
    target = Path(path)
    make_directory(target.parent)
    temporary = _temporary_name(target)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    except OSError as error:
        raise explain_os_error(error, target) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory; when the block succeeds it becomes ``path``.

    A directory that was there is replaced: it is moved aside, and removed after the new one is in
    place. Between the two renames a kill leaves it under its temporary name, which
    :func:`recover_dir` puts back.

    Raises:
        CapacityError: the disk is full.
        HoneError: the target cannot be written.
    """
    target = Path(path)
    make_directory(target.parent)
    temporary = _temporary_name(target)
    old = target.parent / f"{_TEMPORARY}old-{target.name}"
    try:
        temporary.mkdir()
        yield temporary
        for file in sorted(temporary.rglob("*")):
            _sync(file)
        _sync(temporary)
        recover_dir(target)
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise explain_os_error(error, target) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover_dir(path: Path) -> None:
    """Undo a replacement of ``path`` that was killed half way (see :func:`atomic_dir`)."""
    old = path.parent / f"{_TEMPORARY}old-{path.name}"
    if old.exists() and path.exists():
        shutil.rmtree(old)
    elif old.exists():
        os.replace(old, path)


def remove_leftovers(directory: Path) -> None:
    """Delete temporary files that a killed process left in ``directory``."""
    for leftover in directory.glob(f"{_TEMPORARY}*"):
        if leftover.name.startswith(f"{_TEMPORARY}old-"):
            recover_dir(directory / leftover.name.removeprefix(f"{_TEMPORARY}old-"))
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as readable JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; raises :class:`DataError` that names the file and the line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from error


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
