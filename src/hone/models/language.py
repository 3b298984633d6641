"""Heads that score tokens of the vocabulary: the next one, a masked one, that of an answer.

Shapes: B rows, T columns of a padded batch, N tokens of all sequences behind one another, M tokens
of the sources, E hidden, V vocabulary.
"""

from typing import Protocol

from torch import Tensor, nn

from hone.core.errors import RequestError
from hone.kernels import (
    PackedLayout,
    load_balancing_loss,
    project,
    projected_cross_entropy,
    router_z_loss,
    scored_cross_entropy,
)
from hone.models.blocks import rows
from hone.models.config import ModelConfig
from hone.models.context import Context, Packed
from hone.models.model import Model, Output
from hone.models.padding import Padding

IGNORED_LABEL = -100


class Cache(Context, Protocol):
    """A context that is told what each pass brings."""

    def begin(self, lengths: list[int], source_lengths: list[int] | None = None) -> None:
        """The coming pass has so many tokens of each sequence."""

    def positions(self) -> Tensor:
        """The position of each token of the coming pass, int64 ``[N]``."""

    def advance(self) -> None:
        """The pass is over."""


class PackedBatch(Protocol):
    """Sequences laid behind one another; see :meth:`LanguageModel.packed_loss`."""

    input_ids_N: Tensor  # noqa: N815
    position_ids_N: Tensor  # noqa: N815
    cu_seqlens: Tensor
    max_length: int
    labels_N: Tensor  # noqa: N815


class Seq2SeqBatch(PackedBatch, Protocol):
    """Answers laid behind one another, and their sources; see :meth:`Seq2SeqLM.packed_loss`."""

    source_ids_M: Tensor  # noqa: N815
    source_cu_seqlens: Tensor


class LanguageModel(Model):
    """A body whose head scores tokens of the vocabulary."""

    def add_head(self, config: ModelConfig) -> None:
        """Make the output layer."""
        super().add_head(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)

    def tie_weights(self) -> None:
        """See :class:`Model`."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embedding.weight

    def logits(self, hidden_NE: Tensor) -> Tensor:
        """Scores ``[N, V]`` of hidden states."""
        return self._scores(self._to_score(hidden_NE))

    def _to_score(self, hidden_NE: Tensor) -> Tensor:
        """What the output layer reads."""
        if self.transform is not None:
            hidden_NE = self.transform(hidden_NE)
        scale = self.config.logit_scale
        return hidden_NE if scale == 1.0 else hidden_NE * scale

    def _scores(self, hidden_NE: Tensor) -> Tensor:
        logits_NV = project(hidden_NE, (self.lm_head,))
        cap = self.config.logit_softcap
        return logits_NV if cap is None else (logits_NV / cap).tanh() * cap

    def packed_loss(self, batch: PackedBatch) -> Tensor:
        """The summed negative log-likelihood of the labelled tokens, a float32 scalar.

        Segments do not see one another. Divide by the number of labels of the whole step. With
        experts, their balancing losses are added once per label, so that the quotient is right.

        Args:
            batch: ``input_ids_N`` and ``position_ids_N`` int64; ``cu_seqlens`` int32 ``[n + 1]``
                with the bounds of the n segments; ``max_length`` of a segment; ``labels_N`` int64,
                for a causal model already shifted (the label of a position is the token that
                follows it), -100 where there is none.
        """
        keep = (batch.labels_N != IGNORED_LABEL).nonzero().squeeze(-1)
        router_logits: list[Tensor] = []
        balanced = self.config.experts is not None  # over all tokens, in the last layer too
        hidden_NE = self.decoder(
            batch.input_ids_N,
            batch.position_ids_N,
            Packed(PackedLayout(batch.cu_seqlens)),
            None if balanced else keep,
            router_logits=router_logits,
        )
        loss = self.hidden_loss(hidden_NE[keep] if balanced else hidden_NE, batch.labels_N[keep])
        return loss + len(keep) * self.router_loss(router_logits) if router_logits else loss

    def hidden_loss(self, hidden_NE: Tensor, labels_N: Tensor) -> Tensor:
        """The summed negative log-likelihood of ``labels_N`` given the body's hidden states."""
        output, hidden_NE = self.lm_head, self._to_score(hidden_NE)
        if type(output) is nn.Linear:
            cap = self.config.logit_softcap
            return projected_cross_entropy(hidden_NE, output.weight, labels_N, output.bias, cap)
        return scored_cross_entropy(
            hidden_NE, labels_N, self._scores, output.parameters(), self.config.vocab_size
        )

    def router_loss(self, router_logits: list[Tensor]) -> Tensor:
        """What keeps the experts in balance, weighed as the configuration says."""
        experts = self.config.experts
        assert experts is not None
        loss = experts.balance * load_balancing_loss(router_logits, experts.per_token)
        if experts.router_z:
            loss = loss + experts.router_z * router_z_loss(router_logits)
        return loss


