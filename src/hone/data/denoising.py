"""Denoising: an encoder reads a damaged text, and a decoder writes what is missing, or all of it.

T5 (Raffel et al. 2020, section 3.1.4) drops spans of tokens, each for a sentinel, and has them
written one after another. BART (Lewis et al. 2020, section 2.2) puts one mask for each span, also
where nothing was, shuffles the sentences, and has the whole text written.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from hone.core.errors import ConfigError
from hone.data.corpus import Tokens
from hone.data.masking import around
from hone.data.pretraining import Counts
from hone.data.samples import Sample
from hone.data.words import Flags, TokenTexts
from hone.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class SpanCorruption:
    """T5's objective; see :class:`hone.data.pretraining.Task`.

    The source is the text with a sentinel for each dropped span, the target each sentinel and what
    it stands for; both end with ``end_id``.

    Attributes:
        sentinels: ids of ``<extra_id_0>``, ``<extra_id_1>`` and on.
        end_id: the token behind a source and behind a target.
        start_id: the token that a decoder begins with.
        share: of the tokens, to be dropped.
        mean_span: tokens of a span, on average.
        overlap: see :class:`hone.data.pretraining.Task`.

    Raises:
        ConfigError: there is no sentinel, or a setting out of its range.
    """

    sentinels: tuple[int, ...]
    end_id: int
    start_id: int
    share: float = 0.15
    mean_span: float = 3.0
    overlap: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _check_share(self.share)
        _check_span(self.mean_span)
        if not self.sentinels:
            raise ConfigError(
                "The tokenizer has no token <extra_id_0>; span corruption needs such sentinels, "
                "one for each span of a text."
            )

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, start_id: int, *, share: float = 0.15, mean_span: float = 3.0
    ) -> "SpanCorruption":
        """The task for the texts of ``tokenizer``.

        Args:
            start_id: the model's ``decoder_start_token_id``.

        Raises:
            ConfigError: it has no sentinel or no end token.
        """
        sentinels: list[int] = []
        while (found := tokenizer.token_to_id(f"<extra_id_{len(sentinels)}>")) is not None:
            sentinels.append(found)
        return cls(tuple(sentinels), _end(tokenizer), start_id, share, mean_span)

    def piece_length(self, length: int) -> int:
        """The most tokens whose source and whose target both have at most ``length`` positions."""
        size = 0
        while max(self._lengths(size + 1)) <= length:
            size += 1
        return size

    def positions(self, sizes: Counts) -> tuple[Counts, Counts]:
        """See :class:`hone.data.pretraining.Task`."""
        known = {int(size): self._lengths(int(size)) for size in np.unique(sizes)}
        pairs = np.array([known[int(size)] for size in sizes], dtype=np.int64)
        return pairs[:, 1], pairs[:, 0]

    def sample(self, piece: Tokens, random: np.random.Generator) -> Sample:
        """See :class:`hone.data.pretraining.Task`."""
        ids = piece.astype(np.int64)
        dropped = random_spans_noise_mask(len(ids), *self._counts(len(ids)), random)
        source, target = self._parted(ids, dropped)
        return Sample(np.concatenate(([self.start_id], target[:-1])), target, source)

    def _parted(self, ids: Counts, dropped: Flags) -> tuple[Counts, Counts]:
        """Source and target: a sentinel in the place of each run, and before each run."""
        first = dropped & ~np.concatenate(([False], dropped[:-1]))
        sentinels = self.sentinels[: int(first.sum())]
        source = ids.copy()
        source[first] = sentinels
        target = np.insert(ids[dropped], np.flatnonzero(first[dropped]), sentinels)
        return np.append(source[~dropped | first], self.end_id), np.append(target, self.end_id)

    def _counts(self, size: int) -> tuple[int, int]:
        """Tokens to be dropped of ``size``, and in how many spans."""
        noise = min(max(round(size * self.share), 1), max(size - 1, 1))
        spans = max(round(noise / self.mean_span), 1)
        # Each span stands behind a token that stays, and has a sentinel of its own.
        return noise, min(spans, noise, max(size - noise, 1), len(self.sentinels))

    def _lengths(self, size: int) -> tuple[int, int]:
        """Positions of the source and of the target of ``size`` tokens, end tokens included."""
        noise, spans = self._counts(size)
        return size - noise + spans + 1, noise + spans + 1


def random_spans_noise_mask(
    length: int, noise: int, spans: int, random: np.random.Generator
) -> Flags:
    """Which of ``length`` tokens to drop: ``noise`` of them, in ``spans`` runs.

    Tokens that stay and runs alternate, beginning with tokens that stay; their lengths are random
    ways to write ``length - noise`` and ``noise`` as sums of ``spans`` numbers of 1 or more. A
    single token is dropped.
    """
    if noise == length:
        return np.ones(length, dtype=bool)
    kept = _random_parts(length - noise, spans, random)
    dropped = _random_parts(noise, spans, random)
    lengths = np.stack((kept, dropped), axis=1).flatten()
    return np.repeat(np.tile([False, True], spans), lengths)


def _random_parts(total: int, parts: int, random: np.random.Generator) -> Counts:
    """``parts`` numbers of 1 or more with the sum ``total``, every choice as likely."""
    cuts = np.sort(random.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate(([0], cuts, [total])))


@dataclass(frozen=True, slots=True)
class Infilling:
    """BART's objective: text infilling and sentence permutation; see
    :class:`hone.data.pretraining.Task`.

    Attributes:
        mask_id: the token that stands for a span.
        start_id: the token that a decoder begins with.
        prefix, suffix: special tokens around source and target.
        share: of the tokens, to be hidden.
        mean_span: of the Poisson distribution of the spans' lengths.
        sentences: where sentences begin, to put them in another order; None leaves the order.
        overlap: see :class:`hone.data.pretraining.Task`.

    Raises:
        ConfigError: a setting out of its range.
    """

    mask_id: int
    start_id: int
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    share: float = 0.3
    mean_span: float = 3.0
    sentences: TokenTexts | None = None
    overlap: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _check_share(self.share)
        _check_span(self.mean_span)

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        start_id: int,
        *,
        share: float = 0.3,
        mean_span: float = 3.0,
        permute_sentences: bool = True,
    ) -> "Infilling":
        """The task for the texts of ``tokenizer``, with the special tokens that it puts around one.

        Args:
            start_id: the model's ``decoder_start_token_id``.

        Raises:
            ConfigError: it has no mask token.
        """
        if tokenizer.mask_id is None:
            raise ConfigError(
                "The tokenizer has no mask token; infilling needs one. Name it as "
                '"mask_token" in tokenizer_config.json.'
            )
        prefix, suffix = around(tokenizer)
        sentences = TokenTexts.of(tokenizer) if permute_sentences else None
        return cls(
            tokenizer.mask_id,
            start_id,
            prefix,
            suffix or (_end(tokenizer),),
            share,
            mean_span,
            sentences,
        )

    def piece_length(self, length: int) -> int:
        """See :class:`hone.data.pretraining.Task`."""
        return length - len(self.prefix) - len(self.suffix)

    def positions(self, sizes: Counts) -> tuple[Counts, Counts]:
        """See :class:`hone.data.pretraining.Task`; a source is no longer than its target."""
        around = len(self.prefix) + len(self.suffix)
        return sizes + around, sizes + around

    def sample(self, piece: Tokens, random: np.random.Generator) -> Sample:
        """See :class:`hone.data.pretraining.Task`."""
        text = piece.astype(np.int64)
        damaged = text
        if self.sentences is not None:
            starts = np.flatnonzero(self.sentences.sentence_starts(text))
            order = random.permutation(len(starts))
            sentences = np.split(text, starts[1:])
            damaged = np.concatenate([sentences[index] for index in order])
        damaged = infill(damaged, self.mask_id, self.share, self.mean_span, random)
        target = np.concatenate((self.prefix, text, self.suffix)).astype(np.int64)
        source = np.concatenate((self.prefix, damaged, self.suffix)).astype(np.int64)
        return Sample(np.concatenate(([self.start_id], target[:-1])), target, source)


def infill(
    ids: Counts, mask_id: int, share: float, mean_span: float, random: np.random.Generator
) -> Counts:
    """``ids`` with one mask for each of some spans, which do not overlap.

    The lengths of the spans are drawn from a Poisson distribution until they cover ``share`` of the
    tokens (the last one is cut to fit); then every arrangement of the spans among the tokens that
    stay is as likely. A span of no tokens puts a mask in between. There are never more masks than
    hidden tokens, so that the result is no longer than ``ids``.
    """
    wanted = max(round(share * len(ids)), 1) if share else 0
    lengths: list[int] = []
    while (left := wanted - sum(lengths)) > 0:
        lengths.append(min(int(random.poisson(mean_span)), left))
    spare = max(len(lengths) - wanted, 0)
    for _ in range(spare):
        lengths.remove(0)
    # -1 is a token that stays; the others are spans.
    items = np.concatenate((np.full(len(ids) - wanted, -1), np.array(lengths, dtype=np.int64)))
    items = random.permutation(items)
    widths = np.where(items < 0, 1, items)
    first = np.cumsum(widths) - widths
    stays = items < 0
    result = np.full(len(items), mask_id, dtype=np.int64)
    result[stays] = ids[first[stays]]
    return result


def _end(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_id is None:
        raise ConfigError(
            "The tokenizer has no end token, which every text to be written ends with. Name it as "
            '"eos_token" in tokenizer_config.json.'
        )
    return tokenizer.eos_id


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise ConfigError(f"share must be above 0 and below 1, not {share!r}.")


def _check_span(mean_span: float) -> None:
    if not 1 <= mean_span < math.inf:
        raise ConfigError(f"mean_span must be at least 1, not {mean_span!r}.")
