"""Low-rank updates beside frozen weights (Hu et al. 2021, section 4.1), and gains (DoRA).

The update ``scale · B · A`` is never made, and of frozen weights there is no gradient.

Shapes: N rows, E inputs, F outputs (of all layers together where there are several), R rank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hone.kernels.linear import joined


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to one layer's product.

    Attributes:
        a_RE, b_FR: the two factors, of any float dtype.
        scale: of their product.
        dropout: the share of the inputs that the update does not see; 0 outside of training.
        gain_F: scales the sum of both products, before the bias; None for 1.
    """

    a_RE: Tensor  # noqa: N815
    b_FR: Tensor  # noqa: N815
    scale: float
    dropout: float = 0.0
    gain_F: Tensor | None = None  # noqa: N815


def lora_product_reference(x_NE: Tensor, base: nn.Module, update: LowRank) -> Tensor:
    """``gain · (x · Wᵀ + scale · (dropout(x) · Aᵀ) · Bᵀ) + bias``."""
    bias_F = base.bias if isinstance(base.bias, Tensor) else torch.zeros(())
    seen_NE = functional.dropout(x_NE, update.dropout)
    a_RE, b_FR = update.a_RE.to(x_NE.dtype), update.b_FR.to(x_NE.dtype)
    y_NF = base(x_NE) - bias_F + update.scale * (seen_NE @ a_RE.t()) @ b_FR.t()
    gain_F = torch.ones(()) if update.gain_F is None else update.gain_F
    return y_NF * gain_F.to(x_NE.dtype) + bias_F


def lora_product(
    x_NE: Tensor, bases: Sequence[nn.Module], updates: Sequence[LowRank | None]
) -> Tensor:
    """See :func:`lora_product_reference`; the layers' outputs lie side by side.

    The frozen weights are one product where they are plain linear layers. The inputs are kept once
    for all layers, and what reads them (every A, under one dropout) is one product too. The update
    is computed in the dtype of ``x_NE``; gradients of the factors come in the factors' own.

    Args:
        bases: layers whose weights are frozen: ``nn.Linear``, or others with ``base_forward(x)``,
            their product and bias outside of any graph, and ``base_backward(grad)``, its gradient.
        updates: of each; None for a layer that has none.
    """
    present = [update for update in updates if update is not None]
    assert len({update.dropout for update in present}) == 1, "one adapter has one dropout"
    stacked: list[Tensor] = []  # every A once: layers may share one
    places: list[tuple[slice, int, float]] = []
    start = 0
    widths = [int(base.out_features) for base in bases]  # type: ignore[arg-type]
    for update, width in zip(updates, widths, strict=True):
        if update is not None:
            if not any(a_RE is update.a_RE for a_RE in stacked):
                stacked.append(update.a_RE)
            number = next(i for i, a_RE in enumerate(stacked) if a_RE is update.a_RE)
            places.append((slice(start, start + width), number, update.scale))
        start += width
    biases = [base.bias if isinstance(base.bias, Tensor) else None for base in bases]
    bias_F = _side_by_side(biases, widths, x_NE.new_zeros)
    gains = [None if update is None else update.gain_F for update in updates]
    gain_F = _side_by_side(gains, widths, x_NE.new_ones)

    plan = _Plan(tuple(bases), tuple(places), present[0].dropout, len(stacked))
    factors = (*stacked, *(update.b_FR for update in present))
    y_NF: Tensor = _LoraProduct.apply(x_NE, bias_F if gain_F is None else None, plan, *factors)
    if gain_F is None:
        return y_NF
    if bias_F is not None and not plan.linear:  # other layers have added theirs
        y_NF = y_NF - bias_F
    y_NF = y_NF * gain_F.to(x_NE.dtype)
    return y_NF if bias_F is None else y_NF + bias_F


def row_norms(weight_FE: Tensor, a_RE: Tensor, b_FR: Tensor, scale: float) -> Tensor:
    """The norm of each row of ``W + scale · B · A``, without making that sum; float32 ``[F]``.

    By ``|w + s·b·A|² = |w|² + 2s·b·(A·w) + s²·b·(A·Aᵀ)·b`` for a row w of W and its row b of B.
    """
    weight_FE, a_RE, b_FR = weight_FE.float(), a_RE.float(), b_FR.float()
    cross_F = (b_FR * (weight_FE @ a_RE.t())).sum(1)
    update_F = (b_FR * (b_FR @ (a_RE @ a_RE.t()))).sum(1)
    squares_F = torch.linalg.vector_norm(weight_FE, dim=1).square()
    return (squares_F + 2 * scale * cross_F + scale * scale * update_F).clamp_min_(0).sqrt_()