class CausalLM(LanguageModel):
    """Scores the next token."""

    head = "causal"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
    ) -> Output:
        """Score the next token at every position.

        Args:
            input_ids: ``[B, T]`` int64, the tokens after those in ``cache``.
            attention_mask: ``[B, S]``, 1 for a token and 0 for padding, over the cached and the
                new positions; positions count each row's tokens. None means no padding.
            cache: read and extended; None computes everything.
            logits_to_keep: score only the last so many columns; 0 scores all.

        Returns:
            ``.logits`` ``[B, T or logits_to_keep, V]`` in the model's dtype, zero at padding.
        """
        attention_mask = _of_new(input_ids, attention_mask)
        padding = Padding(input_ids, attention_mask, continues=cache is not None)
        if cache is None:
            context: Context = (packed := Packed.of(padding.lengths, device=input_ids.device))
            positions_N = packed.positions_N()
        else:
            cache.begin(padding.lengths)
            context, positions_N = cache, cache.positions().to(input_ids.device)
        keep = padding.last_columns(logits_to_keep) if logits_to_keep else None
        hidden: list[Tensor] | None = [] if output_hidden_states else None
        early = keep if hidden is None else None  # hidden states are those of all columns
        hidden_NE = self.decoder(
            padding.pack(input_ids), positions_N, context, early, hidden_states=hidden
        )
        if cache is not None:
            cache.advance()
        logits_NV = self.logits(rows(hidden_NE, keep if early is None else None))
        every = None if hidden is None else tuple(padding.unpack(x_NE) for x_NE in hidden)
        return Output(padding.unpack_last(logits_NV, keep, logits_to_keep), every)


class MaskedLM(LanguageModel):
    """Scores the token of every position, from both sides."""

    head = "masked"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> Output:
        """Score the tokens at every position, ``[B, T, V]``.

        Args:
            attention_mask: ``[B, T]``, 1 for a token and 0 for padding; None means no padding.
            token_type_ids: ``[B, T]``, the kind of segment of each token; None for kind 0.
        """
        hidden_NE, padding, every = self._body(
            input_ids, attention_mask, token_type_ids, output_hidden_states
        )
        return Output(padding.unpack(self.logits(hidden_NE)), every)


class Seq2SeqLM(LanguageModel):
    """Scores the next token of an answer to a source."""

    head = "seq2seq"

    def packed_loss(self, batch: Seq2SeqBatch) -> Tensor:  # type: ignore[override]
        """The summed negative log-likelihood of the labelled tokens, a float32 scalar.

        Args:
            batch: the answers as in :meth:`LanguageModel.packed_loss`, each beginning with the
                token that starts one, so that a position's label is the next position's token;
                ``source_ids_M`` int64 and ``source_cu_seqlens`` int32 ``[n + 1]``, the sources of
                the n answers in their order.
        """
        source = Packed(PackedLayout(batch.source_cu_seqlens))
        source_ME = self.encoder(batch.source_ids_M, source.positions_N(), source)
        keep = (batch.labels_N != IGNORED_LABEL).nonzero().squeeze(-1)
        hidden_NE = self.decoder(
            batch.input_ids_N,
            batch.position_ids_N,
            Packed(PackedLayout(batch.cu_seqlens), source.layout),
            keep,
            source_ME=source_ME,
        )
        return self.hidden_loss(hidden_NE, batch.labels_N[keep])

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
    ) -> Output:
        """Score the next token of the answer at every position.

        Args:
            input_ids: ``[B, M]`` the sources; None in a later pass with ``cache``.
            attention_mask: of the sources.
            decoder_input_ids: ``[B, T]`` the answers so far, or what comes after those in
                ``cache``.
            decoder_attention_mask: of the answers, over the cached and the new positions.
            cache: read and extended; None computes everything.
            logits_to_keep: score only the last so many columns; 0 scores all.

        Returns:
            ``.logits`` ``[B, T or logits_to_keep, V]`` in the model's dtype, zero at padding.

        Raises:
            RequestError: there is no answer to score, or no source to read.
        """
        if decoder_input_ids is None:
            raise RequestError("An encoder-decoder model needs decoder_input_ids to score.")
        decoder_attention_mask = _of_new(decoder_input_ids, decoder_attention_mask)
        padding = Padding(decoder_input_ids, decoder_attention_mask, continues=cache is not None)
        source_ME, source_lengths = None, None
        encoded: list[Tensor] | None = [] if output_hidden_states else None
        if input_ids is not None:
            source = Padding(input_ids, attention_mask)
            source_lengths = source.lengths
            source_ME = self.encode(source.pack(input_ids), source_lengths, encoded)
        if cache is None:
            if source_lengths is None:
                raise RequestError("Without a cache an encoder-decoder model needs input_ids.")
            packed = Packed.of(padding.lengths, source_lengths, decoder_input_ids.device)
            context: Context = packed
            positions_N = packed.positions_N()
        else:
            cache.begin(padding.lengths, source_lengths)
            context, positions_N = cache, cache.positions().to(decoder_input_ids.device)
        keep = padding.last_columns(logits_to_keep) if logits_to_keep else None
        hidden: list[Tensor] | None = [] if output_hidden_states else None
        early = keep if hidden is None else None  # hidden states are those of all columns
        hidden_NE = self.decoder(
            padding.pack(decoder_input_ids),
            positions_N,
            context,
            early,
            source_ME=source_ME,
            hidden_states=hidden,
        )
        if cache is not None:
            cache.advance()
        logits_NV = self.logits(rows(hidden_NE, keep if early is None else None))
        every = None if hidden is None else tuple(padding.unpack(x_NE) for x_NE in hidden)
        every_source = tuple(source.unpack(x_ME) for x_ME in encoded) if encoded else None
        return Output(padding.unpack_last(logits_NV, keep, logits_to_keep), every, every_source)


def _of_new(ids_BT: Tensor, mask_BS: Tensor | None) -> Tensor | None:
    """The columns of an attention mask that belong to the new tokens."""
    if mask_BS is None:
        return None
    return mask_BS[:, max(0, mask_BS.shape[1] - ids_BT.shape[-1]) :]
