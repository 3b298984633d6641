"""Opening a data file for its bytes, compressed or not, errors turned into sentences."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from hone.core.errors import DataError

COMPRESSED = (".gz", ".zst")


def kind_of(path: str | Path) -> str:
    """A file's suffix in lower case, that of a compression left out: ``.csv`` of ``a.CSV.gz``."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def open_bytes(path: str | Path) -> Iterator[IO[bytes]]:
    """The content of a plain, ``.gz`` or ``.zst`` file, to be read from its beginning.

    Raises:
        DataError: there is no such file, it cannot be read, or its compression is broken; also
            while it is read.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path, "rb") as unpacked:
                yield cast(IO[bytes], unpacked)
        elif path.suffix.lower() == ".zst":
            with open(path, "rb") as packed, io.BufferedReader(_Zstandard(packed, path)) as file:
                yield file
        else:
            with open(path, "rb") as file:
                yield file
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder; name a file in it.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a whole gzip file: {error}.") from error
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error


class _Zstandard(io.RawIOBase):
    """A Zstandard file's content.

    Not the library's reader, which takes a truncated file for one that ends there.
    """

    def __init__(self, packed: IO[bytes], path: Path) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise DataError(
                f'{path} is compressed with Zstandard: pip install "hone-llm[zstd]", or '
                "decompress it."
            ) from error
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._error = zstandard.ZstdError
        self._packed, self._path = packed, path
        self._decoder = self._new()
        self._waiting = b""  # packed bytes behind the end of a frame
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._waiting or self._packed.read(1 << 18)
            if not chunk:
                if not self._decoder.eof:
                    raise DataError(
                        f"{self._path} is not a whole Zstandard file: it ends in the middle."
                    )
                return 0
            if self._decoder.eof:  # a file may be several frames
                self._decoder = self._new()
            try:
                self._ready = memoryview(self._decoder.decompress(chunk))
            except self._error as error:
                raise DataError(f"{self._path} is not a whole Zstandard file: {error}.") from error
            self._waiting = self._decoder.unused_data
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
