"""The blocks that bodies are stacked of: norms, attention, feed-forward, and how they are wired.

Shapes: N tokens of all sequences behind one another, M tokens of the sources, E hidden, H query
heads, K key/value heads, D head size, C = H + 2K, F feed-forward, X experts.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from hone.kernels import (
    ACTIVATIONS,
    AttentionRule,
    expert_mix,
    gated,
    project,
    rms_norm,
    route,
    swiglu,
)
from hone.kernels.attention import Bias
from hone.kernels.linear import RowCounts
from hone.models.config import ModelConfig
from hone.models.context import Context
from hone.models.recompute import Keeper


@dataclass(slots=True)
class Step:
    """What the layers of a body share in one forward pass.

    Attributes:
        context: which tokens see which.
        rotary: the table of rotary positions, None where there are none.
        local_rotary: that of the layers with a sliding window.
        bias: what positions add to the scores, or None.
        source_ME: the encoder's hidden states; None in later passes, when a cache has them.
        router_logits: those of every mixture of experts ``[N, X]``, in the order of layers.
        keeper: what is kept for the backward pass.
    """

    context: Context
    rotary: Tensor | None = None
    local_rotary: Tensor | None = None
    bias: Bias | None = None
    source_ME: Tensor | None = None  # noqa: N815
    router_logits: list[Tensor] = field(default_factory=list)
    keeper: Keeper = field(default_factory=Keeper)


class RMSNorm(nn.Module):
    """Root mean square normalisation with a learnt scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_NE: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return rms_norm(x_NE, self.weight, self.eps)


