"""A body that a head can be put on: weights, their first values, whole texts in and out.

Shapes: B rows, T columns of a padded batch, N tokens of all sequences behind one another, M tokens
of the sources, E hidden, V vocabulary, L labels.
"""

import math
from collections.abc import Collection
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from hone.core.errors import CheckpointError
from hone.kernels import ACTIVATIONS, adjoin, project
from hone.models.blocks import OffsetRMSNorm, RMSNorm, make_norm
from hone.models.config import Head, ModelConfig
from hone.models.context import Packed
from hone.models.padding import Padding
from hone.models.recompute import Mode, Recomputation, warn_of_useless_offload
from hone.models.stack import EncoderDecoder, Stack

# Layers that write to the residual stream.
_RESIDUAL = ("o_proj.weight", "down_proj.weight", "down_proj", "out_proj.weight")


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

    def set_activation_checkpointing(
        self, mode: Mode, every: int = 1, offload: bool = False
    ) -> None:
        """Say what passes with gradients keep of their blocks; every bit of these stays the same.

        Args:
            mode: ``none`` keeps all that gradients need; ``blocks`` the inputs of blocks, which
                are computed once more; ``selective`` products, attention's outputs and the stream
                between layers, and computes norms, activations and attention's inside again.
            every: with ``blocks``, so many of them are one piece.
            offload: what is kept waits in the host's memory. Nothing happens on a CPU.

        Raises:
            ConfigError: there is no such mode, or ``every`` is not a positive number.
        """
        recomputation = Recomputation(mode, every, offload)
        if offload and self.device.type == "cpu":
            warn_of_useless_offload()
        for module in self.modules():
            if isinstance(module, Stack):
                module.recomputation = recomputation

    def adjoin_weights(self, values: bool = True) -> None:
        """Lay weights that are read together behind one another; see ``kernels.adjoin``."""
        for module in self.modules():
            for layers in getattr(module, "joint_products", ()):
                adjoin(layers, values)

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
        context = Packed.of(padding.lengths, device=input_ids.device)
        hidden_NE = self._hidden(padding.pack(input_ids), context, kinds_N, hidden)
        every = None if hidden is None else tuple(padding.unpack(x_NE) for x_NE in hidden)
        return hidden_NE, padding, every

    def _hidden(
        self,
        ids_N: Tensor,
        context: Packed,
        kinds_N: Tensor | None = None,
        every: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states ``[N, E]`` of whole sequences that lie behind one another."""
        source_ME = None
        if isinstance(self.model, EncoderDecoder):
            source_ME = self.encode(ids_N, context.layout.lengths)
            context = Packed(context.layout, context.layout)
            ids_N = self._shifted(ids_N, context.bounds[:-1])
        hidden_NE: Tensor = self.decoder(
            ids_N,
            context.positions_N(),
            context,
            source_ME=source_ME,
            token_types_N=kinds_N,
            hidden_states=every,
        )
        return hidden_NE

    def _is_end(self, ids_N: Tensor) -> Tensor:
        """Which tokens end a sequence, by the configuration."""
        ends = self.config.eos_token_id
        known = ends if isinstance(ends, tuple) else () if ends is None else (ends,)
        return torch.isin(ids_N, torch.tensor(known, dtype=ids_N.dtype, device=ids_N.device))


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
