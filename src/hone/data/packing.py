"""Packing samples into batches without padding and without leakage.

A batch is samples laid end to end. Positions restart at every sample and ``cu_seqlens`` marks where
each begins, so attention never looks from one into another. What an encoder reads lies end to end
in the same order. Suffix legend: N tokens of a batch, M tokens of its sources, B its samples.

Order. An epoch's plan is drawn from ``(seed, epoch)`` alone, and every epoch has the same number of
batches, so the batch of any step is found without replaying the steps before it. The samples are
shuffled; each run of ``bucket_batches`` batches' worth of them is sorted by length and cut into
batches of about equal tokens; then the batches are shuffled. A batch so holds samples of similar
length, which is what makes attention over it cheap, yet which samples of that length meet is new
each epoch, and no length has a place of its own in the epoch. ``bucket_batches=1`` turns it off.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hone.core.errors import ConfigError, DataError
from hone.core.seeds import derive_seed
from hone.data.samples import IGNORED, DrawnSamples, ListedSamples, Sample, TokenIds

Encode = Callable[[int, int], Sample]
Ids = npt.NDArray[np.int64]
Bounds = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed samples.

    Attributes:
        input_ids_N: int64.
        position_ids_N: int64, from 0 in each sample.
        cu_seqlens: int32 ``[B + 1]``; sample i is positions ``cu_seqlens[i]`` up to
            ``cu_seqlens[i + 1]``. Samples stand in order of their length.
        max_length: tokens of the longest sample, sources aside.
        labels_N: int64, what each position is scored by, :data:`IGNORED` where it is not; empty
            where whole samples are scored.
        n_trained: number of labels that are trained; where whole samples are scored, of samples.
        source_ids_M: int64, what an encoder reads, or the second texts of pairs; None for none.
        source_cu_seqlens: int32 ``[B + 1]``, the bounds of the sources.
        targets_B: of whole samples: classes, int64 ``[B]``; numbers, float32 ``[B]``; several
            classes or numbers, float32 ``[B, L]``.
    """

    input_ids_N: Ids  # noqa: N815
    position_ids_N: Ids  # noqa: N815
    cu_seqlens: Bounds
    max_length: int
    labels_N: Ids  # noqa: N815
    n_trained: int
    source_ids_M: Ids | None = None  # noqa: N815
    source_cu_seqlens: Bounds | None = None
    targets_B: npt.NDArray[np.int64] | npt.NDArray[np.float32] | None = None  # noqa: N815

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return len(self.cu_seqlens) - 1

    @property
    def n_tokens(self) -> int:
        """Number of positions, trained or not, the sources' included."""
        return len(self.input_ids_N) + (0 if self.source_ids_M is None else len(self.source_ids_M))

    def split(self, parts: int) -> list["Batch"]:
        """At most ``parts`` batches of whole samples with about equal tokens, in order."""
        parts = min(parts, self.n_samples)
        if parts == 1:
            return [self]
        lengths = np.diff(self.cu_seqlens)
        if self.source_cu_seqlens is not None:
            lengths = lengths + np.diff(self.source_cu_seqlens)
        cuts = _balanced_cuts(lengths, parts)
        return [self._slice(int(a), int(b)) for a, b in pairwise(cuts)]

    def _slice(self, first: int, last: int) -> "Batch":
        cu = self.cu_seqlens[first : last + 1]
        tokens = slice(int(cu[0]), int(cu[-1]))
        labels = self.labels_N[tokens]
        source_ids, source_cu = self.source_ids_M, self.source_cu_seqlens
        if source_ids is not None and source_cu is not None:
            source_cu = source_cu[first : last + 1]
            source_ids = source_ids[int(source_cu[0]) : int(source_cu[-1])]
            source_cu = source_cu - source_cu[0]
        return Batch(
            self.input_ids_N[tokens],
            self.position_ids_N[tokens],
            cu - cu[0],
            int(np.diff(cu).max()),
            labels,
            int((labels != IGNORED).sum()) if len(self.labels_N) else last - first,
            source_ids,
            source_cu,
            None if self.targets_B is None else self.targets_B[first:last],
        )


def pack(samples: Sequence[Sample]) -> Batch:
    """Lay ``samples`` end to end, shortest first; all of them are scored in the same way."""
    ordered = sorted(samples, key=lambda sample: sample.length)
    ids, cu = _lay([sample.ids for sample in ordered])
    lengths = np.diff(cu)
    by_token = any(len(sample.labels) for sample in ordered)
    labels, label_cu = _lay([sample.labels for sample in ordered])
    assert not by_token or np.array_equal(label_cu, cu), "a label for each position"
    source_ids, source_cu = None, None
    if ordered[0].source is not None:
        sources = [sample.source for sample in ordered if sample.source is not None]
        source_ids, source_cu = _lay(sources)
        assert len(sources) == len(ordered), "a source for each sample"
    return Batch(
        ids,
        np.arange(len(ids), dtype=np.int64) - np.repeat(cu[:-1], lengths),
        cu,
        int(lengths.max()),
        labels,
        int((labels != IGNORED).sum()) if by_token else len(ordered),
        source_ids,
        source_cu,
        _targets(ordered),
    )


def _lay(sequences: Sequence[TokenIds]) -> tuple[Ids, Bounds]:
    """Sequences end to end, and where each begins."""
    cu = np.zeros(len(sequences) + 1, dtype=np.int32)
    np.cumsum([len(sequence) for sequence in sequences], out=cu[1:])
    laid = np.empty(int(cu[-1]), dtype=np.int64)
    for start, end, sequence in zip(cu[:-1], cu[1:], sequences, strict=True):
        laid[start:end] = sequence
    return laid, cu


