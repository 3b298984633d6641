"""Texts for pretraining: token ids of many documents behind one another, in memory or in a file.

A corpus on the disk is a folder: ``ids.bin`` are the tokens, ``bounds.bin`` where documents begin
(int64), ``corpus.json`` says how the tokens are written. It is mapped into memory and not read, so
it may be larger than that.
"""

import hashlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hone.core.errors import ConfigError, DataError
from hone.core.files import atomic_dir, read_json, write_json
from hone.data.samples import TokenIds
from hone.text.tokenizer import Tokenizer

IDS, BOUNDS, ABOUT = "ids.bin", "bounds.bin", "corpus.json"
_AT_ONCE = 1 << 22  # tokens that are hashed at a time
_TEXTS_AT_ONCE = 1000
_DTYPES = ("uint16", "uint32", "int32", "int64")

Tokens = npt.NDArray[np.integer]
Bounds = npt.NDArray[np.int64]


class Corpus:
    """Documents as one array of token ids.

    Attributes:
        ids: of all documents behind one another, any integer type.
        bounds: int64 ``[documents + 1]``; document i is ``ids[bounds[i]:bounds[i + 1]]``.
    """

    def __init__(self, ids: Tokens, bounds: Bounds | None = None) -> None:
        """Take ``ids`` as they are; without ``bounds`` they are one document.

        Raises:
            DataError: there is no token, or the bounds are not those of documents.
        """
        if not len(ids):
            raise DataError("The corpus has no tokens.")
        if bounds is None:
            bounds = np.array([0, len(ids)], dtype=np.int64)
        if (
            len(bounds) < 2
            or bounds[0] != 0
            or bounds[-1] != len(ids)
            or np.any(np.diff(bounds) < 1)
        ):
            raise DataError(
                f"The bounds of documents must rise from 0 to the {len(ids)} tokens of the corpus."
            )
        self.ids, self.bounds = ids, bounds

    @classmethod
    def of(cls, documents: Iterable[TokenIds], end_id: int | None = None) -> "Corpus":
        """The corpus of ``documents``, each with ``end_id`` behind it; those without a token are
        left out.

        Raises:
            DataError: no document has a token.
        """
        arrays = [np.asarray(document) for document in documents]
        arrays = [array for array in arrays if len(array)]
        if not arrays:
            raise DataError("The corpus has no tokens.")
        lengths = [len(array) + (end_id is not None) for array in arrays]
        bounds = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        highest = max(max(int(array.max()) for array in arrays), end_id or 0)
        ids = np.empty(int(bounds[-1]), dtype=_smallest(highest + 1))
        for start, array in zip(bounds[:-1], arrays, strict=True):
            ids[start : start + len(array)] = array
        if end_id is not None:
            ids[bounds[1:] - 1] = end_id
        return cls(ids, bounds)

    @classmethod
    def open(cls, directory: str | Path) -> "Corpus":
        """The corpus that :func:`write_corpus` wrote, mapped into memory.

        Raises:
            DataError: a file is missing, or is not as long as the folder says.
        """
        directory = Path(directory)
        about = read_json(directory / ABOUT)
        fits = isinstance(about, dict) and about.get("dtype") in _DTYPES
        if not fits or not all(isinstance(about.get(k), int) for k in ("tokens", "documents")):
            raise DataError(f"{directory / ABOUT} does not describe a corpus; write it once more.")
        ids = _map(directory / IDS, np.dtype(about["dtype"]), about["tokens"])
        return cls(ids, _map(directory / BOUNDS, np.dtype("int64"), about["documents"] + 1))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.bounds) - 1

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all tokens and bounds."""
        digest = hashlib.sha256(np.asarray(self.bounds, np.int64).tobytes())
        for start in range(0, len(self.ids), _AT_ONCE):
            part = self.ids[start : start + _AT_ONCE]
            digest.update(part.astype(np.uint32, copy=False).tobytes())
        return digest.hexdigest()

    def split(self, held_out: float, by_document: bool = False) -> tuple["Corpus", "Corpus"]:
        """The first tokens and the last ones, of which there are a share of ``held_out``.

        Args:
            by_document: cut between two documents, as near as there is a place.

        Raises:
            ConfigError: the share leaves one side without a token, or there is only one document.
        """
        if by_document and self.documents == 1:
            raise ConfigError(
                "A corpus of one document cannot be cut between documents; cut it by tokens."
            )
        cut = int(len(self.ids) * (1 - held_out)) if 0 < held_out < 1 else 0
        if by_document and cut:
            inner = self.bounds[1:-1]
            cut = int(inner[np.argmin(np.abs(inner - cut))])
        if not 0 < cut < len(self.ids):
            raise ConfigError(
                f"A held-out share of {held_out} leaves one side of {len(self.ids)} tokens empty; "
                "it must be between 0 and 1."
            )
        before = self.bounds[self.bounds < cut]
        after = self.bounds[self.bounds > cut]
        return (
            Corpus(self.ids[:cut], np.append(before, cut)),
            Corpus(self.ids[cut:], np.insert(after, 0, cut) - cut),
        )


def write_corpus(
    directory: str | Path,
    documents: Iterable[TokenIds],
    vocab_size: int,
    end_id: int | None = None,
) -> Corpus:
    """Write ``documents`` one after another, and open the result; see :meth:`Corpus.of`.

    Args:
        vocab_size: every id is below it; it decides on the bytes of a token.

    Raises:
        DataError: no document has a token, or an id is not of the vocabulary.
        CapacityError: the disk is full; nothing is left behind.
    """
    dtype, bounds = np.dtype(_smallest(vocab_size)), [0]
    with atomic_dir(directory) as folder:
        with open(folder / IDS, "wb") as file:
            for number, document in enumerate(documents):
                ids = np.asarray(document)
                if not len(ids):
                    continue
                if ids.min() < 0 or ids.max() >= vocab_size:
                    wrong = int(ids.min() if ids.min() < 0 else ids.max())
                    raise DataError(
                        f"Document {number} holds the token {wrong}; the vocabulary has "
                        f"{vocab_size} tokens. Encode it with the tokenizer of this corpus."
                    )
                ids = ids if end_id is None else np.append(ids, end_id)
                file.write(ids.astype(dtype).tobytes())
                bounds.append(bounds[-1] + len(ids))
        if len(bounds) == 1:
            raise DataError("The corpus has no tokens.")
        np.array(bounds, dtype=np.int64).tofile(folder / BOUNDS)
        about: dict[str, Any] = {"dtype": dtype.name, "tokens": bounds[-1]}
        write_json(folder / ABOUT, about | {"documents": len(bounds) - 1})
    return Corpus.open(directory)


def encode_texts(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[TokenIds]:
    """The ids of each text without special tokens, a thousand at a time in parallel."""
    waiting: list[str] = []
    for text in texts:
        waiting.append(text)
        if len(waiting) == _TEXTS_AT_ONCE:
            yield from tokenizer.encode_batch(waiting)
            waiting = []
    yield from tokenizer.encode_batch(waiting)


def _smallest(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _map(file: Path, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise DataError(f"Cannot read {file}: {error.strerror}.") from error
    if size != count * dtype.itemsize or not size:
        raise DataError(
            f"{file} has {size} bytes; {ABOUT} beside it tells of {count} numbers of "
            f"{dtype.itemsize} bytes. Write the corpus once more."
        )
    return np.memmap(file, dtype=dtype, mode="r")
