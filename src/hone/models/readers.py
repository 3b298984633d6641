"""Heads that read a whole text: its class, the classes of its tokens, its embedding.

Shapes: B rows, T columns of a padded batch, N tokens of all sequences behind one another, E hidden,
L labels.
"""

import torch
from torch import Tensor, nn

from hone.core.errors import RequestError
from hone.kernels import project
from hone.models.config import ModelConfig, Pooling
from hone.models.model import Model, Output


class Classifier(Model):
    """Scores the classes of a whole text; with one label, a reward or another number."""

    head = "classification"

    def add_head(self, config: ModelConfig) -> None:
        """Make the layer that scores classes."""
        super().add_head(config)
        self.score = nn.Linear(config.hidden_size, len(config.labels), bias=config.score_bias)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> Output:
        """Score each row's classes, ``[B, L]``; see :class:`MaskedLM` for the arguments."""
        hidden_NE, padding, every = self._body(
            input_ids, attention_mask, token_type_ids, output_hidden_states
        )
        ends_N = self._is_end(padding.pack(input_ids))
        pooled_BE = pool(hidden_NE, padding.lengths, self.config.pooling, ends_N)
        if self.transform is not None:
            pooled_BE = self.transform(pooled_BE)
        return Output(project(pooled_BE, (self.score,)), every)


class TokenClassifier(Model):
    """Scores the classes of every token."""

    head = "token-classification"

    def add_head(self, config: ModelConfig) -> None:
        """Make the layer that scores classes."""
        super().add_head(config)
        self.score = nn.Linear(config.hidden_size, len(config.labels))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> Output:
        """Score each token's classes, ``[B, T, L]``; see :class:`MaskedLM` for the arguments."""
        hidden_NE, padding, every = self._body(
            input_ids, attention_mask, token_type_ids, output_hidden_states
        )
        if self.transform is not None:
            hidden_NE = self.transform(hidden_NE)
        return Output(padding.unpack(project(hidden_NE, (self.score,))), every)


class Embedder(Model):
    """One vector for a text."""

    head = "embedding"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> Output:
        """One vector for each row, ``[B, E]``; see :class:`MaskedLM` for the arguments."""
        hidden_NE, padding, every = self._body(
            input_ids, attention_mask, token_type_ids, output_hidden_states
        )
        assert self.config.embedding_pooling is not None, "filled in on construction"
        ends_N = self._is_end(padding.pack(input_ids))
        pooled_BE = pool(hidden_NE, padding.lengths, self.config.embedding_pooling, ends_N)
        if self.transform is not None:
            pooled_BE = self.transform(pooled_BE)
        if self.config.unit_length:
            pooled_BE = nn.functional.normalize(pooled_BE, dim=-1)
        return Output(pooled_BE, every)


def pool(
    hidden_NE: Tensor, lengths: list[int], pooling: Pooling, is_end_N: Tensor | None = None
) -> Tensor:
    """One hidden state for each sequence, ``[B, E]``: its first, its last, that of its last end
    token, or their mean.

    Args:
        is_end_N: which tokens end a sequence, for the pooling "eos".

    Raises:
        RequestError: a sequence is empty, or has no end token where one is needed.
    """
    if 0 in lengths:
        raise RequestError(f"Row {lengths.index(0) + 1} of the batch holds no token.")
    ends_B = torch.tensor(lengths, device=hidden_NE.device).cumsum(0)
    starts_B = ends_B - torch.tensor(lengths, device=hidden_NE.device)
    if pooling == "cls":
        return hidden_NE[starts_B]
    if pooling == "last":
        return hidden_NE[ends_B - 1]
    if pooling == "eos":
        assert is_end_N is not None
        return hidden_NE[_last_ends(is_end_N, lengths)]
    sums_BE = torch.segment_reduce(
        hidden_NE.float(), "sum", lengths=ends_B - starts_B, axis=0, unsafe=True
    )
    return (sums_BE / (ends_B - starts_B)[:, None]).to(hidden_NE.dtype)


def _last_ends(is_end_N: Tensor, lengths: list[int]) -> list[int]:
    """Where the last end token of each sequence is."""
    found, start = [], 0
    for row, ends in enumerate(is_end_N.split(lengths), 1):
        places = ends.nonzero()
        if not len(places):
            raise RequestError(
                f"Row {row} of the batch has no end-of-sequence token; this model judges a text by "
                "its last one, so append it."
            )
        found.append(start + int(places[-1]))
        start += len(ends)
    return found
