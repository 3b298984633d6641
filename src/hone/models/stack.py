"""Bodies: a stack of blocks between an embedding and a last normalisation, alone or in a pair.

Shapes: N tokens of all sequences behind one another, M tokens of the sources, E hidden, H heads,
T queries, S keys.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from hone.core.errors import RequestError
from hone.kernels.positions import alibi_slopes, relative_buckets, sinusoids
from hone.models.blocks import BLOCKS, Step, make_norm
from hone.models.config import ModelConfig
from hone.models.context import Context
from hone.models.positions import Alibi, Buckets, Learned, Rotary, Sinusoidal
from hone.models.recompute import Keeper, Recomputation
from hone.models.rotary_table import RotaryTable


class RelativeBias:
    """What relative positions add to the scores, computed once per pass for each pair of sizes."""

    def __init__(self, positions: Alibi | Buckets, bidirectional: bool, weights: Tensor) -> None:
        """``weights``: ALiBi's slopes ``[H]``, or a learnt table ``[buckets, H]``."""
        self._positions, self._bidirectional = positions, bidirectional
        self._weights = weights
        self._known: dict[tuple[int, int], Tensor] = {}

    def __call__(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """``[H, T, S]`` for the last T of S positions."""
        if (queries, keys) not in self._known:
            query_T1 = torch.arange(keys - queries, keys, device=device)[:, None]
            distance_TS = torch.arange(keys, device=device) - query_T1
            # Made once for all layers: it belongs to no piece that is computed again.
            with saved_tensors_hooks(lambda kept: kept, lambda kept: kept):
                self._known[queries, keys] = self._bias(distance_TS)
        return self._known[queries, keys]

    def _bias(self, distance_TS: Tensor) -> Tensor:
        if isinstance(self._positions, Alibi):
            # After a token the bias grows as before it, where there is an after.
            return -self._weights[:, None, None] * distance_TS.abs()
        buckets = relative_buckets(
            distance_TS, self._positions.count, self._positions.max_distance, self._bidirectional
        )
        return self._weights[buckets].permute(2, 0, 1)


class Stack(nn.Module):
    """Embedding, blocks and the last normalisation."""

    def __init__(self, config: ModelConfig, embedding: nn.Embedding | None = None) -> None:
        """Make the layers of ``config``; ``embedding`` is one that another stack has too."""
        super().__init__()
        self.config = config
        size, positions = config.hidden_size, config.positions
        self.embed_tokens = embedding or nn.Embedding(config.vocab_size, size)
        if isinstance(positions, Learned):
            places = config.max_position_embeddings + positions.offset
            self.embed_positions = nn.Embedding(places, size)
        if config.token_types:
            self.embed_types = nn.Embedding(config.token_types, size)
        self.embed_norm = make_norm(config) if config.embedding_norm else None
        if isinstance(positions, Buckets):
            self.relative_bias = nn.Embedding(positions.count, config.num_attention_heads)
        self.recomputation = Recomputation()
        self.layers = nn.ModuleList(
            make_block(config, layer) for layer in range(config.num_hidden_layers)
        )
        last = make_norm(config, bias=config.final_norm_bias) if config.final_norm else None
        self.norm = last
        self._rotary = self._local_rotary = None
        if isinstance(positions, Rotary):
            self._rotary = self._local_rotary = self._table(positions)
        if config.local_positions is not None:
            self._local_rotary = self._table(config.local_positions)

    def _table(self, rotary: Rotary) -> RotaryTable:
        return RotaryTable(rotary, self.config.head_dim, self.config.max_position_embeddings)

    def forward(
        self,
        input_ids_N: Tensor,
        positions_N: Tensor,
        context: Context,
        keep: Tensor | None = None,
        *,
        source_ME: Tensor | None = None,
        token_types_N: Tensor | None = None,
        hidden_states: list[Tensor] | None = None,
        router_logits: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states ``[N, E]`` after the last normalisation.

        Args:
            positions_N: the place of each token in its sequence, int64.
            context: which tokens belong together, and what came before them.
            keep: int64 indices of the rows that are wanted, None for all. Only these leave the
                attention of the last block: nothing else reads what comes after it.
            source_ME: the encoder's hidden states, for a decoder that attends to them.
            token_types_N: the kind of segment of each token; None for kind 0.
            hidden_states: gets the input of every block, and what is returned.
            router_logits: gets those of every mixture of experts.

        Raises:
            RequestError: a sequence is longer than the positions that were learned.
        """
        longest, places = context.longest, self.config.max_position_embeddings
        if isinstance(self.config.positions, Learned) and longest > places:
            raise RequestError(
                f"A text has {longest:,} tokens and the model knows {places:,} positions; cut it."
            )
        x_NE = self.embed(input_ids_N, positions_N, token_types_N)
        step = self.step(context, positions_N, x_NE.dtype, source_ME, router_logits)
        with self.recomputation.keeper(self.parameters(), x_NE.device) as keeper:
            if self.recomputation.mode == "blocks" and hidden_states is None:
                x_NE = self._run_pieces(x_NE, step, keep, keeper)
            else:
                step.keeper = keeper
                x_NE = self._run(x_NE, step, keep, hidden_states)
        if self.norm is not None:
            x_NE = self.norm(x_NE)
        if hidden_states is not None:
            hidden_states.append(x_NE)
        return x_NE

    def _run(
        self, x_NE: Tensor, step: Step, keep: Tensor | None, hidden_states: list[Tensor] | None
    ) -> Tensor:
        last = len(self.layers) - 1
        for layer, block in enumerate(self.layers):
            if hidden_states is not None:
                hidden_states.append(x_NE)
            x_NE = block(x_NE, step, keep if layer == last else None)
        return x_NE

    def _run_pieces(self, x_NE: Tensor, step: Step, keep: Tensor | None, keeper: Keeper) -> Tensor:
        """All blocks, some at a time, of which only the inputs are kept."""
        layers, size = list(self.layers), self.recomputation.every
        for first in range(0, len(layers), size):

            def piece(x_NE: Tensor, first: int = first) -> tuple[Tensor, ...]:
                own = replace(step, router_logits=[])
                for block in layers[first : first + size]:
                    x_NE = block(x_NE, own, keep if block is layers[-1] else None)
                return x_NE, *own.router_logits

            x_NE, *logits = keeper.inside(piece, x_NE)
            step.router_logits.extend(logits)
        return x_NE

    def embed(
        self, input_ids_N: Tensor, positions_N: Tensor, token_types_N: Tensor | None = None
    ) -> Tensor:
        """What the first block reads, ``[N, E]``."""
        config = self.config
        x_NE = self.embed_tokens(input_ids_N)
        if config.embedding_scale != 1.0:
            x_NE = x_NE * torch.tensor(config.embedding_scale, dtype=x_NE.dtype)
        if isinstance(config.positions, Learned):
            x_NE = x_NE + self.embed_positions(positions_N + config.positions.offset)
        elif isinstance(config.positions, Sinusoidal):
            x_NE = x_NE + sinusoids(positions_N, config.hidden_size).to(x_NE.dtype)
        if config.token_types:
            kinds = torch.zeros_like(input_ids_N) if token_types_N is None else token_types_N
            x_NE = x_NE + self.embed_types(kinds)
        return x_NE if self.embed_norm is None else self.embed_norm(x_NE)

    def step(
        self,
        context: Context,
        positions_N: Tensor,
        dtype: torch.dtype,
        source_ME: Tensor | None = None,
        router_logits: list[Tensor] | None = None,
    ) -> Step:
        """What the blocks share in one pass; ``dtype`` is that of the residual stream."""
        step = Step(context, source_ME=source_ME)
        if router_logits is not None:
            step.router_logits = router_logits
        if self._rotary is not None and self._local_rotary is not None:
            needs = self._rotary.needs_lengths or self._local_rotary.needs_lengths
            lengths_N = None
            if needs:  # what stands behind the sequences' tokens is padding
                lengths_N = context.lengths_N()
                lengths_N = functional.pad(lengths_N, (0, len(positions_N) - len(lengths_N)))
            step.rotary = step.local_rotary = self._rotary(positions_N, lengths_N, dtype)
            if self._local_rotary is not self._rotary:
                step.local_rotary = self._local_rotary(positions_N, lengths_N, dtype)
        positions, both = self.config.positions, not self.config.causal
        if isinstance(positions, Alibi):
            slopes_H = alibi_slopes(self.config.num_attention_heads)
            step.bias = RelativeBias(positions, both, slopes_H.to(positions_N.device))
        elif isinstance(positions, Buckets):
            step.bias = RelativeBias(positions, both, self.relative_bias.weight)
        return step


class EncoderDecoder(nn.Module):
    """An encoder, and a decoder that attends to it; they share the embedding of tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.encoder is not None
        self.shared = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoder = Stack(config.encoder, self.shared)
        self.decoder = Stack(config, self.shared)


def make_block(config: ModelConfig, layer: int) -> nn.Module:
    """Block number ``layer`` of a body."""
    if config.mixer != "attention":
        from hone.models.mamba import MambaBlock

        return MambaBlock(config, layer)
    return BLOCKS[config.block](config, layer)
