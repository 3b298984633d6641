"""From a corpus to samples: how it is cut into pieces, and what is asked about a piece.

Pieces differ from epoch to epoch, drawn from ``(seed, epoch)`` alone, so that a model does not see
the same cuts again and a run that goes on sees what it would have seen. A task (causal, masked,
denoising) makes a sample of a piece.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from hone.core.errors import ConfigError, DataError
from hone.core.seeds import derive_seed
from hone.data.corpus import Corpus, Tokens
from hone.data.packing import PackedBatches
from hone.data.samples import Sample

Counts = npt.NDArray[np.int64]
Cut = Literal["windows", "random", "documents"]


class Task(Protocol):
    """What is asked about a piece of text; its ``repr`` names all that it depends on.

    Attributes:
        overlap: tokens that a piece shares with the next one: 1 where the last is only a label.
    """

    @property
    def overlap(self) -> int:
        """See above."""

    def piece_length(self, length: int) -> int:
        """Tokens of text that make a sequence of ``length`` positions, the overlap aside."""

    def positions(self, sizes: Counts) -> tuple[Counts, Counts]:
        """For pieces of these ``sizes`` the positions of their ids, and of their sources."""

    def sample(self, piece: Tokens, random: np.random.Generator) -> Sample:
        """The sample of ``piece``."""


class Pieces(Protocol):
    """Pieces of a corpus; its ``repr`` names how they are cut.

    Attributes:
        sizes: tokens of each as it is planned for, int64; no piece has more than the largest.
    """

    sizes: Counts

    def piece(self, index: int, epoch: int) -> Tokens:
        """Piece ``index`` of ``epoch``."""


@dataclass(frozen=True, slots=True)
class Causal:
    """Every token is to be told from those before it."""

    overlap: int = 1

    def piece_length(self, length: int) -> int:
        """See :class:`Task`."""
        return length

    def positions(self, sizes: Counts) -> tuple[Counts, Counts]:
        """See :class:`Task`."""
        return sizes - 1, np.zeros_like(sizes)

    def sample(self, piece: Tokens, random: np.random.Generator) -> Sample:
        """See :class:`Task`."""
        ids = piece.astype(np.int64)
        return Sample(ids[:-1], ids[1:])


class Windows:
    """Windows of one length over all documents behind one another, a token in one of them.

    The corpus is a ring: where the first window of an epoch begins is drawn, and the last one may
    go on at the beginning. A rest shorter than a window is left out, another one in every epoch.
    """

    def __init__(self, corpus: Corpus, length: int, seed: int, overlap: int = 0) -> None:
        """Cut ``corpus`` every ``length`` tokens; each window has ``overlap`` more."""
        _check_length(corpus, length, overlap)
        self._corpus, self._length, self._size, self._seed = corpus, length, length + overlap, seed
        self.sizes = np.full(len(corpus) // length, self._size, dtype=np.int64)
        self._offset = lru_cache(maxsize=2)(self._draw_offset)

    def __repr__(self) -> str:
        return f"Windows({self._length}, {self._size}, {self._seed})"

    def piece(self, index: int, epoch: int) -> Tokens:
        """See :class:`Pieces`."""
        ids = self._corpus.ids
        start = (self._offset(epoch) + index * self._length) % len(ids)
        piece = ids[start : start + self._size]
        rest = self._size - len(piece)
        return np.concatenate((piece, ids[:rest])) if rest else piece

    def _draw_offset(self, epoch: int) -> int:
        return int(_random(self._seed, "offset", epoch).integers(len(self._corpus)))


class RandomWindows:
    """Windows of one length that begin anywhere; a token may be in several, or in none."""

    def __init__(
        self, corpus: Corpus, length: int, seed: int, overlap: int = 0, count: int | None = None
    ) -> None:
        """Draw ``count`` windows an epoch, by default as many as there are without overlap."""
        _check_length(corpus, length, overlap)
        self._corpus, self._size, self._seed = corpus, length + overlap, seed
        self.sizes = np.full(count or len(corpus) // length, self._size, dtype=np.int64)
        self._starts = lru_cache(maxsize=2)(self._draw_starts)

    def __repr__(self) -> str:
        return f"RandomWindows({self._size}, {len(self.sizes)}, {self._seed})"

    def piece(self, index: int, epoch: int) -> Tokens:
        """See :class:`Pieces`."""
        start = int(self._starts(epoch)[index])
        return self._corpus.ids[start : start + self._size]

    def _draw_starts(self, epoch: int) -> Counts:
        last = len(self._corpus) - self._size
        return _random(self._seed, "windows", epoch).integers(last + 1, size=len(self.sizes))


class DocumentPieces:
    """Documents, whole where they fit, else in the fewest pieces; no piece is of two documents.

    Packed, a piece sees nothing of the others. What the pieces of a document have room for beyond
    it is shared out between its first and its last piece anew in every epoch.
    """

    def __init__(self, corpus: Corpus, length: int, seed: int, overlap: int = 0) -> None:
        """Cut documents into pieces of at most ``length`` tokens; each has ``overlap`` more."""
        if length < 1:
            raise ConfigError(f"The length of a piece must be at least 1, not {length}.")
        self._corpus, self._length, self._overlap, self._seed = corpus, length, overlap, seed
        tokens = np.diff(corpus.bounds) - overlap
        counts = -(-tokens.clip(min=0) // length)  # a document of nothing but the overlap has none
        if not counts.sum():
            raise DataError(f"No document of the corpus has more than {overlap} tokens.")
        self._document = np.repeat(np.arange(len(counts)), counts)
        self._count = counts[self._document]
        first = np.repeat(np.cumsum(counts) - counts, counts)
        self._number = np.arange(len(self._document)) - first
        self._tokens = tokens
        starts, ends = self._cut(np.arange(len(self._document)), 0)
        self.sizes = (ends - starts + overlap).astype(np.int64)

    def __repr__(self) -> str:
        return f"DocumentPieces({self._length}, {self._overlap}, {self._seed})"

    def piece(self, index: int, epoch: int) -> Tokens:
        """See :class:`Pieces`."""
        document = int(self._document[index])
        missing = 0
        if self._count[index] > 1:
            room = int(self._count[index]) * self._length - int(self._tokens[document])
            missing = int(_random(self._seed, "cut", epoch, document).integers(room + 1))
        start, end = self._cut(np.array([index]), missing)
        first = int(self._corpus.bounds[document])
        return self._corpus.ids[first + int(start[0]) : first + int(end[0]) + self._overlap]

    def _cut(self, indices: Counts, missing: int) -> tuple[Counts, Counts]:
        """Bounds in their documents of pieces, when the first of each lacks ``missing`` tokens."""
        tokens = self._tokens[self._document[indices]]
        ends = (self._number[indices] + 1) * self._length - missing
        return (ends - self._length).clip(min=0), np.minimum(ends, tokens)


class TextSamples:
    """The samples that ``task`` makes of ``pieces``; see :class:`hone.data.DrawnSamples`."""

    def __init__(self, corpus: Corpus, pieces: Pieces, task: Task, seed: int) -> None:
        """Plan the samples; each is made when it is drawn."""
        self._corpus, self._pieces, self._task, self._seed = corpus, pieces, task, seed
        ids, sources = task.positions(pieces.sizes)
        self.lengths, self.longest = ids + sources, np.maximum(ids, sources)

    @property
    def fingerprint(self) -> str:
        """See :class:`hone.data.DrawnSamples`."""
        about = repr((self._corpus.fingerprint, self._pieces, self._task, self._seed))
        return hashlib.sha256(about.encode()).hexdigest()

    def draw(self, index: int, epoch: int) -> Sample:
        """See :class:`hone.data.DrawnSamples`."""
        random = _random(self._seed, "task", epoch, index)
        return self._task.sample(self._pieces.piece(index, epoch), random)


def text_batches(
    corpus: Corpus,
    task: Task,
    length: int,
    tokens_per_batch: int,
    seed: int,
    *,
    cut: Cut = "windows",
    bucket_batches: int = 16,
) -> PackedBatches:
    """Batches for pretraining: sequences of up to ``length`` positions made of ``corpus``.

    Args:
        corpus: the texts.
        task: what is asked about them.
        length: the longest sequence, special tokens and sources included.
        tokens_per_batch: see :class:`PackedBatches`.
        seed: pieces, tasks and order follow from it.
        cut: ``windows`` over all documents; ``random`` ones, which may overlap; or pieces of
            single ``documents``, which do not see one another.
        bucket_batches: see :class:`PackedBatches`.

    Raises:
        ConfigError: an unknown cut, or a length that leaves no room for text.
        DataError: the corpus is too short.
    """
    size = task.piece_length(length)
    if size < 1:
        raise ConfigError(f"A sequence of {length} positions has no room for text; make it longer.")
    cutters = {"windows": Windows, "random": RandomWindows, "documents": DocumentPieces}
    if cut not in cutters:
        raise ConfigError(f"cut must be one of {', '.join(get_args(Cut))}, not {cut!r}.")
    pieces: Pieces = cutters[cut](corpus, size, derive_seed(seed, "pieces"), task.overlap)
    return PackedBatches(
        TextSamples(corpus, pieces, task, derive_seed(seed, "tasks")),
        tokens_per_batch,
        seed,
        max_length=length,
        bucket_batches=bucket_batches,
    )


def _check_length(corpus: Corpus, length: int, overlap: int) -> None:
    if length < 1:
        raise ConfigError(f"The length of a window must be at least 1, not {length}.")
    if len(corpus) < length + overlap:
        raise DataError(
            f"The corpus has {len(corpus)} tokens, fewer than the {length + overlap} of one "
            "window; make the sequences shorter, or give more text."
        )


def _random(seed: int, *names: str | int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *names)))
