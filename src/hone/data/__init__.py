"""From files to batches: reading, splitting, augmenting and packing samples.

No torch, no model and no tokenizer training: what comes out is arrays of numbers or plain records.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hone.data.read import QuestionSql, iterate_jsonl, read_examples, read_jsonl
from hone.data.samples import IGNORED, Sample, completion_sample
from hone.data.splitting import split_groups

if TYPE_CHECKING:
    from hone.data.augment import vary_examples
    from hone.data.packing import Batch, PackedBatches, pack

__all__ = [
    "IGNORED",
    "Batch",
    "PackedBatches",
    "QuestionSql",
    "Sample",
    "completion_sample",
    "iterate_jsonl",
    "pack",
    "read_examples",
    "read_jsonl",
    "split_groups",
    "vary_examples",
]

# What needs NumPy or sqlglot is looked up on first use: what only reads a file starts without them.
_LAZY = {
    "Batch": "hone.data.packing",
    "PackedBatches": "hone.data.packing",
    "pack": "hone.data.packing",
    "vary_examples": "hone.data.augment",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
