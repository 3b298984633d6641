"""API keys: who may ask, and whose request it is.

Keys are kept as SHA-256 digests only. A presented key is compared with every one of them in
constant time, so neither the time of an answer nor a printed object tells anything about a key.
"""

import hashlib
import hmac
import logging
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from hone.core.errors import ConfigError
from hone.core.files import explain_os_error

VARIABLE = "HONE_API_KEYS"
_log = logging.getLogger("hone.serve")


class KeyRing:
    """The keys that open the server; an empty ring asks for none.

    Attributes:
        owners: their names, in the order of the keys; the beginning of the digest where a key has
            no name. Keys of one name share its limits.
    """

    def __init__(self, keys: Sequence[tuple[str | None, str]] = ()) -> None:
        """Take ``(name or None, key)`` pairs."""
        self._digests = [_digest(key) for _, key in keys]
        self.owners = tuple(
            name or f"key-{digest.hex()[:8]}"
            for (name, _), digest in zip(keys, self._digests, strict=True)
        )

    @classmethod
    def load(cls, file: Path | None, environment: Mapping[str, str] = os.environ) -> Self:
        """The keys of a file and of the variable HONE_API_KEYS together.

        The file has one key per line, ``name: key`` or the key alone; empty lines and what follows
        a ``#`` at the beginning of a line are skipped. The variable has the same, by commas.

        Raises:
            ConfigError: the file cannot be read, a line is no key, or there is none in the file.
        """
        keys = _parse(environment.get(VARIABLE, "").split(","), f"The variable {VARIABLE}, part")
        if file is not None:
            keys += _read(file)
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __repr__(self) -> str:
        return f"KeyRing({len(self._digests)} keys)"

    def owner(self, key: str | None) -> str | None:
        """Whose key this is; None for a wrong one, and "" for anything where no key is needed."""
        if not self:
            return ""
        digest = _digest(key or "")
        found = None
        for known, owner in zip(self._digests, self.owners, strict=True):
            # No way out early: every call compares with all.
            if hmac.compare_digest(known, digest):
                found = owner
        return found


def _digest(key: str) -> bytes:
    # A header may hold any bytes; those that are no text match no key.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _read(file: Path) -> list[tuple[str | None, str]]:
    try:
        mode = file.stat().st_mode
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(str(explain_os_error(error, file, "read"))) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text (byte {error.start}).") from error
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        _log.warning("%s can be read by other users of this machine; run `chmod 600` on it.", file)
    keys = _parse(lines, f"{file}, line")
    if not keys:
        raise ConfigError(
            f"{file} holds no key; write one per line, as `name: key` or the key alone."
        )
    return keys


def _parse(lines: Sequence[str], where: str) -> list[tuple[str | None, str]]:
    """Messages name the line and never show it."""
    keys: list[tuple[str | None, str]] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, key = line.rpartition(":")
        if colon and not key[:1].isspace():
            raise ConfigError(f"{where} {number}: a colon without a space; write `name: key`.")
        name, key = name.strip(), key.strip()
        if not key.isascii() or not key.isprintable() or " " in key or not key:
            raise ConfigError(
                f"{where} {number}: not a key; write letters, digits and signs of ASCII without "
                "spaces, after `name: ` where it has a name."
            )
        if key in seen:
            raise ConfigError(f"{where} {number}: the same key stands above; remove one of them.")
        seen.add(key)
        keys.append((name or None, key))
    return keys