def frozen_weight(base: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weight ``[F, E]`` of a linear layer; one of another number format has ``dequantize``."""
    if isinstance(base, nn.Linear):
        return base.weight.detach().to(dtype)
    weight_FE: Tensor = base.dequantize(dtype)  # type: ignore[operator]
    return weight_FE


def _side_by_side(
    parts: Sequence[Tensor | None], widths: Sequence[int], other: Callable[[int], Tensor]
) -> Tensor | None:
    """``parts`` behind one another, ``other(width)`` where one is None; None where all are."""
    if all(part is None for part in parts):
        return None
    if len(parts) == 1:
        return parts[0]
    return torch.cat(
        [other(w) if part is None else part for part, w in zip(parts, widths, strict=True)]
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """The frozen layers, and where updates go: their columns of the outputs, the number of their A,
    and their scale.
    """

    bases: tuple[nn.Module, ...]
    places: tuple[tuple[slice, int, float], ...]
    dropout: float
    stacked: int  # how many A there are

    @property
    def linear(self) -> bool:
        """All layers are plain, so that their weights are one."""
        return all(type(base) is nn.Linear for base in self.bases)

    def product(self, x_NE: Tensor, bias_F: Tensor | None) -> Tensor:
        """The bases' outputs side by side, in memory of their own.

        Args:
            bias_F: that of plain layers, if it is to be added; others add theirs.
        """
        if self.linear:
            return functional.linear(x_NE, self._joined(), bias_F)
        parts = [
            base(x_NE) if isinstance(base, nn.Linear) else base.base_forward(x_NE)  # type: ignore[operator]
            for base in self.bases
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def gradient(self, grad_NF: Tensor) -> Tensor:
        """That of :meth:`product` by its inputs."""
        if self.linear:
            return grad_NF @ self._joined()
        widths = [int(base.out_features) for base in self.bases]  # type: ignore[arg-type]
        dx_NE = torch.zeros(())
        for base, part_NF in zip(self.bases, grad_NF.split(widths, dim=1), strict=True):
            linear = isinstance(base, nn.Linear)
            own = part_NF @ base.weight if linear else base.base_backward(part_NF)  # type: ignore[operator]
            dx_NE = dx_NE.add_(own) if dx_NE.ndim else own
        return dx_NE

    def _joined(self) -> Tensor:
        return joined([base.weight for base in self.bases])  # type: ignore[misc]


class _LoraProduct(torch.autograd.Function):
    """Keeps the inputs, their products with A and, with dropout, one byte for each input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias_F: Tensor | None, plan: _Plan, *factors: Tensor
    ) -> Tensor:
        x_NE, dtype = x.reshape(-1, x.shape[-1]), x.dtype
        y_NF = plan.product(x_NE, bias_F)
        kept_NE, seen_NE = None, x_NE
        if plan.dropout:
            kept_NE = torch.empty_like(x_NE, dtype=torch.bool).bernoulli_(1 - plan.dropout)
            seen_NE = x_NE * kept_NE
        every_a, every_b = factors[: plan.stacked], factors[plan.stacked :]
        u_NR = seen_NE @ _stack(every_a, dtype).t()
        parts = u_NR.split([len(a_RE) for a_RE in every_a], dim=1)
        for (columns, number, scale), b_FR in zip(plan.places, every_b, strict=True):
            factor = scale / (1 - plan.dropout)
            y_NF[:, columns].addmm_(parts[number], b_FR.to(dtype).t(), alpha=factor)
        ctx.save_for_backward(x, u_NR, kept_NE, *factors)
        ctx.plan = plan
        return y_NF.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, u_NR, kept_NE, *factors = ctx.saved_tensors
        plan: _Plan = ctx.plan
        every_a, every_b = factors[: plan.stacked], factors[plan.stacked :]
        x_NE, grad_NF = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        dtype = x.dtype
        wanted_x, wanted_a = ctx.needs_input_grad[0], ctx.needs_input_grad[3 : 3 + plan.stacked]
        wanted_b = ctx.needs_input_grad[3 + plan.stacked :]
        ranks = [len(a_RE) for a_RE in every_a]
        g_NR = torch.zeros_like(u_NR)
        g_parts, u_parts = g_NR.split(ranks, dim=1), u_NR.split(ranks, dim=1)
        grads_b: list[Tensor | None] = []
        for i, (columns, number, scale) in enumerate(plan.places):
            factor, part_NF, b_FR = scale / (1 - plan.dropout), grad_NF[:, columns], every_b[i]
            g_parts[number].addmm_(part_NF, b_FR.to(dtype), alpha=factor)
            grad_FR = None
            if wanted_b[i]:
                # In this order the product is twice as fast (MKL, ranks up to 64).
                grad_FR = (u_parts[number].t() @ part_NF).t().to(b_FR.dtype).mul_(factor)
            grads_b.append(grad_FR)
        grads_a: list[Tensor | None] = [None] * plan.stacked
        if any(wanted_a):
            seen_NE = x_NE if kept_NE is None else x_NE * kept_NE
            parts = (g_NR.t() @ seen_NE).split(ranks)
            grads_a = [part.to(a_RE.dtype) for part, a_RE in zip(parts, every_a, strict=True)]
            del seen_NE
        dx = None
        if wanted_x:
            dx_NE, a_RE = plan.gradient(grad_NF), _stack(every_a, dtype)
            if kept_NE is None:
                dx_NE.addmm_(g_NR, a_RE)
            else:
                dx_NE.add_((g_NR @ a_RE).mul_(kept_NE))
            dx = dx_NE.view(x.shape)
        return dx, None, None, *grads_a, *grads_b


def _stack(every_a: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The factors A above one another, ``[R, E]``."""
    parts = [a_RE.to(dtype) for a_RE in every_a]
    return torch.cat(parts) if len(parts) > 1 else parts[0]
