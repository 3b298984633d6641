"""Checkpoints of a run under way: whole, verified, the last few and the best one kept.

Each is a folder ``step-00000100`` with ``state.safetensors`` (every tensor that a step changes) and
``manifest.json`` (counters, settings, and the SHA-256 of the other). A folder without its manifest
is no checkpoint.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from hone.core.errors import CheckpointError, DataError
from hone.core.files import (
    atomic_dir,
    read_json,
    remove_leftovers,
    sha256_file,
    write_json,
)

_log = logging.getLogger(__name__)
_FORMAT = 1
_STATE, _MANIFEST = "state.safetensors", "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")
_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        step: optimizer steps done.
        manifest: what was given to :meth:`CheckpointStore.save`.
    """

    path: Path
    step: int
    manifest: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, on the CPU."""
        return load_file(self.path / _STATE)


class CheckpointStore:
    """The checkpoints in one folder."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder, self.keep_last = folder, keep_last

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        manifest: dict[str, Any],
        keep: Collection[int | None] = (),
    ) -> Path:
        """Write the checkpoint of ``step``, then delete those past the last ``keep_last``.

        Args:
            keep: steps whose checkpoints are not deleted.

        Raises:
            CapacityError: the disk is full; the checkpoints before this one are intact.
            CheckpointError: it does not read back as it was written; nor is it among them.
            HoneError: the folder cannot be written.
        """
        target = self._path(step)
        with atomic_dir(target) as temporary:
            digest = _write_safetensors(temporary / _STATE, tensors)
            if _read_from_disk(temporary / _STATE) != digest:
                raise CheckpointError(
                    f"The checkpoint {target} did not read back as it was written: the disk or the "
                    "memory may be failing. The checkpoints before it are as they were."
                )
            files = {_STATE: digest}
            write_json(temporary / _MANIFEST, {"format": _FORMAT, "files": files, **manifest})
        for older, path in self._all()[: -self.keep_last]:
            if older not in keep:
                _delete(path)
        return target

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; damaged newer ones are deleted with a warning.

        Raises:
            CheckpointError: there are checkpoints, and all are damaged.
        """
        if not self.folder.is_dir():
            return None
        remove_leftovers(self.folder)
        damaged: list[tuple[Path, str]] = []
        for step, path in reversed(self._all()):
            if not (path / _MANIFEST).exists():
                _delete(path)  # a deletion that was killed half way
                continue
            manifest, damage = _verified_manifest(path)
            if damage:
                damaged.append((path, damage))
                continue
            for bad, reason in damaged:
                _log.warning("%s Going on from %s.", reason, path.name)
                _delete(bad)
            return Checkpoint(path, step, manifest)
        if damaged:
            raise CheckpointError(
                f"{damaged[0][1]} No older one is intact: start over with --fresh."
            )
        return None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of ``step``.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        path = self._path(step)
        manifest, damage = _verified_manifest(path)
        if damage:
            raise CheckpointError(damage)
        return Checkpoint(path, step, manifest)

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, ascending."""
        return [step for step, _ in self._all()]

    def clear(self) -> None:
        """Delete all checkpoints."""
        for _, path in self._all():
            _delete(path)
        if self.folder.is_dir():
            remove_leftovers(self.folder)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _all(self) -> list[tuple[int, Path]]:
        """(step, folder), oldest first."""
        if not self.folder.is_dir():
            return []
        matches = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return sorted((int(match[1]), path) for match, path in matches if match)


def _delete(path: Path) -> None:
    # The manifest goes first, so that a kill in between leaves no half checkpoint that looks whole.
    (path / _MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _verified_manifest(path: Path) -> tuple[dict[str, Any], str]:
    """The manifest, and a sentence on the damage to the checkpoint, empty when there is none.

    Raises:
        CheckpointError: it was written by another version; that is no damage.
    """
    try:
        manifest = read_json(path / _MANIFEST)
    except DataError as error:
        return {}, f"The checkpoint {path} is damaged: {error}"
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return {}, f"The checkpoint {path} is damaged: its manifest names no files."
    if manifest.get("format") != _FORMAT:
        raise CheckpointError(
            f"The checkpoint {path} has format {manifest.get('format')!r}; this version of hone "
            f"reads format {_FORMAT}. Use the version that wrote it, or start over with --fresh."
        )
    for name, digest in manifest["files"].items():
        file = path / name
        if not file.is_file():
            return {}, f"The checkpoint {path} is damaged: {name} is missing."
        if sha256_file(file) != digest:
            return {}, f"The checkpoint {path} is damaged: {name} is not as it was written."
    return manifest, ""


def _read_from_disk(path: Path) -> str:
    """The SHA-256 of a file, of what is on the disk where the system can be made to look there."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return sha256_file(path)


def _write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write the safetensors layout one tensor at a time; returns the file's SHA-256.

    The library's own writer reports a full disk as text, and needs a second reading for the hash.
    """
    header: dict[str, Any] = {}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for part in (struct.pack("<Q", len(text)), text):
            file.write(part)
            digest.update(part)
        for tensor in tensors.values():
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            file.write(data)
            digest.update(data)
    return digest.hexdigest()
