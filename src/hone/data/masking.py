"""Masked language modelling (Devlin et al. 2019, BERT): some tokens are hidden, to be told from
both sides.

Of the tokens of a text 15% are chosen, at least one. Of those 80% become the mask, 10% any other
token, and 10% stay, so that a model cannot rely on seeing the mask where it is asked. Which ones is
drawn anew every time a piece is seen (Liu et al. 2019, RoBERTa: dynamic masking).
"""

from dataclasses import dataclass, field

import numpy as np

from hone.core.errors import ConfigError
from hone.data.corpus import Tokens
from hone.data.pretraining import Counts
from hone.data.samples import IGNORED, Sample
from hone.data.words import Flags, TokenTexts
from hone.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Masked:
    """Hidden tokens are to be told; see :class:`hone.data.pretraining.Task`.

    Attributes:
        mask_id: the token that hides another.
        vocab_size: other tokens are drawn from below it.
        special_ids: tokens that are never chosen, and never put in another's place.
        prefix, suffix: special tokens around every piece.
        share: of the tokens, to be chosen.
        mask_share, random_share: of the chosen ones; the others stay.
        words: where words begin; then whole words are chosen. None chooses single tokens.
        overlap: see :class:`hone.data.pretraining.Task`.

    Raises:
        ConfigError: a share is not between 0 and 1, or no token is left to be drawn.
    """

    mask_id: int
    vocab_size: int
    special_ids: tuple[int, ...] = ()
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    share: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    words: TokenTexts | None = None
    overlap: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name in ("share", "mask_share", "random_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be between 0 and 1, not {getattr(self, name)!r}.")
        if self.mask_share + self.random_share > 1:
            raise ConfigError(
                f"mask_share {self.mask_share} and random_share {self.random_share} are more than "
                "all chosen tokens; make one of them smaller."
            )
        if self.random_share and len(set(self.special_ids)) >= self.vocab_size:
            raise ConfigError("All tokens of the vocabulary are special; none can be drawn.")

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        *,
        share: float = 0.15,
        mask_share: float = 0.8,
        random_share: float = 0.1,
        whole_words: bool = False,
    ) -> "Masked":
        """The task for the texts of ``tokenizer``, with the special tokens that it puts around one.

        Raises:
            ConfigError: it has no mask token.
        """
        if tokenizer.mask_id is None:
            raise ConfigError(
                "The tokenizer has no mask token; masked language modelling needs one. Name it as "
                '"mask_token" in tokenizer_config.json, or train a causal model.'
            )
        prefix, suffix = around(tokenizer)
        return cls(
            mask_id=tokenizer.mask_id,
            vocab_size=tokenizer.vocab_size,
            special_ids=tuple(sorted(tokenizer.special_ids)),
            prefix=prefix,
            suffix=suffix,
            share=share,
            mask_share=mask_share,
            random_share=random_share,
            words=TokenTexts.of(tokenizer) if whole_words else None,
        )

    def piece_length(self, length: int) -> int:
        """See :class:`hone.data.pretraining.Task`."""
        return length - len(self.prefix) - len(self.suffix)

    def positions(self, sizes: Counts) -> tuple[Counts, Counts]:
        """See :class:`hone.data.pretraining.Task`."""
        return sizes + len(self.prefix) + len(self.suffix), np.zeros_like(sizes)

    def sample(self, piece: Tokens, random: np.random.Generator) -> Sample:
        """See :class:`hone.data.pretraining.Task`; special tokens alone have no label."""
        ids = np.concatenate((self.prefix, piece, self.suffix)).astype(np.int64)
        special = np.isin(ids, self.special_ids)
        special[: len(self.prefix)] = special[len(ids) - len(self.suffix) :] = True
        starts = (
            np.ones(len(ids), dtype=bool) if self.words is None else self.words.word_starts(ids)
        )
        chosen = choose_words(np.cumsum(starts), ~special, self.share, random)
        labels = np.full(len(ids), IGNORED, dtype=np.int64)
        labels[chosen] = ids[chosen]
        draw = random.random(len(chosen))
        ids[chosen[draw < self.mask_share]] = self.mask_id
        other = chosen[(draw >= self.mask_share) & (draw < self.mask_share + self.random_share)]
        while len(other):
            ids[other] = random.integers(self.vocab_size, size=len(other))
            other = other[np.isin(ids[other], self.special_ids)]
        return Sample(ids, labels)


def choose_words(
    word: Counts, eligible: Flags, share: float, random: np.random.Generator
) -> Counts:
    """Which tokens to hide, in order: whole words in random order until there are enough.

    A word with more tokens than are still wanted is passed over, so that never more than the share
    is hidden (as BERT's own program does); of words that are all too long the shortest is taken.

    Args:
        word: the number of the word of each token ``[N]``, rising.
        eligible: bool ``[N]``, tokens that may be chosen.
        share: of the eligible tokens; rounded, and at least one.

    Returns:
        Indices, none only where no token is eligible.
    """
    places = np.flatnonzero(eligible)
    if not len(places):
        return places
    wanted = max(1, round(share * len(places)))
    if np.all(np.diff(word[places])):
        return np.sort(random.choice(places, wanted, replace=False))
    words = np.split(places, np.flatnonzero(np.diff(word[places])) + 1)
    found: list[Counts] = []
    left = wanted
    for index in random.permutation(len(words)):
        if len(words[index]) <= left:
            found.append(words[index])
            left -= len(words[index])
            if not left:
                break
    return np.sort(np.concatenate(found or [min(words, key=len)]))


def around(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that ``tokenizer`` puts before and behind a text."""
    bare, whole = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=True)
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return tuple(whole[:start]), tuple(whole[start + len(bare) :])
    return (), ()
