"""What all tasks share: options, one or many inputs, and batches for those that read a text once.

Shapes: B rows, T columns of a padded batch.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

import hone.quant  # noqa: F401 - makes quantized checkpoints readable
from hone.core.errors import RequestError
from hone.core.nearest import nearest
from hone.engine.adapted import find_model, load_adapted
from hone.engine.pipelines.inputs import Encoded, Text, cut, encode
from hone.kernels import preferred_dtype
from hone.models import Head, ModelConfig, check_vocabulary, load_config, load_model
from hone.text.tokenizer import Tokenizer

_MAX_ROWS = 64
_MAX_TOKENS = 16_384  # of a batch
# What has a meaning in transformers and can change nothing here.
_WITHOUT_EFFECT = frozenset({"num_workers", "padding"})
_LONGEST_FIRST = (True, "longest_first")
_UNCUT = (None, False, "do_not_truncate")


class Pipeline(ABC):
    """A model and a tokenizer for one task.

    Call it with one input for its result, with a list for a list of results, with any other
    iterable for an iterator over results.

    Attributes:
        task: its name.
        path: the checkpoint directory.
        options: those that hold for every call.
    """

    # Options beside the keyword arguments of :meth:`run`.
    more_options: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, path: Path, task: str, options: Mapping[str, Any]) -> None:
        self.path, self.task = path, task
        self.options = self._checked(options)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """The result of one input, or of each of several; ``options`` are the task's.

        Args:
            batch_size: inputs that are computed together; None for what memory allows. It changes
                no result.

        Raises:
            RequestError: an input or an option cannot be used; the message says which and why.
        """
        chosen = self.options | self._checked(options)
        if self.is_one(inputs):
            return self.run([inputs], **chosen)[0]
        if isinstance(inputs, Sequence):
            return self.run(list(inputs), **chosen)
        if isinstance(inputs, Iterable):
            return self._stream(iter(inputs), chosen)
        raise RequestError(f"The input is {inputs!r}; give a text, or a list of texts.")

    def is_one(self, inputs: Any) -> bool:
        """Whether ``inputs`` is one input and not several."""
        return isinstance(inputs, str | Mapping)

    @abstractmethod
    def run(self, items: list[Any], batch_size: int | None = None, **options: Any) -> list[Any]:
        """The results of ``items``, in order. The keyword arguments are the task's options."""

    def _stream(self, inputs: Iterator[Any], options: dict[str, Any]) -> Iterator[Any]:
        while items := list(islice(inputs, options.get("batch_size") or _MAX_ROWS)):
            yield from self.run(items, **options)

    def _checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        parameters = inspect.signature(self.run).parameters.values()
        named = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} | self.more_options
        known = named | {"batch_size"} | _WITHOUT_EFFECT
        for name in options:
            if name not in known:
                raise RequestError(
                    f'"{self.task}" has no option "{name}". {nearest(name, sorted(named))}'
                )
        size = options.get("batch_size")
        if size is not None and (not isinstance(size, int) or size < 1):
            raise RequestError(f"batch_size is {size!r}; give a whole number of 1 or more.")
        return {name: value for name, value in options.items() if name not in _WITHOUT_EFFECT}