def _targets(
    samples: Sequence[Sample],
) -> npt.NDArray[np.int64] | npt.NDArray[np.float32] | None:
    targets = [sample.target for sample in samples]
    if targets[0] is None:
        return None
    if all(isinstance(target, int) for target in targets):
        return np.array(targets, dtype=np.int64)
    return np.array(targets, dtype=np.float32)


class PackedBatches:
    """The batches of a training run, numbered by step.

    Attributes:
        dropped: number of samples left out because they were too long.
        n_samples: number of samples of an epoch.
        batches_per_epoch: the same for every epoch.
    """

    def __init__(
        self,
        samples: Sequence[Sample] | DrawnSamples,
        tokens_per_batch: int,
        seed: int,
        *,
        max_length: int | None = None,
        drop_overlong: bool = False,
        bucket_batches: int = 16,
        encode: Encode | None = None,
        variant: str = "",
    ) -> None:
        """Plan batches of about ``tokens_per_batch`` positions.

        Args:
            samples: what to train on, all scored in the same way; a list, or samples that are made
                when their turn comes.
            tokens_per_batch: the mean over an epoch, sources included; one batch differs by up to a
                sample's length.
            seed: the order follows from it and the epoch.
            max_length: longest sequence (of ids or of a source) that the model takes; by default a
                batch.
            drop_overlong: leave longer samples out and count them, instead of refusing.
            bucket_batches: see the module; 1 means no grouping by length.
            encode: ``encode(index, epoch)`` gives sample ``index`` of a list in another form for an
                epoch, from nothing but its arguments: another spelling, or other tokens masked; the
                plan keeps the lengths of the list. A form longer than ``max_length`` gives way to
                the one in the list, so nothing is ever cut.
            variant: a name for ``encode`` and its settings, for :attr:`fingerprint`.

        Raises:
            DataError: no samples; a sample with nothing to train; one that is too long.
            ConfigError: a setting below 1.
        """
        for name, value in (
            ("tokens_per_batch", tokens_per_batch),
            ("bucket_batches", bucket_batches),
            ("max_length", 1 if max_length is None else max_length),
        ):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}.")
        limit = tokens_per_batch if max_length is None else max_length
        if isinstance(samples, Sequence):
            samples = ListedSamples(samples, limit, encode)
        lengths = samples.longest
        kept = np.flatnonzero(lengths <= limit)
        self.dropped = len(lengths) - len(kept)
        if self.dropped and not drop_overlong:
            worst = int(np.argmax(lengths))
            raise DataError(
                f"{self.dropped} of {len(lengths)} samples are longer than {limit} tokens (sample "
                f"{worst} has {lengths[worst]}). Raise the limit, or drop them on purpose."
            )
        if not len(kept):
            raise DataError(
                f"No samples to train on: all {len(lengths)} are longer than {limit} tokens."
                if self.dropped
                else "No samples to train on."
            )
        self._samples, self._kept = samples, kept
        self._lengths = samples.lengths[kept]
        self._seed, self._bucket = seed, bucket_batches
        self.n_samples = len(kept)
        total = int(self._lengths.sum())
        self.batches_per_epoch = min(max(1, round(total / tokens_per_batch)), self.n_samples)
        self._settings = (tokens_per_batch, seed, limit, bucket_batches, variant)
        # Plans are pure functions of the epoch; two are kept for steps either side of a boundary.
        self._plan = lru_cache(maxsize=2)(self._draw_plan)

    def at(self, step: int) -> Batch:
        """The batch of ``step`` (from 0); steps past an epoch go on into the next."""
        epoch, _ = divmod(step, self.batches_per_epoch)
        return pack([self._samples.draw(int(index), epoch) for index in self.indices(step)])

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """Which samples (indices into the list given) are in the batch of ``step``."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        return self._kept[self._plan(epoch)[batch]]

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides what any step trains on."""
        digest = hashlib.sha256(repr(self._settings).encode())
        digest.update(self._lengths.tobytes())
        digest.update(self._samples.fingerprint.encode())
        return digest.hexdigest()

    def _draw_plan(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        random = np.random.Generator(np.random.PCG64(derive_seed(self._seed, "order", epoch)))
        order = random.permutation(self.n_samples)
        batches: list[npt.NDArray[np.int64]] = []
        # Cut first in shuffled order: a bucket then holds at least a sample per batch.
        cuts = _balanced_cuts(self._lengths[order], self.batches_per_epoch)
        for first in range(0, self.batches_per_epoch, self._bucket):
            parts = min(self._bucket, self.batches_per_epoch - first)
            bucket = order[cuts[first] : cuts[first + parts]]
            if parts > 1:
                bucket = bucket[np.argsort(self._lengths[bucket], kind="stable")]
            inner = _balanced_cuts(self._lengths[bucket], parts)
            batches += [bucket[a:b] for a, b in pairwise(inner)]
        return [batches[index] for index in random.permutation(len(batches))]


def _balanced_cuts(lengths: npt.NDArray, parts: int) -> npt.NDArray[np.int64]:
    """``parts + 1`` indices that cut items into non-empty runs of about equal total length."""
    count = len(lengths)
    ends = np.cumsum(lengths)
    middles = ends - lengths / 2
    cuts = np.searchsorted(middles, ends[-1] * np.arange(1, parts) / parts)
    # Each run keeps at least one item: push cuts right past the last one, then left of the end.
    cuts = np.maximum(cuts, 1)
    cuts = np.maximum.accumulate(cuts - np.arange(len(cuts))) + np.arange(len(cuts))
    cuts = np.minimum(cuts, count - parts + 1 + np.arange(len(cuts)))
    return np.concatenate(([0], cuts, [count])).astype(np.int64)
