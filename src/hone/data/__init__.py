"""From files to batches: reading, splitting, augmenting and packing samples.

No torch, no model and no tokenizer training: what comes out is arrays of numbers or plain records.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hone.data.packing import Batch, PackedBatches, pack
from hone.data.read import QuestionSql, iterate_jsonl, read_examples, read_jsonl
from hone.data.samples import IGNORED, Sample, completion_sample
from hone.data.splitting import split_groups

if TYPE_CHECKING:
    from hone.data.augment import vary_examples

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


def __getattr__(name: str) -> Any:
    if name == "vary_examples":  # sqlglot takes longer to start than all the rest
        return import_module("hone.data.augment").vary_examples
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
