"""The Llama decoder (Touvron et al. 2023, section 2.2; grouped heads as in Llama 2).

Parameter names are Hugging Face's. Shapes: B batch, T positions, N tokens in a row (a batch is
flattened, a pack has no padding), E hidden, H query heads, K key/value heads, D head size,
F feed-forward, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hone.kernels import (
    PackedLayout,
    adjoin,
    apply_rotary,
    attention,
    packed_attention,
    project,
    projected_cross_entropy,
    rms_norm,
    rotary_table,
    swiglu,
)
from hone.models.cache import Cache
from hone.models.config import LlamaConfig

IGNORED_LABEL = -100

# attend(layer, qkv_NC, rotary) -> o_NH: rotates, and knows which tokens belong together.
Attend = Callable[[int, Tensor, Tensor], Tensor]


class CausalOutput(NamedTuple):
    """What a causal model returns."""

    logits: Tensor


class PackedBatch(Protocol):
    """Sequences laid behind one another; see :meth:`LlamaForCausalLM.packed_loss`."""

    input_ids_N: Tensor  # noqa: N815
    position_ids_N: Tensor  # noqa: N815
    cu_seqlens: Tensor
    max_length: int
    labels_N: Tensor  # noqa: N815


class RMSNorm(nn.Module):
    """Root mean square normalisation with a learnt scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_NE: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return rms_norm(x_NE, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        size, bias = config.hidden_size, config.attention_bias
        heads = config.num_attention_heads * config.head_dim
        kv_heads = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(size, heads, bias=bias)
        self.k_proj = nn.Linear(size, kv_heads, bias=bias)
        self.v_proj = nn.Linear(size, kv_heads, bias=bias)
        self.o_proj = nn.Linear(heads, size, bias=bias)

    def forward(
        self, x_NE: Tensor, rotary: Tensor, attend: Attend, keep: Tensor | None = None
    ) -> Tensor:
        """Attention's output ``[N, E]``, or only its rows ``keep``."""
        qkv_NC = project(x_NE, (self.q_proj, self.k_proj, self.v_proj))
        return project(_rows(attend(self.layer, qkv_NC, rotary), keep), (self.o_proj,))


class FeedForward(nn.Module):
    """The gated feed-forward layer."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        size, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(size, inner, bias=bias)
        self.up_proj = nn.Linear(size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, size, bias=bias)

    def forward(self, x_NE: Tensor) -> Tensor:
        """``down(silu(gate(x)) · up(x))``."""
        gate_up_N2F = project(x_NE, (self.gate_proj, self.up_proj))
        return project(swiglu(gate_up_N2F), (self.down_proj,))


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and added to the residual stream."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x_NE: Tensor, rotary: Tensor, attend: Attend, keep: Tensor | None = None
    ) -> Tensor:
        """The residual stream after this block, or only its rows ``keep``."""
        attended_NE = self.self_attn(self.input_layernorm(x_NE), rotary, attend, keep)
        h_NE = _rows(x_NE, keep) + attended_NE
        return h_NE + self.mlp(self.post_attention_layernorm(h_NE))


def _rows(x_NE: Tensor, keep: Tensor | None) -> Tensor:
    return x_NE if keep is None else x_NE.index_select(0, keep)


class LlamaModel(nn.Module):
    """Embedding, blocks and the last normalisation."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.frequencies = rotary_frequencies(config)

    def forward(
        self,
        input_ids_N: Tensor,
        position_ids_N: Tensor,
        attend: Attend,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Hidden states ``[N, E]`` after the last normalisation.

        Args:
            attend: attention over these tokens.
            keep: int64 indices of the rows that are wanted, None for all. Only these leave the
                attention of the last block: nothing else reads what comes after it.
        """
        x_NE = self.embed_tokens(input_ids_N)
        rotary = rotary_table(position_ids_N, self.frequencies, x_NE.dtype)
        last = len(self.layers) - 1
        for layer, block in enumerate(self.layers):
            x_NE = block(x_NE, rotary, attend, keep if layer == last else None)
        return self.norm(x_NE)


class LlamaForCausalLM(nn.Module):
    """A Llama decoder that scores the next token."""

    def __init__(self, config: LlamaConfig, dtype: torch.dtype | None = None) -> None:
        """Allocate the weights of ``config``; fill them with :meth:`initialise` or by loading."""
        super().__init__()
        self.config = config
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if dtype is not None:
            self.to(dtype)
        self.tie_weights()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        return self.model.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.norm.weight.device

    def tie_weights(self) -> None:
        """Make the output layer read the embedding, when the configuration says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def adjoin_weights(self) -> None:
        """Lay weights that are read together behind one another; see ``kernels.adjoin``."""
        for block in self.model.layers:
            assert isinstance(block, Block)
            attn, mlp = block.self_attn, block.mlp
            adjoin((attn.q_proj, attn.k_proj, attn.v_proj))
            adjoin((mlp.gate_proj, mlp.up_proj))

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Random weights: normal with ``initializer_range``; the layers that write to the residual
        stream are scaled by 1/sqrt(2L) (Radford et al. 2019, section 2.3); biases zero, norms one.
        """
        generator = torch.Generator().manual_seed(seed)
        std = self.config.initializer_range
        residual_std = std / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith(".bias"):
                parameter.zero_()
            else:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                # Drawn in float32 so that every dtype starts from the same numbers.
                values = torch.empty(parameter.shape).normal_(
                    0.0, residual_std if residual else std, generator=generator
                )
                parameter.copy_(values)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
    ) -> CausalOutput:
        """Score the next token at every position.

        Args:
            input_ids: ``[B, T]`` int64, the tokens after those in ``cache``.
            attention_mask: ``[B, S]``, 1 for a token and 0 for padding on the left, over the
                cached and the new positions; positions count from each row's first token. None
                means no padding.
            cache: read and extended; None computes everything.
            logits_to_keep: score only the last so many positions; 0 scores all.

        Returns:
            ``.logits`` ``[B, T or logits_to_keep, V]`` in the model's dtype.
        """
        batch, length = input_ids.shape
        past = 0 if cache is None else cache.length
        if attention_mask is None:
            positions = torch.arange(past, past + length, device=input_ids.device)
            positions_BT = positions.expand(batch, length)
        else:
            positions_BT = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, past:]

        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads

        def attend(layer: int, qkv_NC: Tensor, rotary: Tensor) -> Tensor:
            qkv_NCD = qkv_NC.unflatten(-1, (heads + 2 * kv_heads, -1))
            qk_NCD, v_NKD = qkv_NCD.split((heads + kv_heads, kv_heads), dim=1)
            q_NHD, k_NKD = apply_rotary(qk_NCD, rotary).split((heads, kv_heads), dim=1)
            q, k, v = (
                x.unflatten(0, (batch, length)).transpose(1, 2) for x in (q_NHD, k_NKD, v_NKD)
            )
            if cache is not None:
                k, v = cache.update(layer, k, v)
            return attention(q, k, v, attention_mask).transpose(1, 2).reshape(batch * length, -1)

        hidden_NE = self.model(input_ids.flatten(), positions_BT.flatten(), attend)
        if cache is not None:
            cache.advance(length)
        hidden_BTE = hidden_NE.unflatten(0, (batch, length))
        if logits_to_keep:
            hidden_BTE = hidden_BTE[:, -logits_to_keep:]
        return CausalOutput(self.lm_head(hidden_BTE))

    def packed_loss(self, batch: PackedBatch) -> Tensor:
        """The summed negative log-likelihood of the labelled tokens, a float32 scalar.

        Segments do not see one another. Divide by the number of labels of the whole step.

        Args:
            batch: ``input_ids_N`` and ``position_ids_N`` int64; ``cu_seqlens`` int32 ``[n + 1]``
                with the bounds of the n segments; ``max_length`` of a segment; ``labels_N`` int64,
                already shifted (the label of a position is the token that follows it), -100 where
                there is none.
        """
        layout = PackedLayout(batch.cu_seqlens)
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads

        def attend(_: int, qkv_NC: Tensor, rotary: Tensor) -> Tensor:
            return packed_attention(qkv_NC, rotary, layout, heads, kv_heads)

        keep = (batch.labels_N != IGNORED_LABEL).nonzero().squeeze(-1)
        hidden_NE = self.model(batch.input_ids_N, batch.position_ids_N, attend, keep)
        return projected_cross_entropy(hidden_NE, self.lm_head.weight, batch.labels_N[keep])


def rotary_frequencies(config: LlamaConfig) -> Tensor:
    """The D/2 angular frequencies in radians per position, float32, scaled as configured."""
    # Computed on the CPU even under a meta device: these are constants, not weights.
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")
    frequencies = 1.0 / config.rope_theta ** (exponents / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    context = scaling.original_max_position_embeddings
    wavelengths = 2 * math.pi / frequencies
    blend = (context / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blend = blend.clamp(0, 1)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies
