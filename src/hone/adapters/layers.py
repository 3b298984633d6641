"""The layers that stand in for a model's own while an adapter is in use; they share its weights.

Shapes: N rows, E inputs, F outputs, R rank, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hone.kernels.lora import LowRank, frozen_weight, lora_product, row_norms


class LoraLinear(nn.Module):
    """A linear layer of any number format, and a low-rank update of its weight.

    With a magnitude it is DoRA's (Liu et al. 2024, equation 5): each row of the sum of both weights
    is scaled to a learnt norm, and the norm that it had counts as a constant (section 4.3).
    """

    def __init__(
        self, base: nn.Module, lora_A: nn.Parameter, scale: float, dropout: float, dora: bool
    ) -> None:
        """The update is zero.

        Args:
            lora_A: ``[R, E]``; layers may share one.
        """
        super().__init__()
        self.in_features = int(base.in_features)  # type: ignore[arg-type]
        self.out_features = int(base.out_features)  # type: ignore[arg-type]
        self.base, self.scale, self.dropout = base, scale, dropout
        device = lora_A.device
        self.lora_A = lora_A
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, len(lora_A), device=device))
        self.lora_magnitude_vector: nn.Parameter | None = None
        if dora:
            norms_F = torch.linalg.vector_norm(frozen_weight(base, torch.float32), dim=1)
            self.lora_magnitude_vector = nn.Parameter(norms_F.to(device))

    @property
    def bias(self) -> Tensor | None:
        """The base's."""
        bias = self.base.bias
        return bias if isinstance(bias, Tensor) else None

    def update(self) -> LowRank:
        """What is added to the base's product."""
        gain_F = None
        if self.lora_magnitude_vector is not None:
            gain_F = self.lora_magnitude_vector / self._norms().clamp_min(1e-12)
        dropout = self.dropout if self.training else 0.0
        return LowRank(self.lora_A, self.lora_B, self.scale, dropout, gain_F)

    @torch.no_grad()
    def _norms(self) -> Tensor:
        weight_FE = frozen_weight(self.base, torch.float32)
        return row_norms(weight_FE, self.lora_A, self.lora_B, self.scale)

    def forward(self, x_NE: Tensor) -> Tensor:
        """``[..., E]`` to ``[..., F]``."""
        return lora_product(x_NE, (self.base,), (self.update(),))

    @staticmethod
    def joint_product(x_NE: Tensor, modules: Sequence[nn.Module]) -> Tensor:
        """See :func:`hone.kernels.project`."""
        bases = [each.base if isinstance(each, LoraLinear) else each for each in modules]
        updates = [each.update() if isinstance(each, LoraLinear) else None for each in modules]
        return lora_product(x_NE, bases, updates)

    @torch.no_grad()
    def merged(self, dtype: torch.dtype) -> nn.Linear:
        """A linear layer that computes the same; the sum is made in float32 and rounded once."""
        weight_FE = frozen_weight(self.base, torch.float32)
        weight_FE = torch.addmm(weight_FE, self.lora_B, self.lora_A, alpha=self.scale)
        if self.lora_magnitude_vector is not None:
            weight_FE *= (self.lora_magnitude_vector / self._norms().clamp_min(1e-12))[:, None]
        return float_linear(weight_FE.to(dtype), self.bias)

    def extra_repr(self) -> str:
        """The shape, for people and for whoever tells layers apart by it."""
        rank, dora = len(self.lora_A), self.lora_magnitude_vector is not None
        return f"in={self.in_features}, out={self.out_features}, r={rank}, dora={dora}"


