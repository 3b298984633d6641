"""Rules between the names and layouts of weights in files and those here, in both directions."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from hone.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

Split = Callable[["Tensor", ModelConfig], Sequence["Tensor"]]
Join = Callable[[Sequence["Tensor"], ModelConfig], "Tensor"]


@dataclass(frozen=True, slots=True)
class Rule:
    """A module (or a weight) of the files and what it is called here.

    ``*`` stands for a number, the same on both sides; what follows the path (``.weight``,
    ``.bias``, ``.weight_scale``) is kept.

    Attributes:
        theirs: the path in the files.
        ours: the path here, or several that the files hold as one.
        split: their tensor to ours, in the order of ``ours``; None for the same.
        join: the way back.
    """

    theirs: str
    ours: str | tuple[str, ...]
    split: Split | None = None
    join: Join | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """``ours`` as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass(frozen=True, slots=True)
class EachExpert:
    """A weight that the files hold once per expert and that is one stacked tensor here.

    Attributes:
        theirs: with two ``*``: the layer and the expert.
        ours: with one ``*``; the first dimension counts experts.
        part: which of ``parts`` equal blocks of the second dimension it fills.
        parts: how many there are.
    """

    theirs: str
    ours: str
    part: int = 0
    parts: int = 1


# Layouts that several families share.


def split_rows(*parts: Callable[[ModelConfig], int]) -> Split:
    """Their tensor holds ours behind one another; ``parts`` say how many rows each has."""

    def split(tensor: "Tensor", config: ModelConfig) -> "Sequence[Tensor]":
        sizes = [part(config) for part in parts]
        if tensor.shape[0] != sum(sizes):
            return [tensor] * len(sizes)  # of the wrong shape, which is reported by name
        return tensor.split(sizes)

    return split


def join_rows(tensors: "Sequence[Tensor]", config: ModelConfig) -> "Tensor":
    """The inverse of :func:`split_rows`."""
    import torch

    return torch.cat(tuple(tensors))


def split_heads(tensor: "Tensor", config: ModelConfig) -> "Sequence[Tensor]":
    """Their rows are a query, a key and a value of each head in turn (GPT-NeoX, BLOOM)."""
    qkv = tensor.unflatten(0, (config.num_attention_heads, 3, config.head_dim))
    return [part.flatten(0, 1) for part in qkv.unbind(1)]


def join_heads(tensors: "Sequence[Tensor]", config: ModelConfig) -> "Tensor":
    """The inverse of :func:`split_heads`."""
    import torch

    by_head = [part.unflatten(0, (config.num_attention_heads, -1)) for part in tensors]
    return torch.stack(by_head, dim=1).flatten(0, 2)


def query_rows(config: ModelConfig) -> int:
    """Rows of the product that makes queries."""
    return config.num_attention_heads * config.head_dim


def key_rows(config: ModelConfig) -> int:
    """Rows of the products that make keys, and values."""
    return config.num_key_value_heads * config.head_dim


def ffn_rows(config: ModelConfig) -> int:
    """Rows of the feed-forward layer."""
    return config.intermediate_size


@cache
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.escape(path).replace(r"\*", r"(\d+)") + r"(\..+)?$")


def match(path: str, name: str) -> tuple[tuple[str, ...], str] | None:
    """The numbers in ``name`` and what follows ``path`` in it; None when it begins otherwise."""
    found = _pattern(path).match(name)
    if found is None:
        return None
    *numbers, rest = found.groups()
    return tuple(numbers), rest or ""


def fill(path: str, numbers: Iterable[str]) -> str:
    """``path`` with its stars replaced."""
    for number in numbers:
        path = path.replace("*", number, 1)
    return path
