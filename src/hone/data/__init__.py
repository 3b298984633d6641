"""From files to batches: reading, splitting, augmenting and packing samples.

No torch, no model and no tokenizer training: what comes out is arrays of numbers or plain records.

Pretraining::

    ids = encode_texts(texts, tokenizer)
    corpus = write_corpus("corpus", ids, len(tokenizer), end_id=tokenizer.eos_id)
    train_part, held_out = corpus.split(0.1)
    task = Causal()  # or Masked.of(tokenizer), SpanCorruption.of(...), Infilling.of(...)
    batches = text_batches(train_part, task, length=1024, tokens_per_batch=16384, seed=0)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hone.data.corpus import Corpus, encode_texts, write_corpus
from hone.data.denoising import Infilling, SpanCorruption
from hone.data.masking import Masked
from hone.data.packing import Batch, PackedBatches, pack
from hone.data.pretraining import Causal, text_batches
from hone.data.read import QuestionSql, iterate_jsonl, read_examples, read_jsonl
from hone.data.samples import IGNORED, Sample, completion_sample
from hone.data.splitting import split_groups

if TYPE_CHECKING:
    from hone.data.augment import vary_examples

__all__ = [
    "IGNORED",
    "Batch",
    "Causal",
    "Corpus",
    "Infilling",
    "Masked",
    "PackedBatches",
    "QuestionSql",
    "Sample",
    "SpanCorruption",
    "completion_sample",
    "encode_texts",
    "iterate_jsonl",
    "pack",
    "read_examples",
    "read_jsonl",
    "split_groups",
    "text_batches",
    "vary_examples",
    "write_corpus",
]


def __getattr__(name: str) -> Any:
    if name == "vary_examples":  # sqlglot takes longer to start than all the rest
        return import_module("hone.data.augment").vary_examples
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