class LoraEmbedding(nn.Module):
    """An embedding, and a low-rank update of its weight.

    As in peft, A is ``[R, V]`` and zero at first, B is ``[E, R]`` and normal; a magnitude belongs
    to a column of the weight.
    """

    def __init__(self, base: nn.Embedding, rank: int, scale: float, dora: bool) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        tokens, size = base.weight.shape
        device = base.weight.device
        self.lora_embedding_A = nn.Parameter(torch.zeros(rank, tokens, device=device))
        self.lora_embedding_B = nn.Parameter(torch.zeros(size, rank, device=device))
        self.lora_magnitude_vector: nn.Parameter | None = None
        if dora:
            norms_E = torch.linalg.vector_norm(base.weight.detach().float(), dim=0)
            self.lora_magnitude_vector = nn.Parameter(norms_E)

    @property
    def weight(self) -> Tensor:
        """The base's, e.g. for an output layer that shares it."""
        return self.base.weight

    def _gain(self) -> Tensor | None:
        if self.lora_magnitude_vector is None:
            return None
        a_RV, b_ER = self.lora_embedding_A.detach(), self.lora_embedding_B.detach()
        norms_E = row_norms(self.base.weight.detach().t(), a_RV, b_ER, self.scale)
        return self.lora_magnitude_vector / norms_E.clamp_min(1e-12)

    def forward(self, ids: Tensor) -> Tensor:
        """Int64 ``[...]`` to ``[..., E]``."""
        dtype = self.base.weight.dtype
        u_NR = functional.embedding(ids, self.lora_embedding_A.t()).to(dtype)
        x_NE = self.base(ids) + self.scale * (u_NR @ self.lora_embedding_B.t().to(dtype))
        gain_E = self._gain()
        return x_NE if gain_E is None else x_NE * gain_E.to(dtype)

    @torch.no_grad()
    def merged(self, dtype: torch.dtype) -> nn.Embedding:
        """See :meth:`LoraLinear.merged`."""
        weight_VE = torch.addmm(
            self.base.weight.float(),
            self.lora_embedding_A.t(),
            self.lora_embedding_B.t(),
            alpha=self.scale,
        )
        if (gain_E := self._gain()) is not None:
            weight_VE *= gain_E
        return _embedding(weight_VE.to(dtype))


class TokenRows(nn.Module):
    """An embedding of which some tokens' rows are trained, or the output layer that shares it."""

    token_ids: Tensor

    def __init__(
        self, base: nn.Module, token_ids: Tensor, rows: nn.Parameter | None = None
    ) -> None:
        """The rows begin as the base's.

        Args:
            token_ids: int64 ``[n]``.
            rows: float32 ``[n, E]`` that another layer has too.
        """
        super().__init__()
        assert isinstance(base, nn.Embedding | nn.Linear)
        self.base = base
        self.register_buffer("token_ids", token_ids.to(base.weight.device), persistent=False)
        if rows is None:
            rows = nn.Parameter(base.weight.detach()[self.token_ids].float())
        self.trainable_tokens_delta = rows
        if isinstance(base, nn.Linear):
            self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def bias(self) -> Tensor | None:
        """The base's, where that is a linear layer."""
        return self.base.bias if isinstance(self.base, nn.Linear) else None

    @property
    def weight(self) -> Tensor:
        """With the trained rows in their places."""
        weight_VE = self.base.weight
        return weight_VE.index_copy(0, self.token_ids, self.trainable_tokens_delta.to(weight_VE))

    def forward(self, x: Tensor) -> Tensor:
        """What the base computes, with the trained rows."""
        if isinstance(self.base, nn.Linear):
            scores_NV = self.base(x)
            # Only the rows get gradients: those of all the others would be as large as the weight.
            rows_NE = self.trainable_tokens_delta.to(x.dtype)
            bias = None if self.base.bias is None else self.base.bias[self.token_ids]
            own = functional.linear(x, rows_NE, bias)
            return scores_NV.index_copy(-1, self.token_ids, own)
        vectors = self.base(x)
        places = torch.isin(x, self.token_ids)
        order = self.token_ids.argsort()
        found = order[torch.searchsorted(self.token_ids[order], x[places])]
        return vectors.masked_scatter(
            places[..., None], self.trainable_tokens_delta.to(vectors.dtype)[found]
        )

    @torch.no_grad()
    def merged(self, dtype: torch.dtype) -> nn.Embedding | nn.Linear:
        """See :meth:`LoraLinear.merged`."""
        weight_VE = self.weight.to(dtype)
        if isinstance(self.base, nn.Linear):
            return float_linear(weight_VE, self.base.bias)
        return _embedding(weight_VE)


def begin_factor(
    rank: int, inputs: int, init: bool | str, device: torch.device, generator: torch.Generator
) -> nn.Parameter:
    """A new A ``[R, E]``: uniform as a linear layer begins, or "gaussian" with deviation 1/R."""
    a_RE = torch.empty(rank, inputs)
    if init == "gaussian":
        a_RE.normal_(0.0, 1 / rank, generator=generator)
    else:
        nn.init.kaiming_uniform_(a_RE, a=math.sqrt(5), generator=generator)
    return nn.Parameter(a_RE.to(device))


def float_linear(weight_FE: Tensor, bias: Tensor | None) -> nn.Linear:
    """A frozen linear layer of these weights."""
    outputs, inputs = weight_FE.shape
    linear = nn.Linear(inputs, outputs, bias is not None, "meta")
    linear.weight = nn.Parameter(weight_FE, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().to(weight_FE.dtype), requires_grad=False)
    return linear.eval()


def _embedding(weight_VE: Tensor) -> nn.Embedding:
    return nn.Embedding.from_pretrained(weight_VE).eval()
