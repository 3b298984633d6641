"""What a model is trained on: one text, or a pair of texts, as token ids with their labels."""

from collections.abc import Sequence
from dataclasses import dataclass

IGNORED = -100  # the label of a position without loss


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

    ids: Sequence[int]
    labels: Sequence[int] = ()
    source: Sequence[int] | None = None
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
