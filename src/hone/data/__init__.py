"""From files to batches: reading, splitting, augmenting and packing samples.

No torch, no model and no tokenizer training: what comes out is arrays of numbers or plain records.
"""

from hone.data.augment import vary_examples
from hone.data.packing import Batch, PackedBatches, pack
from hone.data.read import QuestionSql, iterate_jsonl, read_examples, read_jsonl
from hone.data.samples import IGNORED, Sample, completion_sample
from hone.data.splitting import split_groups

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
