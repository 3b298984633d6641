"""Models: a body with a head. Any body takes any head that its kind of attention allows.

Shapes: B rows, T columns of a padded batch, N tokens of all sequences behind one another, M tokens
of the sources, E hidden, V vocabulary, L labels.
"""

import math
from collections.abc import Collection
from dataclasses import replace
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hone.core.errors import CheckpointError, RequestError
from hone.kernels import (
    ACTIVATIONS,
    PackedLayout,
    adjoin,
    load_balancing_loss,
    project,
    projected_cross_entropy,
    router_z_loss,
)
from hone.models.blocks import OffsetRMSNorm, RMSNorm, make_norm
from hone.models.config import Head, ModelConfig, Pooling
from hone.models.context import Context, Packed
from hone.models.padding import Padding
from hone.models.stack import EncoderDecoder, Stack

IGNORED_LABEL = -100
# Layers that write to the residual stream.
_RESIDUAL = ("o_proj.weight", "down_proj.weight", "down_proj", "out_proj.weight")


class Cache(Context, Protocol):
    """A context that is told what each pass brings."""

    def begin(self, lengths: list[int], source_lengths: list[int] | None = None) -> None:
        """The coming pass has so many tokens of each sequence."""

    def positions(self) -> Tensor:
        """The position of each token of the coming pass, int64 ``[N]``."""

    def advance(self) -> None:
        """The pass is over."""


class Output(NamedTuple):
    """What a model returns.

    Attributes:
        logits: scores, ``[B, T, V]`` of tokens, ``[B, L]`` of classes, ``[B, T, L]`` of the
            classes of tokens; or the embeddings ``[B, E]``.
        hidden_states: ``[B, T, E]`` before every block and after the last, when asked for; of the
            decoder where there is one.
        encoder_hidden_states: the encoder's ``[B, M, E]``, where there is one.
    """

    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None


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


class Transform(nn.Module):
    """The layers of a head before its output: a product, an activation, perhaps a norm."""

    def __init__(self, config: ModelConfig, layers: tuple[str, ...]) -> None:
        super().__init__()
        size = config.hidden_size
        self.dense = nn.Linear(size, size, bias=config.transform_bias)
        self.activation = layers[0]
        self.norm = make_norm(config) if "norm" in layers else None

    def forward(self, x_NE: Tensor) -> Tensor:
        """``[N, E]`` to ``[N, E]``."""
        x_NE = ACTIVATIONS[self.activation](project(x_NE, (self.dense,)))
        return x_NE if self.norm is None else self.norm(x_NE)