class OffsetRMSNorm(RMSNorm):
    """Root mean square normalisation whose scale is one plus the weight (Gemma)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__(size, eps)
        nn.init.zeros_(self.weight)

    def forward(self, x_NE: Tensor) -> Tensor:
        """Normalise the last dimension; the product is rounded once, after the scale."""
        return rms_norm(x_NE.float(), 1.0 + self.weight.float(), self.eps).to(x_NE.dtype)


def make_norm(config: ModelConfig, size: int = 0, bias: bool | None = None) -> nn.Module:
    """The normalisation that ``config`` names, over ``size`` (hidden_size when 0)."""
    size = size or config.hidden_size
    if config.norm == "layer":
        return nn.LayerNorm(size, config.norm_eps, bias=config.norm_bias if bias is None else bias)
    return (RMSNorm if config.norm == "rms" else OffsetRMSNorm)(size, config.norm_eps)


class Attention(nn.Module):
    """Self-attention, or with ``cross`` attention to the encoder's hidden states."""

    def __init__(self, config: ModelConfig, layer: int, cross: bool = False) -> None:
        super().__init__()
        self.layer, self.local, self.cross = layer, config.is_sliding(layer), cross
        windowed = self.local and not cross  # a source is seen whole
        self.rule = AttentionRule(
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            causal=config.causal and not cross,
            window=config.sliding_window if windowed else None,
            scale=config.score_scale(layer),
            softcap=config.attention_softcap,
        )
        size, bias = config.hidden_size, config.attention_bias
        heads = config.num_attention_heads * config.head_dim
        kv_heads = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(size, heads, bias=bias)
        self.k_proj = nn.Linear(size, kv_heads, bias=bias)
        self.v_proj = nn.Linear(size, kv_heads, bias=bias)
        self.o_proj = nn.Linear(heads, size, bias=config.output_bias)
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if config.qk_norm:
            self.q_norm = make_norm(config, config.head_dim)
            self.k_norm = make_norm(config, config.head_dim)

    def forward(self, x_NE: Tensor, step: Step, keep: Tensor | None = None) -> Tensor:
        """Attention's output ``[N, E]``, or only its rows ``keep``."""
        qkv_NC = project(x_NE, (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None:
            qkv_NC = step.keeper.cheap(self._norm_heads, qkv_NC)
        rotary = step.local_rotary if self.local else step.rotary
        o_NH = step.keeper.inside(
            partial(step.context.attend, self.layer), qkv_NC, rotary, self.rule, step.bias
        )
        return project(rows(o_NH, keep), (self.o_proj,))

    def _norm_heads(self, qkv_NC: Tensor) -> Tensor:
        """Queries and keys normalised, each head by itself."""
        assert self.q_norm is not None
        assert self.k_norm is not None
        heads, kv_heads = self.rule.heads, self.rule.kv_heads
        qkv_NCD = qkv_NC.unflatten(-1, (heads + 2 * kv_heads, -1))
        q, k, v = qkv_NCD.split((heads, kv_heads, kv_heads), dim=1)
        return torch.cat((self.q_norm(q), self.k_norm(k), v), dim=1).flatten(1)

    def to_source(self, x_NE: Tensor, step: Step, keep: Tensor | None = None) -> Tensor:
        """Attention to the encoder's hidden states, ``[N, E]``, or only its rows ``keep``."""

        def keys_values() -> tuple[Tensor, Tensor]:
            assert step.source_ME is not None, "the first pass brings the encoder's hidden states"
            kv_MC = project(step.source_ME, (self.k_proj, self.v_proj))
            k_MKD, v_MKD = kv_MC.unflatten(-1, (2 * self.rule.kv_heads, -1)).chunk(2, dim=1)
            return k_MKD, v_MKD

        q_NHD = project(x_NE, (self.q_proj,)).unflatten(-1, (self.rule.heads, -1))
        o_NH = step.context.attend_source(self.layer, q_NHD, keys_values, self.rule)
        return project(rows(o_NH, keep), (self.o_proj,))

    @property
    def joint_products(self) -> list[tuple[nn.Module, ...]]:
        """Layers that are computed as one product."""
        if self.cross:
            return [(self.k_proj, self.v_proj)]
        return [(self.q_proj, self.k_proj, self.v_proj)]


class FeedForward(nn.Module):
    """``down(act(up(x)))``, or gated ``down(act(gate(x)) · up(x))``."""

    def __init__(self, config: ModelConfig, inner: int = 0) -> None:
        super().__init__()
        size, bias = config.hidden_size, config.mlp_bias
        inner = inner or config.intermediate_size
        self.activation, self.gated = config.activation, config.gated
        self.activated_widths = (inner,)
        if self.gated:
            self.gate_proj = nn.Linear(size, inner, bias=bias)
        self.up_proj = nn.Linear(size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, size, bias=bias)

    def forward(self, x_NE: Tensor, step: Step) -> Tensor:
        """``[N, E]`` to ``[N, E]``."""
        layers = (self.gate_proj, self.up_proj) if self.gated else (self.up_proj,)
        inner_NF = step.keeper.cheap(self._activate, project(x_NE, layers))
        return project(inner_NF, (self.down_proj,))

    def _activate(self, x_NF: Tensor) -> Tensor:
        if not self.gated:
            return ACTIVATIONS[self.activation](x_NF)
        return swiglu(x_NF) if self.activation == "silu" else gated(x_NF, self.activation)

    @property
    def joint_products(self) -> list[tuple[nn.Module, ...]]:
        """Layers that are computed as one product."""
        return [(self.gate_proj, self.up_proj)] if self.gated else []


class ExpertLayer(nn.Module):
    """A mixture of experts: each token takes the feed-forward layers that the router scores best.

    With a shared expert, every token takes that one too, weighed by a gate (Qwen2-MoE).

    Attributes:
        row_counts: what an expert's rows are padded to, where bits must not depend on how many
            tokens chose it; see :func:`hone.kernels.linear.pad_rows`. Empty for speed.
    """

    row_counts: RowCounts = ()

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts = config.experts
        assert experts is not None
        self.settings, self.activation = experts, config.activation
        self.activated_widths = (experts.size,)
        size = config.hidden_size
        self.gate = nn.Linear(size, experts.count, bias=False)
        self.gate_up_proj = nn.Parameter(torch.empty(experts.count, 2 * experts.size, size))
        self.down_proj = nn.Parameter(torch.empty(experts.count, size, experts.size))
        self.shared_expert: FeedForward | None = None
        if experts.shared_size:
            self.shared_expert = FeedForward(config, experts.shared_size)
            self.shared_expert_gate = nn.Linear(size, 1, bias=False)

    def forward(self, x_NE: Tensor, step: Step) -> Tensor:
        """``[N, E]`` to ``[N, E]``; notes the router's logits in ``step``."""
        logits_NX = project(x_NE, (self.gate,))
        step.router_logits.append(logits_NX)
        weights, chosen = route(logits_NX, self.settings.per_token, self.settings.normalise)
        activation = ACTIVATIONS[self.activation]
        out_NE = expert_mix(
            x_NE,
            weights,
            chosen,
            self.gate_up_proj,
            self.down_proj,
            activation,
            self.row_counts,
        )
        if self.shared_expert is None:
            return out_NE
        return out_NE + self._share(x_NE) * self.shared_expert(x_NE, step)

    def _share(self, x_NE: Tensor) -> Tensor:
        """How much of the shared expert each token takes, ``[N, 1]``."""
        gate = self.shared_expert_gate
        if not self.row_counts:
            return torch.sigmoid(project(x_NE, (gate,)))
        # A product with one column, and a function of single numbers, have other bits for any
        # number of rows; a sum along each row, and a function of whole vectors, do not.
        alone = type(gate) is nn.Linear
        scores_N1 = (x_NE * gate.weight).sum(-1, True) if alone else project(x_NE, (gate,))
        return torch.sigmoid(scores_N1.expand(-1, 16).contiguous())[:, :1]


def rows(x_NE: Tensor, keep: Tensor | None) -> Tensor:
    """The rows ``keep`` of ``x_NE``; all when it is None."""
    return x_NE if keep is None else x_NE.index_select(0, keep)


class Block(nn.Module, ABC):
    """Attention and feed-forward around a residual stream; subclasses say in which order."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.cross_attn: Attention | None = None
        if config.encoder is not None:
            self.cross_attn = Attention(config, layer, cross=True)
            self.cross_attention_layernorm = make_norm(config)
        self.mlp = ExpertLayer(config) if config.has_experts(layer) else FeedForward(config)
        bare = layer == 0 and not config.first_norm
        self.input_layernorm = nn.Identity() if bare else make_norm(config)
        self.post_attention_layernorm = make_norm(config)

    @abstractmethod
    def forward(self, x_NE: Tensor, step: Step, keep: Tensor | None = None) -> Tensor:
        """The residual stream after this block, or only its rows ``keep``."""


class PreNormBlock(Block):
    """Each layer reads a normalised stream and adds to the bare one (Xiong et al. 2020)."""

    def forward(self, x_NE: Tensor, step: Step, keep: Tensor | None = None) -> Tensor:
        """``h = x + attention(norm(x)); h + mlp(norm(h))``."""
        early = keep if self.cross_attn is None else None  # all rows attend to the source
        cheap = step.keeper.cheap
        h_NE = rows(x_NE, early) + self.self_attn(cheap(self.input_layernorm, x_NE), step, early)
        if self.cross_attn is not None:
            normed_NE = cheap(self.cross_attention_layernorm, h_NE)
            h_NE = rows(h_NE, keep) + self.cross_attn.to_source(normed_NE, step, keep)
        return h_NE + self.mlp(cheap(self.post_attention_layernorm, h_NE), step)


class PostNormBlock(Block):
    """The stream itself is normalised after each layer (Vaswani et al. 2017, section 3.1)."""

    def forward(self, x_NE: Tensor, step: Step, keep: Tensor | None = None) -> Tensor:
        """``h = norm(x + attention(x)); norm(h + mlp(h))``."""
        early = keep if self.cross_attn is None else None  # all rows attend to the source
        cheap = step.keeper.cheap
        h_NE = rows(x_NE, early) + self.self_attn(x_NE, step, early)
        h_NE = cheap(self.input_layernorm, h_NE)
        if self.cross_attn is not None:
            read_NE = self.cross_attn.to_source(h_NE, step, keep)
            h_NE = cheap(self.cross_attention_layernorm, rows(h_NE, keep) + read_NE)
        return cheap(self.post_attention_layernorm, h_NE + self.mlp(h_NE, step))


class SandwichBlock(Block):
    """Norms before and after each layer, inside the residual branch (Gemma 2, section 2)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.pre_feedforward_layernorm = make_norm(config)
        self.post_feedforward_layernorm = make_norm(config)

    def forward(self, x_NE: Tensor, step: Step, keep: Tensor | None = None) -> Tensor:
        """``h = x + norm(attention(norm(x))); h + norm(mlp(norm(h)))``."""
        cheap = step.keeper.cheap
        attended_NE = self.self_attn(cheap(self.input_layernorm, x_NE), step, keep)
        h_NE = rows(x_NE, keep) + cheap(self.post_attention_layernorm, attended_NE)
        mixed_NE = self.mlp(cheap(self.pre_feedforward_layernorm, h_NE), step)
        return h_NE + cheap(self.post_feedforward_layernorm, mixed_NE)


class ParallelBlock(Block):
    """Attention and feed-forward read the same stream (Wang and Komatsuzaki 2021, GPT-J)."""

    def forward(self, x_NE: Tensor, step: Step, keep: Tensor | None = None) -> Tensor:
        """``x + attention(norm(x)) + mlp(norm'(x))``."""
        cheap = step.keeper.cheap
        attended_NE = self.self_attn(cheap(self.input_layernorm, x_NE), step, keep)
        x_NE = rows(x_NE, keep)
        return x_NE + attended_NE + self.mlp(cheap(self.post_attention_layernorm, x_NE), step)


BLOCKS: dict[str, type[Block]] = {
    "pre": PreNormBlock,
    "post": PostNormBlock,
    "sandwich": SandwichBlock,
    "parallel": ParallelBlock,
}
