"""The training and held-out samples of a tuning run, for whatever its data's columns are for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hone.core.errors import ConfigError, DataError
from hone.core.files import read_json
from hone.core.seeds import rng
from hone.data import Batch, PackedBatches, Sample
from hone.data.conversations import Document, Examples
from hone.data.corpus import Corpus, encode_texts
from hone.data.formats import FORMATS, Format, check_tunes, detect_format
from hone.data.labelled import read_labelled
from hone.data.pretraining import Causal, text_batches
from hone.data.rows import Rows
from hone.data.samples import IGNORED
from hone.data.sft import choose_template, tokenise
from hone.models.config import Head, ModelConfig
from hone.recipes.finetune.choices import Lengths
from hone.recipes.finetune.options import FinetuneOptions
from hone.text.conversation import Conversations
from hone.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from hone.engine.sources import AnswerTokens

_HELD_OUT, _MOST_HELD_OUT = 0.05, 500
_UNBOUNDED = 1 << 30


@dataclass(frozen=True, slots=True)
class TuningData:
    """What a run trains on, and what it is scored on.

    Attributes:
        format: of the file.
        head: what the model needs to learn from it.
        labels, problem: of the classes, where there are any.
        contrastive: pairs are told apart from one another.
        train, held_out: samples; a text's are pieces of it, see ``corpora``.
        corpora: the training and the held-out text, where there is nothing but text.
        notes: what was cut or left out, and other sentences that a user should read.
        template: the chat template to keep with the model, if the data is written through one.
        end_ids: tokens that end an answer.
    """

    format: Format
    head: Head
    train: Sequence[Sample]
    held_out: Sequence[Sample]
    labels: tuple[str, ...] = ()
    problem: str = "single_label"
    contrastive: bool = False
    corpora: tuple[Corpus, Corpus] | None = None
    notes: tuple[str, ...] = ()
    template: str | None = None
    end_ids: tuple[int, ...] = ()

    def lengths(self, max_length: int) -> Lengths:
        """Positions of each training sample of at most ``max_length``."""
        if self.corpora is not None:
            count = max(1, len(self.corpora[0]) // max_length)
            return np.full(count, min(max_length, len(self.corpora[0]) - 1), dtype=np.int64)
        return np.array([sample.length for sample in self.train], dtype=np.int64)

    @property
    def longest(self) -> int:
        """Positions of the longest sequence that the model reads of a sample."""
        if self.corpora is not None:
            return max(2, len(self.corpora[0]) - 1)
        return max(sample.longest for part in (self.train, self.held_out) for sample in part)

    def batches(self, tokens: int, max_length: int, seed: int) -> PackedBatches:
        """Those of training."""
        if self.corpora is not None:
            return text_batches(self.corpora[0], Causal(), max_length, tokens, seed)
        return PackedBatches(self.train, tokens, seed, max_length=max_length)

    def held_out_batches(self, tokens: int, max_length: int) -> list[Batch]:
        """All that is scored on, once."""
        if self.corpora is not None:
            length = min(max_length, len(self.corpora[1]) - 1)
            batches = text_batches(self.corpora[1], Causal(), length, tokens, seed=0)
        else:
            batches = PackedBatches(self.held_out, tokens, 0, max_length=max_length)
        return [batches.at(step) for step in range(batches.batches_per_epoch)]


def look_at(options: FinetuneOptions) -> Format:
    """The format of the data, told from its first row.

    Raises:
        DataError: it cannot be read, or no format has its columns, or none that tuning is for.
    """
    _, first = next(iter(Rows(options.data, options.columns)))
    found = detect_format(first, options.data)
    if found not in (Format.CLASSIFICATION, Format.TOKEN_CLASSIFICATION, Format.PAIRS):
        check_tunes(found, options.data)
    return found


def read_data(
    options: FinetuneOptions,
    config: ModelConfig,
    tokenizer: Tokenizer,
    max_length: int | None,
    source: Path,
) -> TuningData:
    """The samples, cut to ``max_length`` positions (None for no limit) and shared out.

    Args:
        source: the checkpoint's directory.

    Raises:
        ConfigError: the model cannot learn what the data is for.
        DataError: the data cannot be read, or leaves nothing to train or score.
    """
    form = look_at(options)
    limit = max_length or _UNBOUNDED
    if form in (Format.CLASSIFICATION, Format.TOKEN_CLASSIFICATION, Format.PAIRS):
        return _labelled(form, options, config, tokenizer, limit)
    if config.encoder is None and not config.causal:
        raise ConfigError(
            f"{options.data} is for {FORMATS[form].use}, and {options.model} is an encoder, which "
            "writes nothing. Encoders learn from text+label, tokens+tags, or pairs of sentences."
        )
    if form is Format.TEXT:
        if config.encoder is not None:
            raise ConfigError(
                f"{options.data} is plain text, and {options.model} is an encoder-decoder, which "
                "learns answers to prompts. A recipe pretrains one on text (hone run)."
            )
        return _text(options, tokenizer)
    return _tuned(form, options, config, tokenizer, limit, source)


def _text(options: FinetuneOptions, tokenizer: Tokenizer) -> TuningData:
    def corpus(source: str) -> Corpus:
        examples = Examples(source, options.columns)
        texts = (example.text for example in examples if isinstance(example, Document))
        return Corpus.of(encode_texts(texts, tokenizer), tokenizer.eos_id)

    whole = corpus(options.data)
    if options.held_out_data is not None:
        corpora = whole, corpus(options.held_out_data)
    else:
        corpora = whole.split(options.held_out or _HELD_OUT, by_document=whole.documents > 20)
    return TuningData(Format.TEXT, "causal", (), (), corpora=corpora)


def _tuned(
    form: Format,
    options: FinetuneOptions,
    config: ModelConfig,
    tokenizer: Tokenizer,
    limit: int,
    source: Path,
) -> TuningData:
    examples = Examples(options.data, options.columns)
    template, notes = None, []
    if examples.use_template:
        writer, why = choose_template(tokenizer, examples.use_tools)
        template = writer.source()
        notes.append(f"Conversations are written through the chat template: {why}.")
    else:
        writer = Conversations(tokenizer)
    train_on = options.train_on if config.encoder is None else "last"
    samples, report = tokenise(examples, writer, limit, train_on)
    notes += report.sentences()
    if config.encoder is not None:
        from hone.engine.sources import answer_tokens

        file = source / "generation_config.json"
        frame = answer_tokens(config, read_json(file) if file.is_file() else None)
        samples = [_answered(sample, frame, tokenizer.eos_id) for sample in samples]
    if options.held_out_data is not None:
        other = Examples(options.held_out_data, options.columns)
        held_out, held_report = tokenise(other, writer, limit, train_on)
        notes += [f"Held out: {sentence}" for sentence in held_report.sentences()]
        if config.encoder is not None:
            held_out = [_answered(sample, frame, tokenizer.eos_id) for sample in held_out]
        train = samples
    else:
        train, held_out = share_out(samples, report.numbers, options)
    head: Head = "causal" if config.encoder is None else "seq2seq"
    ends = tuple(sorted(report.ends))
    return TuningData(
        form, head, train, held_out, notes=tuple(notes), template=template, end_ids=ends
    )


def _answered(sample: Sample, frame: "AnswerTokens", end: int | None) -> Sample:
    """A causal sample for an encoder-decoder: what comes before the answer is its source.

    Args:
        frame: what serving begins an answer with, whether the model would or not.
        end: the token behind every source.
    """
    labels = np.asarray(sample.labels)
    first = int(np.argmax(labels != IGNORED))
    answer = labels[first:].tolist()
    source = np.asarray(sample.ids)[: first + 1].tolist()
    if frame.first is not None and answer[0] != frame.first:
        answer.insert(0, frame.first)
    if end is not None and source[-1] != end:
        source.append(end)
    return Sample([frame.start, *answer[:-1]], answer, source=source)


def _labelled(
    form: Format,
    options: FinetuneOptions,
    config: ModelConfig,
    tokenizer: Tokenizer,
    limit: int,
) -> TuningData:
    heads: dict[Format, Head] = {
        Format.CLASSIFICATION: "classification",
        Format.TOKEN_CLASSIFICATION: "token-classification",
        Format.PAIRS: "embedding",
    }
    head = heads[form]
    known = config.labels if config.head == head else ()
    found = read_labelled(form, options.data, tokenizer, limit, options.columns, known)
    notes = list(found.notes)
    if options.held_out_data is not None:
        other = read_labelled(
            form, options.held_out_data, tokenizer, limit, options.columns, like=found
        )
        notes += [f"Held out: {sentence}" for sentence in other.notes]
        train, held_out = found.samples, other.samples
    else:
        train, held_out = share_out(found.samples, range(len(found.samples)), options)
    return TuningData(
        form,
        head,
        train,
        held_out,
        labels=found.labels,
        problem=found.problem,
        contrastive=form is Format.PAIRS and found.scale is None,
        notes=tuple(notes),
    )


def share_out(
    samples: Sequence[Sample], numbers: Sequence[int], options: FinetuneOptions
) -> tuple[list[Sample], list[Sample]]:
    """Samples to train on and samples to score on; those of one row stay together.

    Args:
        numbers: of the row that each sample came from.

    Raises:
        DataError: there are too few rows for both.
    """
    rows = sorted(set(numbers))
    share = options.held_out or _HELD_OUT
    count = max(1, round(share * len(rows)))
    if options.held_out is None:
        count = min(count, _MOST_HELD_OUT)
    if count >= len(rows):
        raise DataError(
            f"{options.data} leaves {len(rows)} rows, too few to train on some and score on "
            "others. Give more, or another file with --held-out-data."
        )
    chosen = set(rng(options.seed, "held out").sample(rows, count))
    train: list[Sample] = []
    held_out: list[Sample] = []
    for sample, number in zip(samples, numbers, strict=True):
        (held_out if number in chosen else train).append(sample)
    return train, held_out


def sample_pieces(sample: Sample, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """The text of a sample in runs, each with whether it is trained, for people to look at."""
    ids: list[Any] = list(np.asarray(sample.ids))
    if sample.source is not None:
        source = tokenizer.decode([int(i) for i in sample.source], skip_special_tokens=False)
        return [
            (source + "\n", False),
            (tokenizer.decode([int(i) for i in sample.labels if i != IGNORED], False), True),
        ]
    labels = list(np.asarray(sample.labels))
    if not labels:
        return [(tokenizer.decode([int(i) for i in ids], skip_special_tokens=False), False)]
    # The last token is only a label.
    whole = [int(i) for i in ids] + ([int(labels[-1])] if labels[-1] != IGNORED else [])
    trained = [False] + [label != IGNORED for label in labels]
    runs: list[tuple[list[int], bool]] = []
    for token, is_trained in zip(whole, trained, strict=False):
        if runs and runs[-1][1] == is_trained:
            runs[-1][0].append(token)
        else:
            runs.append(([token], is_trained))
    return [(tokenizer.decode(run, skip_special_tokens=False), flag) for run, flag in runs]