class Model(nn.Module):
    """A body; subclasses add a head."""

    head: ClassVar[Head]

    def __init__(self, config: ModelConfig, dtype: torch.dtype | None = None) -> None:
        """Allocate the weights of ``config``; fill them with :meth:`initialise` or by loading."""
        super().__init__()
        self.config = config if config.head == self.head else replace(config, head=self.head)
        self.model = Stack(config) if config.encoder is None else EncoderDecoder(config)
        self.add_head(self.config)
        # What no layer reads and files should keep, by its name there; see ``Family.carried``.
        self.carried: dict[str, Tensor] = {}
        if dtype is not None:
            self.to(dtype)
        self.tie_weights()

    def add_head(self, config: ModelConfig) -> None:
        """Make the layers of the head."""
        layers = config.transforms.get(self.head)
        self.transform = Transform(config, layers) if layers else None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    @property
    def embedding(self) -> nn.Embedding:
        """The embedding of tokens."""
        if isinstance(self.model, EncoderDecoder):
            return self.model.shared
        return self.model.embed_tokens

    @property
    def encoder(self) -> Stack:
        """The stack that reads sources."""
        assert isinstance(self.model, EncoderDecoder), "only a pair has an encoder"
        return self.model.encoder

    @property
    def decoder(self) -> Stack:
        """The stack that the head reads: the decoder of a pair, else the only one."""
        return self.model.decoder if isinstance(self.model, EncoderDecoder) else self.model

    def tie_weights(self) -> None:
        """Make the output layer read the embedding, when the configuration says so."""

    def adjoin_weights(self) -> None:
        """Lay weights that are read together behind one another; see ``kernels.adjoin``."""
        for module in self.modules():
            for layers in getattr(module, "joint_products", ()):
                adjoin(layers)

    @torch.no_grad()
    def initialise(self, seed: int, only: Collection[str] | None = None) -> None:
        """Random weights: normal with ``initializer_range``; the layers that write to the residual
        stream are scaled by 1/sqrt(2L) (Radford et al. 2019, section 2.3); biases zero, norms one.

        Args:
            only: names of the weights that get values; None for all.
        """
        generator = torch.Generator().manual_seed(seed)
        std = self.config.initializer_range
        residual_std = std / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if only is not None and name not in only:
                continue
            path, _, last = name.rpartition(".")
            owner = self.get_submodule(path)
            if special := getattr(owner, "initial_value", None):
                value = special(last, generator)
                if value is not None:
                    parameter.copy_(value)
                    continue
            if isinstance(owner, OffsetRMSNorm) or last.endswith("bias"):
                parameter.zero_()
            elif isinstance(owner, RMSNorm | nn.LayerNorm):
                parameter.fill_(1.0)
            else:
                # Drawn in float32 so that every dtype starts from the same numbers.
                values = torch.empty(parameter.shape).normal_(
                    0.0, residual_std if name.endswith(_RESIDUAL) else std, generator=generator
                )
                parameter.copy_(values)

    def encode(
        self, input_ids_M: Tensor, lengths: list[int], hidden_states: list[Tensor] | None = None
    ) -> Tensor:
        """The encoder's hidden states ``[M, E]`` of sources of these ``lengths``."""
        context = Packed.of(lengths, device=input_ids_M.device)
        return self.encoder(
            input_ids_M, context.positions_N(), context, hidden_states=hidden_states
        )

    def _shifted(self, ids_N: Tensor, starts: list[int]) -> Tensor:
        """The decoder's input when it reads the source itself: one place to the right."""
        shifted_N = ids_N.roll(1)
        shifted_N[starts] = start_token(self.config)
        return shifted_N

    def _body(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> tuple[Tensor, Padding, tuple[Tensor, ...] | None]:
        """Hidden states ``[N, E]`` of whole sequences, where they stand in the batch, and those of
        every layer.
        """
        padding = Padding(input_ids, attention_mask)
        hidden: list[Tensor] | None = [] if output_hidden_states else None
        kinds_N = None if token_type_ids is None else padding.pack(token_type_ids)
        ids_N, source_ME = padding.pack(input_ids), None
        context = Packed.of(padding.lengths, device=input_ids.device)
        if isinstance(self.model, EncoderDecoder):
            source_ME = self.encode(ids_N, padding.lengths)
            context = Packed(context.layout, context.layout)
            ids_N = self._shifted(ids_N, context.bounds[:-1])
        hidden_NE = self.decoder(
            ids_N,
            context.positions_N(),
            context,
            source_ME=source_ME,
            token_types_N=kinds_N,
            hidden_states=hidden,
        )
        every = None if hidden is None else tuple(padding.unpack(x_NE) for x_NE in hidden)
        return hidden_NE, padding, every

    def _is_end(self, ids_N: Tensor) -> Tensor:
        """Which tokens end a sequence, by the configuration."""
        ends = self.config.eos_token_id
        known = ends if isinstance(ends, tuple) else () if ends is None else (ends,)
        return torch.isin(ids_N, torch.tensor(known, dtype=ids_N.dtype, device=ids_N.device))


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
        if self.transform is not None:
            hidden_NE = self.transform(hidden_NE)
        if self.config.logit_scale != 1.0:
            hidden_NE = hidden_NE * self.config.logit_scale
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
        output = self.lm_head
        plain = type(output) is nn.Linear and output.bias is None
        if not plain or self.config.logit_softcap is not None:
            logits_NV = self.logits(hidden_NE).float()
            return nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum")
        if self.transform is not None:
            hidden_NE = self.transform(hidden_NE)
        if self.config.logit_scale != 1.0:
            hidden_NE = hidden_NE * self.config.logit_scale
        return projected_cross_entropy(hidden_NE, output.weight, labels_N)

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
        if attention_mask is not None:
            attention_mask = attention_mask[:, -input_ids.shape[1] :]
        padding = Padding(input_ids, attention_mask)
        if cache is None:
            context: Context = (packed := Packed.of(padding.lengths, device=input_ids.device))
            positions_N = packed.positions_N()
        else:
            cache.begin(padding.lengths)
            context, positions_N = cache, cache.positions().to(input_ids.device)
        keep = padding.last_columns(logits_to_keep) if logits_to_keep else None
        hidden: list[Tensor] | None = [] if output_hidden_states else None
        hidden_NE = self.decoder(
            padding.pack(input_ids), positions_N, context, keep, hidden_states=hidden
        )
        if cache is not None:
            cache.advance()
        logits_NV = self.logits(hidden_NE)
        if keep is not None:
            if attention_mask is not None:
                attention_mask = attention_mask[:, -logits_to_keep:]
            padding = Padding(input_ids[:, -logits_to_keep:], attention_mask)
        every = None if hidden is None else tuple(padding.unpack(x_NE) for x_NE in hidden)
        return Output(padding.unpack(logits_NV), every)


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
        if decoder_attention_mask is not None:
            decoder_attention_mask = decoder_attention_mask[:, -decoder_input_ids.shape[1] :]
        padding = Padding(decoder_input_ids, decoder_attention_mask)
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
        hidden_NE = self.decoder(
            padding.pack(decoder_input_ids),
            positions_N,
            context,
            keep,
            source_ME=source_ME,
            hidden_states=hidden,
        )
        if cache is not None:
            cache.advance()
        logits_NV = self.logits(hidden_NE)
        if keep is not None:
            if decoder_attention_mask is not None:
                decoder_attention_mask = decoder_attention_mask[:, -logits_to_keep:]
            padding = Padding(decoder_input_ids[:, -logits_to_keep:], decoder_attention_mask)
        every = None if hidden is None else tuple(padding.unpack(x_NE) for x_NE in hidden)
        every_source = tuple(source.unpack(x_ME) for x_ME in encoded) if encoded else None
        return Output(padding.unpack(logits_NV), every, every_source)


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


def start_token(config: ModelConfig) -> int:
    """The token that every answer of an encoder-decoder begins with.

    Raises:
        CheckpointError: the configuration names none.
    """
    if config.decoder_start_token_id is None:
        raise CheckpointError(
            "config.json names no decoder_start_token_id, the token that every answer begins with."
        )
    return config.decoder_start_token_id


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


MODELS: dict[Head, type[Model]] = {
    model.head: model
    for model in (CausalLM, MaskedLM, Seq2SeqLM, Classifier, TokenClassifier, Embedder)
}


def fits(config: ModelConfig, head: Head) -> bool:
    """Whether a body of ``config`` can have ``head``."""
    if head == "causal":
        return config.causal and config.encoder is None
    return head != "seq2seq" or config.encoder is not None


def make_model(
    config: ModelConfig, head: Head | None = None, dtype: torch.dtype | None = None
) -> Model:
    """An uninitialised model of ``config`` with ``head``, or the head that it names.

    Raises:
        CheckpointError: the body cannot have that head.
    """
    head = head or config.head
    if not fits(config, head):
        bodies = {"causal": "sees no token after the current one", "seq2seq": "reads a source"}
        raise CheckpointError(
            f"The head {head!r} needs a body that {bodies[head]}, which {config.model_type!r} is "
            "not; choose another head or another model."
        )
    return MODELS[head](config, dtype)
