"""Heads that read a whole text: its class, the classes of its tokens, its embedding.

Shapes: B rows, T columns of a padded batch, N tokens of all sequences behind one another, E hidden,
L labels.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from hone.core.errors import DataError, RequestError
from hone.kernels import PackedLayout, project
from hone.models.config import ModelConfig, Pooling
from hone.models.context import Packed
from hone.models.language import IGNORED_LABEL, PackedBatch
from hone.models.model import Model, Output


class TargetBatch(PackedBatch, Protocol):
    """Texts laid behind one another, and what each is scored by."""

    targets_B: Tensor | None  # noqa: N815


class PairBatch(TargetBatch, Protocol):
    """Pairs of texts: the first of each behind one another, and so the second."""

    source_ids_M: Tensor | None  # noqa: N815
    source_cu_seqlens: Tensor | None


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
        return Output(self._scores(hidden_NE, padding.lengths, padding.pack(input_ids)), every)

    def packed_loss(self, batch: TargetBatch) -> Tensor:
        """The summed loss of the texts, a float32 scalar; divide by the texts of the whole step.

        By the configuration's ``problem`` it is the negative log-likelihood of a text's class, or
        the mean over the classes of the binary cross-entropy, or of the squared error of numbers.

        Args:
            batch: see :meth:`LanguageModel.packed_loss`, without labels; ``targets_B`` are int64
                ``[B]`` classes, or for the other problems ``[B, L]`` (``[B]`` with one label).

        Raises:
            DataError: the targets are not what the problem asks for.
        """
        logits_BL = self.packed_logits(batch).float()
        targets_B = batch.targets_B
        if targets_B is None:
            raise DataError("A text without a class or number cannot be trained on; give it one.")
        if self.config.problem == "single_label":
            if targets_B.is_floating_point():
                raise DataError(
                    "The model tells one class of several, and a text has a number or several "
                    "classes; give each text one class, or choose another problem."
                )
            return nn.functional.cross_entropy(logits_BL, targets_B, reduction="sum")
        if targets_B.numel() != logits_BL.numel():
            raise DataError(
                f"A text has {targets_B.numel() // len(targets_B)} numbers as its target, and the "
                f"model {logits_BL.shape[-1]} labels; give a number for each label."
            )
        wanted_BL = targets_B.float().view_as(logits_BL)
        if self.config.problem == "multi_label":
            summed = nn.functional.binary_cross_entropy_with_logits(
                logits_BL, wanted_BL, reduction="sum"
            )
        else:
            summed = nn.functional.mse_loss(logits_BL, wanted_BL, reduction="sum")
        return summed / logits_BL.shape[-1]

    def packed_logits(self, batch: TargetBatch) -> Tensor:
        """The scores ``[B, L]`` of the texts of a pack."""
        layout = PackedLayout(batch.cu_seqlens)
        hidden_NE = self._hidden(batch.input_ids_N, Packed(layout))
        return self._scores(hidden_NE, layout.lengths, batch.input_ids_N)

    def _scores(self, hidden_NE: Tensor, lengths: list[int], ids_N: Tensor) -> Tensor:
        pooled_BE = pool(hidden_NE, lengths, self.config.pooling, self._is_end(ids_N))
        if self.transform is not None:
            pooled_BE = self.transform(pooled_BE)
        return project(pooled_BE, (self.score,))


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
        return Output(padding.unpack(self._scores(hidden_NE)), every)

    def packed_loss(self, batch: PackedBatch) -> Tensor:
        """The summed negative log-likelihood of the labelled tokens' classes, a float32 scalar.

        Args:
            batch: see :meth:`LanguageModel.packed_loss`; ``labels_N`` are each token's own class.
        """
        hidden_NE = self._hidden(batch.input_ids_N, Packed(PackedLayout(batch.cu_seqlens)))
        keep = (batch.labels_N != IGNORED_LABEL).nonzero().squeeze(-1)
        logits_NL = self._scores(hidden_NE[keep]).float()
        return nn.functional.cross_entropy(logits_NL, batch.labels_N[keep], reduction="sum")

    def packed_logits(self, batch: TargetBatch) -> Tensor:
        """The scores ``[N, L]`` of all tokens of a pack."""
        return self._scores(self._hidden(batch.input_ids_N, Packed(PackedLayout(batch.cu_seqlens))))

    def _scores(self, hidden_NE: Tensor) -> Tensor:
        if self.transform is not None:
            hidden_NE = self.transform(hidden_NE)
        return project(hidden_NE, (self.score,))


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
        return Output(self._pooled(hidden_NE, padding.lengths, padding.pack(input_ids)), every)

    def embed(self, ids_N: Tensor, context: Packed) -> Tensor:
        """The embeddings ``[B, E]`` of whole texts that lie behind one another."""
        return self._pooled(self._hidden(ids_N, context), context.layout.lengths, ids_N)

    def embed_pairs(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """The embeddings ``[B, E]`` of the first and of the second texts of pairs.

        Raises:
            DataError: the texts have no partners.
        """
        if batch.source_ids_M is None or batch.source_cu_seqlens is None:
            raise DataError("An embedding is trained on pairs of texts; these have no second one.")
        first, second = batch.cu_seqlens, batch.source_cu_seqlens
        ids_N = torch.cat((batch.input_ids_N, batch.source_ids_M))
        layout = PackedLayout(torch.cat((first, second[1:] + first[-1])))
        both_BE = self.embed(ids_N, Packed(layout))
        first_BE, second_BE = both_BE.tensor_split(2)
        return first_BE, second_BE

    def packed_loss(self, batch: PairBatch) -> Tensor:
        """The summed squared error of pairs' cosine similarity, a float32 scalar.

        The regression objective of Reimers and Gurevych 2019 (Sentence-BERT). Pairs without a score
        are trained by :class:`hone.train.Contrastive`.

        Args:
            batch: pairs; ``targets_B`` float ``[B]``, the similarities from -1 to 1.

        Raises:
            DataError: there are no pairs, or no similarities.
        """
        if batch.targets_B is None:
            raise DataError(
                "The pairs have no similarity to be trained to; give each a score, or train them "
                "against one another (the contrastive objective)."
            )
        first_BE, second_BE = self.embed_pairs(batch)
        cosine_B = nn.functional.cosine_similarity(first_BE.float(), second_BE.float())
        return nn.functional.mse_loss(cosine_B, batch.targets_B.float(), reduction="sum")

    def _pooled(self, hidden_NE: Tensor, lengths: list[int], ids_N: Tensor) -> Tensor:
        assert self.config.embedding_pooling is not None, "filled in on construction"
        ends_N = self._is_end(ids_N)
        pooled_BE = pool(hidden_NE, lengths, self.config.embedding_pooling, ends_N)
        if self.transform is not None:
            pooled_BE = self.transform(pooled_BE)
        if self.config.unit_length:
            pooled_BE = nn.functional.normalize(pooled_BE, dim=-1)
        return pooled_BE


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
