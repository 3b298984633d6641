"""The embedding of a text whose tokens a causal model reads some at a time.

Models with the head "embedding" read texts whole: :mod:`hone.engine.pipelines`.

Shapes: N tokens of a chunk, E hidden size.
"""

import torch
from torch import Tensor

from hone.core.errors import ConfigError
from hone.models import ModelConfig


class Pooler:
    """Pools the hidden states of one text, which come in chunks, as ``hone.models`` pools whole
    texts: their mean, the first, or the last.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Nothing is read yet.

        Raises:
            ConfigError: a pooling that is chosen by tokens, of models that read texts whole.
        """
        if config.embedding_pooling not in ("mean", "cls", "last"):
            raise ConfigError(
                f"The pooling {config.embedding_pooling!r} looks at a text's tokens; embed with "
                'hone.pipeline("sentence-embedding", ...).'
            )
        self._pooling, self._size = config.embedding_pooling, config.hidden_size
        self.reset()

    def reset(self) -> None:
        """The text is read from its beginning."""
        self._count, self._pooled_E = 0, torch.zeros(self._size)

    def add(self, hidden_NE: Tensor) -> None:
        """Take in the hidden states of the text's next tokens."""
        count = len(hidden_NE)
        if not count:
            return
        if self._pooling == "last":
            self._pooled_E = hidden_NE[-1].float().cpu()
        elif self._pooling == "mean":
            # float64: the result does not show where chunks began.
            self._pooled_E = self._pooled_E + hidden_NE.double().sum(0).cpu()
        elif not self._count:
            self._pooled_E = hidden_NE[0].float().cpu()
        self._count += count

    def result(self) -> list[float]:
        """The embedding, ``E`` numbers; its length is not brought to 1."""
        assert self._count, "a text has a token"
        pooled_E = self._pooled_E / self._count if self._pooling == "mean" else self._pooled_E
        values: list[float] = pooled_E.float().tolist()
        return values
