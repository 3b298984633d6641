"""Muon: momentum, orthogonalised (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

Shapes: M matrices of one shape, R rows, C columns with R ≤ C (tall ones are transposed).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hone.kernels import preferred_dtype
from hone.train.config import TrainConfig

# Linear layers whose outputs are scores of classes: tokens, labels, experts.
_CLASSES = ("lm_head", "score", "gate", "shared_expert_gate")
# Numbers that are orthogonalised at a time: they bound the temporaries (several times 64 MB).
_TOGETHER = 2**24
_STEPS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise_reference(matrix: Tensor) -> Tensor:
    """The quintic Newton–Schulz iteration of the post, for one matrix of any orientation.

    Drives every singular value to between about 0.7 and 1.2.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.T if tall else x


def orthogonalise(matrices_MRC: Tensor) -> Tensor:
    """:func:`orthogonalise_reference` of M wide matrices at once, sums fused into the products."""
    x_MRC = matrices_MRC / (matrices_MRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x_MRC.dtype == torch.float32 and x_MRC.shape[2] >= 2 * x_MRC.shape[1]:
        return _factor_of_gram(x_MRC @ x_MRC.mT) @ x_MRC
    for _ in range(_STEPS):
        gram_MRR = x_MRC @ x_MRC.mT
        polynomial_MRR = torch.baddbmm(gram_MRR, gram_MRR, gram_MRR, beta=_B, alpha=_C)
        x_MRC = torch.baddbmm(x_MRC, polynomial_MRR, x_MRC, beta=_A)
    return x_MRC


def _factor_of_gram(gram_MRR: Tensor) -> Tensor:
    """What the iteration multiplies a matrix by from the left, given the matrix's Gram matrix.

    All its factors are polynomials in the Gram matrix, so they commute, and the long side takes
    part only at the ends: a quarter less work at C = 2.75 R. The squares need float32.
    """
    product_MRR = torch.empty(0)
    for step in range(_STEPS):
        factor_MRR = torch.baddbmm(gram_MRR, gram_MRR, gram_MRR, beta=_B, alpha=_C)
        factor_MRR.diagonal(dim1=1, dim2=2).add_(_A)
        product_MRR = factor_MRR if step == 0 else product_MRR @ factor_MRR
        if step < _STEPS - 1:
            gram_MRR = gram_MRR @ factor_MRR @ factor_MRR
    return product_MRR


def muon_reference(
    weight: Tensor, gradient: Tensor, momentum: Tensor, rate: float, beta: float, decay: float
) -> None:
    """One step on one matrix, in place on ``weight`` and ``momentum``, as in the author's code."""
    momentum.lerp_(gradient, 1 - beta)
    update = orthogonalise_reference(gradient.lerp(momentum, beta))
    weight.mul_(1 - rate * decay)
    weight.add_(update, alpha=-rate * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5)


class Muon:
    """:func:`muon_reference` for many matrices; equal shapes are computed together.

    The iteration runs in bfloat16 where the processor has it: five steps forgive the rounding.
    """

    def __init__(self, weights: Mapping[str, Tensor], config: TrainConfig) -> None:
        self._beta, self._decay = config.muon_momentum, config.weight_decay
        by_shape: dict[tuple[int, int], dict[str, Tensor]] = {}
        for name, weight in weights.items():
            rows, columns = sorted(weight.shape)
            by_shape.setdefault((rows, columns), {})[name] = weight
        self._groups: list[_Group] = []
        for (rows, columns), members in by_shape.items():
            names, count = list(members), max(1, _TOGETHER // (rows * columns))
            for start in range(0, len(names), count):
                together = names[start : start + count]
                self._groups.append(_Group({name: members[name] for name in together}))

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every weight from its ``.grad``."""
        for group in self._groups:
            group.step(rate, self._beta, self._decay)

    def state(self) -> dict[str, Tensor]:
        """The momentum of each weight, as views."""
        momenta = (pair for group in self._groups for pair in group.momenta().items())
        return {f"muon.momentum/{name}": momentum for name, momentum in momenta}


class _Group:
    """Weights of one shape, up to transposition."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.names, self.weights = list(weights), list(weights.values())
        self.tall = [weight.shape[0] > weight.shape[1] for weight in self.weights]
        self.scales = [max(1.0, w.shape[0] / w.shape[1]) ** 0.5 for w in self.weights]
        first = self.weights[0]
        self.dtype = preferred_dtype(first.device)
        shape = (len(self.weights), min(first.shape), max(first.shape))
        self.momentum_MRC = torch.zeros(shape, dtype=torch.float32, device=first.device)

    def step(self, rate: float, beta: float, decay: float) -> None:
        gradient_MRC = torch.empty_like(self.momentum_MRC)
        for target, weight, tall in zip(gradient_MRC, self.weights, self.tall, strict=True):
            assert weight.grad is not None
            target.copy_(weight.grad.T if tall else weight.grad)
        self.momentum_MRC.lerp_(gradient_MRC, 1 - beta)
        blend_MRC = gradient_MRC.lerp_(self.momentum_MRC, beta)
        updates_MRC = orthogonalise(blend_MRC.to(self.dtype)).float()
        updates = [u.T if tall else u for u, tall in zip(updates_MRC, self.tall, strict=True)]
        torch._foreach_mul_(self.weights, 1 - rate * decay)
        for weight, update, scale in zip(self.weights, updates, self.scales, strict=True):
            weight.add_(update, alpha=-rate * scale)

    def momenta(self) -> dict[str, Tensor]:
        views = (m.T if tall else m for m, tall in zip(self.momentum_MRC, self.tall, strict=True))
        return dict(zip(self.names, views, strict=True))


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the layers' weights between the embedding and the head: what Muon is for.

    Neither a router, whose rows are classes as a head's are, nor what is no product's weight.
    """
    outer = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    layers = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in _CLASSES
    }
    return {name for name, p in model.named_parameters() if name in layers and id(p) not in outer}