class Reader(Pipeline):
    """A task whose model reads each text once.

    Attributes:
        model: the torch module, with the head of the task.
        tokenizer: text to ids and back.
    """

    head: ClassVar[Head]

    def __init__(
        self,
        path: Path,
        tokenizer: Path,
        dtype: str,
        device: str | torch.device,
        *,
        task: str,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(path, task, options)
        directory, adapter = find_model(path)
        config = load_config(directory)
        fast = preferred_dtype(device)
        if dtype == "auto" and config.dtype != "float32" and fast == torch.float32:
            dtype = "float32"
        self.tokenizer = Tokenizer.load(tokenizer)
        if adapter is None:
            self.model = load_model(directory, dtype, device, head=self.head)
        else:
            self.model = load_adapted(directory, adapter, dtype, device, self.head)
        check_vocabulary(self.model.config, self.tokenizer.vocab_size, path)

    def encode(
        self,
        texts: Sequence[Text],
        *,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        words: bool = False,
    ) -> list[Encoded]:
        """The tokens of each text.

        Args:
            truncation: True cuts a text that is too long.
            max_length: the length that texts are cut to, in tokens; None for what the model reads.

        Raises:
            RequestError: a text is too long and may not be cut, or there is nothing to read in it.
        """
        found = encode(self.tokenizer, texts, special=add_special_tokens, words=words)
        if cuts(truncation, max_length):
            length = self.longest if max_length is None else max_length
            if length is not None:
                left = self.tokenizer.config.get("truncation_side") == "left"
                found = [cut(encoded, length, left) for encoded in found]
        for number, encoded in enumerate(found, 1):
            self.check_length(encoded, number)
        return found

    @property
    def longest(self) -> int | None:
        """What a text is cut to."""
        return cut_length(self.model.config, self.tokenizer)

    def check_length(self, encoded: Encoded, number: int) -> None:
        """Refuse text ``number`` (from 1) if it is empty or too long."""
        count = len(encoded.ids)
        if not count:
            raise RequestError(f"Text {number} is empty; there is nothing to read in it.")
        context = context_of(self.model.config)
        if context is not None and count > context:
            raise RequestError(
                f"Text {number} has {count:,} tokens; this model reads {context:,}. Shorten "
                "it, or pass truncation=True to leave out the rest."
            )

    def batches(
        self, encoded: Sequence[Encoded], batch_size: int | None
    ) -> Iterator[tuple[list[int], list[Encoded]]]:
        """Texts of similar length together: their places in ``encoded``, and they themselves."""
        rows = batch_size or _MAX_ROWS
        order = sorted(range(len(encoded)), key=lambda place: -len(encoded[place].ids))
        while order:
            longest = len(encoded[order[0]].ids)
            count = max(1, min(rows, _MAX_TOKENS // longest))
            places, order = order[:count], order[count:]
            yield places, [encoded[place] for place in places]

    def padded(self, batch: Sequence[Encoded]) -> dict[str, Tensor]:
        """The arguments of the model for ``batch``, each ``[B, T]``."""
        lengths = torch.tensor([len(encoded.ids) for encoded in batch])
        mask_BT = torch.arange(int(lengths.max())) < lengths[:, None]

        def column(values: Sequence[list[int]]) -> Tensor:
            flat = torch.tensor([value for row in values for value in row])
            padded_BT = torch.zeros(mask_BT.shape, dtype=torch.int64)
            return padded_BT.masked_scatter_(mask_BT, flat).to(self.model.device)

        arguments = {
            "input_ids": column([encoded.ids for encoded in batch]),
            "attention_mask": mask_BT.to(self.model.device),
        }
        if self.has_kinds:
            arguments["token_type_ids"] = column([encoded.kinds for encoded in batch])
        return arguments

    @cached_property
    def has_kinds(self) -> bool:
        """Whether the model is told which of two texts a token is of."""
        names = self.tokenizer.config.get("model_input_names")
        return self.model.config.token_types > 1 and (names is None or "token_type_ids" in names)

    @torch.inference_mode()
    def outputs(self, encoded: Sequence[Encoded], batch_size: int | None) -> list[Tensor]:
        """What the model's head gives for each text, in float32 on the CPU."""
        found: list[Tensor | None] = [None] * len(encoded)
        for places, batch in self.batches(encoded, batch_size):
            logits = self.compute(batch).float().cpu()
            for place, row in zip(places, logits, strict=True):
                found[place] = row
        return [row for row in found if row is not None]

    def compute(self, batch: Sequence[Encoded]) -> Tensor:
        """The model's output for a batch, ``[B, ...]``."""
        return self.model(**self.padded(batch)).logits


def context_of(config: ModelConfig) -> int | None:
    """The tokens of a text that a model can read; None without a limit."""
    config = config.encoder or config
    return None if config.extrapolates else config.max_position_embeddings


def cut_length(config: ModelConfig, tokenizer: Tokenizer) -> int | None:
    """What a text is cut to: the model's context, or the tokenizer's limit if that is shorter."""
    limits = (context_of(config), tokenizer.model_max_length)
    return min((limit for limit in limits if limit is not None), default=None)


def cuts(truncation: bool | str | None, max_length: int | None) -> bool:
    """Whether these options ask for long texts to be cut.

    Raises:
        RequestError: one has a value that means nothing here.
    """
    if max_length is not None and (not isinstance(max_length, int) or max_length < 1):
        raise RequestError(f"max_length is {max_length!r}; give a whole number of 1 or more.")
    if truncation in _LONGEST_FIRST:
        return True
    if truncation not in _UNCUT:
        raise RequestError(
            f"truncation is {truncation!r}; give True, which cuts the longer of two texts first, "
            "or False."
        )
    return truncation is None and max_length is not None


def checked_texts(items: Sequence[Any]) -> list[str]:
    """``items``, which must be texts.

    Raises:
        RequestError: one is not.
    """
    for number, item in enumerate(items, 1):
        if not isinstance(item, str):
            raise RequestError(f"Input {number} is {item!r}; give a text.")
    return list(items)


def checked_top_k(top_k: Any) -> None:
    """Refuse what is no number of results.

    Raises:
        RequestError: ``top_k`` is not a whole number of 1 or more.
    """
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
        raise RequestError(f"top_k is {top_k!r}; give a whole number of 1 or more.")


def arguments_for(function: Any, given: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """``given`` where it holds keyword arguments of ``function`` alone.

    Raises:
        RequestError: it holds another; ``name`` is the option it was given as.
    """
    known = [p.name for p in inspect.signature(function).parameters.values()
             if p.kind is p.KEYWORD_ONLY]  # fmt: skip
    for key in given or {}:
        if key not in (*known, *_WITHOUT_EFFECT):
            raise RequestError(f'{name} has no "{key}". {nearest(key, known)}')
    return {key: value for key, value in (given or {}).items() if key in known}
