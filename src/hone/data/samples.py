"""What a model is trained on: one text, or a pair of texts, as token ids with their labels."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hone.core.errors import DataError

IGNORED = -100  # the label of a position without loss
TokenIds = Sequence[int] | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence of a batch.

    Attributes:
        ids: what the model reads; of an encoder-decoder, what its decoder reads.
        labels: for each of ``ids`` the token (or class) that the position is scored by, and
            :data:`IGNORED` where there is none. A causal model's are shifted already: the label of
            a position is the token that follows it. Empty where only ``target`` is scored.
        source: what an encoder reads; of a pair of texts to be embedded alike, the second.
        target: of the whole sequence: its class, its classes, or a number.
    """

    ids: TokenIds
    labels: TokenIds = ()
    source: TokenIds | None = None
    target: int | float | tuple[float, ...] | None = None

    @property
    def length(self) -> int:
        """Positions that are computed, the source's included."""
        return len(self.ids) + (0 if self.source is None else len(self.source))

    @property
    def longest(self) -> int:
        """Positions of the longest sequence that the model reads."""
        return max(len(self.ids), 0 if self.source is None else len(self.source))


def completion_sample(prompt: Sequence[int], completion: Sequence[int]) -> Sample:
    """A causal sample with loss on the completion alone, which should end with the end token.

    The last token is only ever a label: it is not among the inputs.
    """
    ids = [*prompt, *completion]
    before = max(len(prompt) - 1, 0)
    return Sample(ids[:-1], [IGNORED] * before + ids[1 + before :])


class DrawnSamples(Protocol):
    """Samples that are made when they are asked for, perhaps others in every epoch.

    Attributes:
        lengths: positions of each as it is planned for, sources included, int64.
        longest: positions of the longest sequence of each, int64.
        fingerprint: changes whenever any sample of any epoch does.
    """

    lengths: npt.NDArray[np.int64]
    longest: npt.NDArray[np.int64]

    @property
    def fingerprint(self) -> str:
        """See above."""

    def draw(self, index: int, epoch: int) -> Sample:
        """Sample ``index`` of ``epoch``, from nothing but its arguments."""


class ListedSamples:
    """A list of samples, which ``encode(index, epoch)`` may give another form for an epoch.

    A form longer than ``limit`` gives way to the one in the list.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        limit: int,
        encode: Callable[[int, int], Sample] | None = None,
    ) -> None:
        """Look at every sample.

        Raises:
            DataError: there is nothing to train in one, and no ``encode`` that could change that.
        """
        for index, sample in enumerate(samples):
            _check(index, sample, scored=encode is None)
        self._samples, self._limit, self._encode = samples, limit, encode
        self.lengths = np.array([sample.length for sample in samples], dtype=np.int64)
        self.longest = np.array([sample.longest for sample in samples], dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        """See :class:`DrawnSamples`."""
        digest = hashlib.sha256()
        for sample in self._samples:
            source = () if sample.source is None else sample.source
            digest.update(np.array([len(sample.ids), len(source)], np.int64).tobytes())
            for sequence in (sample.ids, sample.labels, source):
                digest.update(np.asarray(sequence, np.int64).tobytes())
            digest.update(repr(sample.target).encode())
        return digest.hexdigest()

    def draw(self, index: int, epoch: int) -> Sample:
        """See :class:`DrawnSamples`."""
        if self._encode is not None:
            sample = self._encode(index, epoch)
            if 0 < sample.longest <= self._limit:
                return sample
        return self._samples[index]


def _check(index: int, sample: Sample, scored: bool) -> None:
    if not len(sample.ids) or (sample.source is not None and not len(sample.source)):
        raise DataError(f"Sample {index} has nothing to train: a text of it has no tokens.")
    if len(sample.labels) not in (0, len(sample.ids)):
        raise DataError(
            f"Sample {index} has {len(sample.labels)} labels for {len(sample.ids)} tokens; give "
            "each token one."
        )
    if not scored:
        return
    if len(sample.labels):
        trained = bool((np.asarray(sample.labels) != IGNORED).any())
    else:
        trained = sample.target is not None or sample.source is not None
    if not trained:
        raise DataError(
            f"Sample {index} has nothing to train: no token of it has a label, and the whole no "
            "target."
        )
