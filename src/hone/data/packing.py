"""Packing tokenised samples into batches without padding and without leakage.

A batch is samples laid end to end. Positions restart at every sample and ``cu_seqlens`` marks where
each begins, so attention never looks from one into another. Suffix legend: N tokens of a batch.

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

Ids = Sequence[int]
Sample = tuple[Ids, Ids]
Encode = Callable[[int, int], Sample]
IGNORED = -100  # the label of a position without loss


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed samples.

    Attributes:
        input_ids_N: int64.
        position_ids_N: int64, from 0 in each sample.
        cu_seqlens: int32 ``[samples + 1]``; sample i is positions ``cu_seqlens[i]`` up to
            ``cu_seqlens[i + 1]``. Samples stand in order of their length.
        max_length: tokens of the longest sample.
        labels_N: int64, the next token where it is trained, :data:`IGNORED` elsewhere.
        n_trained: number of labels that are trained.
    """

    input_ids_N: npt.NDArray[np.int64]  # noqa: N815
    position_ids_N: npt.NDArray[np.int64]  # noqa: N815
    cu_seqlens: npt.NDArray[np.int32]
    max_length: int
    labels_N: npt.NDArray[np.int64]  # noqa: N815
    n_trained: int

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return len(self.cu_seqlens) - 1

    @property
    def n_tokens(self) -> int:
        """Number of positions, trained or not."""
        return len(self.input_ids_N)

    def split(self, parts: int) -> list["Batch"]:
        """At most ``parts`` batches of whole samples with about equal tokens, in order."""
        parts = min(parts, self.n_samples)
        if parts == 1:
            return [self]
        cuts = _balanced_cuts(np.diff(self.cu_seqlens), parts)
        return [self._slice(int(a), int(b)) for a, b in pairwise(cuts)]

    def _slice(self, first: int, last: int) -> "Batch":
        cu = self.cu_seqlens[first : last + 1]
        tokens = slice(int(cu[0]), int(cu[-1]))
        labels = self.labels_N[tokens]
        return Batch(
            self.input_ids_N[tokens],
            self.position_ids_N[tokens],
            cu - cu[0],
            int(np.diff(cu).max()),
            labels,
            int((labels != IGNORED).sum()),
        )


def pack(samples: Sequence[Sample]) -> Batch:
    """Lay ``samples`` end to end, shortest first.

    A sample's last token is only ever a label: it is not among the inputs. Loss is on the
    completion alone, which should end with the end token.
    """
    ordered = sorted(samples, key=lambda sample: len(sample[0]) + len(sample[1]))
    lengths = np.array([len(prompt) + len(done) - 1 for prompt, done in ordered], dtype=np.int32)
    cu = np.zeros(len(ordered) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu[1:])
    inputs = np.empty(int(cu[-1]), dtype=np.int64)
    labels = np.empty(int(cu[-1]), dtype=np.int64)
    for start, end, (prompt, done) in zip(cu[:-1], cu[1:], ordered, strict=True):
        ids = np.concatenate((np.asarray(prompt, np.int64), np.asarray(done, np.int64)))
        inputs[start:end] = ids[:-1]
        labels[start:end] = ids[1:]
        labels[start : start + max(len(prompt) - 1, 0)] = IGNORED
    positions = np.arange(len(inputs), dtype=np.int64) - np.repeat(cu[:-1], lengths)
    trained = int((labels != IGNORED).sum())
    return Batch(inputs, positions, cu, int(lengths.max()), labels, trained)


class PackedBatches:
    """The batches of a training run, numbered by step.

    Attributes:
        dropped: number of samples left out because they were too long.
        n_samples: number of samples of an epoch.
        batches_per_epoch: the same for every epoch.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
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
            samples: (prompt ids, completion ids) of each; the completion ends with the end token.
            tokens_per_batch: the mean over an epoch; one batch differs by up to a sample's length.
            seed: the order follows from it and the epoch.
            max_length: longest sample (in positions) that the model takes; by default a batch.
            drop_overlong: leave longer samples out and count them, instead of refusing.
            bucket_batches: see the module; 1 means no grouping by length.
            encode: ``encode(index, epoch)`` gives sample ``index`` (into ``samples``) in another
                spelling for an epoch, from nothing but its arguments; the plan keeps the lengths of
                ``samples``. A spelling longer than ``max_length`` gives way to the one in
                ``samples``, so nothing is ever cut.
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
        lengths = np.array([len(p) + len(c) - 1 for p, c in samples], dtype=np.int64)
        for index, (prompt, done) in enumerate(samples):
            if not done or not (prompt or len(done) > 1):
                raise DataError(f"Sample {index} has nothing to train: its completion is empty.")
        kept = np.flatnonzero(lengths <= limit)
        self.dropped = len(samples) - len(kept)
        if self.dropped and not drop_overlong:
            worst = int(np.argmax(lengths))
            raise DataError(
                f"{self.dropped} of {len(samples)} samples are longer than {limit} tokens (sample "
                f"{worst} has {lengths[worst]}). Raise the limit, or drop them on purpose."
            )
        if not len(kept):
            raise DataError(
                f"No samples to train on: all {len(samples)} are longer than {limit} tokens."
                if self.dropped
                else "No samples to train on."
            )
        self._samples, self._kept, self._lengths = samples, kept, lengths[kept]
        self._limit, self._seed, self._bucket = limit, seed, bucket_batches
        self._encode = encode
        self.n_samples = len(kept)
        total = int(self._lengths.sum())
        self.batches_per_epoch = min(max(1, round(total / tokens_per_batch)), self.n_samples)
        self._settings = (tokens_per_batch, seed, limit, bucket_batches, variant)
        # Plans are pure functions of the epoch; two are kept for steps either side of a boundary.
        self._plan = lru_cache(maxsize=2)(self._draw_plan)

    def at(self, step: int) -> Batch:
        """The batch of ``step`` (from 0); steps past an epoch go on into the next."""
        epoch, _ = divmod(step, self.batches_per_epoch)
        return pack([self._sample(int(index), epoch) for index in self.indices(step)])

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """Which samples (indices into the list given) are in the batch of ``step``."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        return self._kept[self._plan(epoch)[batch]]

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides what any step trains on."""
        digest = hashlib.sha256(repr(self._settings).encode())
        digest.update(self._lengths.tobytes())
        for index in self._kept:
            prompt, done = self._samples[int(index)]
            digest.update(np.asarray([len(prompt), *prompt, *done], np.int64).tobytes())
        return digest.hexdigest()

    def _sample(self, index: int, epoch: int) -> Sample:
        if self._encode is not None:
            prompt, done = self._encode(index, epoch)
            if done and 1 < len(prompt) + len(done) <= self._limit + 1:
                return prompt, done
        return self._samples[index]

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
