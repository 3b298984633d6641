"""A loaded model with its tokenizer: what ``hone.load`` returns."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from hone.core.errors import CheckpointError, DataError, RequestError
from hone.core.files import read_json
from hone.engine.adapted import find_model, load_adapted
from hone.engine.engine import Engine
from hone.engine.generate import Finished, GenerationResult, Generator, Stream, run
from hone.engine.invariance import RowCounts, safe_row_counts
from hone.engine.options import EngineOptions
from hone.engine.params import SamplingParams
from hone.engine.sources import AnswerTokens, answer_tokens
from hone.engine.speculation import load_speculation
from hone.kernels import preferred_dtype
from hone.models import (
    CausalLM,
    Head,
    Model,
    ModelConfig,
    Seq2SeqLM,
    check_vocabulary,
    load_config,
    load_model,
)
from hone.quant import Int8Activations, use_int8_activations
from hone.text.conversation import Conversations
from hone.text.messages import canonical_messages
from hone.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]
# Models up to this size are exact unless told otherwise: they are quick enough either way.
_EXACT_UP_TO = 20_000_000
_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class LM:
    """A language model ready for use.

    Attributes:
        path: the checkpoint directory that it was read from.
        config: the model's sizes.
        tokenizer: text to ids and back.
        model: the torch module; ``model(input_ids, attention_mask=None).logits``.
        end_ids: the tokens that end an output.
        exact: outputs do not depend on what else is in the batch; see :func:`load`.
        answer: what frames the outputs of a model with an encoder; None for any other.
        options: of the engine that computes.
    """

    path: Path
    config: ModelConfig
    tokenizer: Tokenizer
    model: Generator
    end_ids: frozenset[int]
    exact: bool
    answer: AnswerTokens | None = None
    options: EngineOptions = field(default_factory=EngineOptions)
    # Per number of threads, on which the answer depends.
    _row_counts: dict[int, RowCounts | None] = field(default_factory=dict, repr=False)
    # The engine that is kept from call to call with what it remembers of prompts, and for which
    # weights and number of threads; taken out while it is in use.
    _kept: list[tuple[Any, Engine]] = field(default_factory=list, repr=False)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        stream: Stream | None = None,
        finished: Finished | None = None,
    ) -> list[GenerationResult]:
        """Continue one or many prompts; a model with an encoder reads them there, and answers.

        Args:
            prompts: a text, several texts, or token ids (a list of lists for several). A text gets
                the special tokens that the tokenizer adds, ids are taken as they are.
            params: for all prompts, or one per prompt; None is greedy.
            stream: called with ``(index of the prompt, next piece of text)``.
            finished: called with ``(index of the prompt, result)``.

        Returns:
            One result per prompt, in their order.

        Raises:
            RequestError: a prompt or a parameter cannot be used; the message says which and why.
        """
        requests = _as_list(prompts)
        ids = [self._ids(prompt, number) for number, prompt in enumerate(requests, 1)]
        if params is None or isinstance(params, SamplingParams):
            every = [params or SamplingParams()] * len(ids)
        else:
            every = list(params)
            if len(every) != len(ids):
                raise RequestError(f"There are {len(ids)} prompts and {len(every)} params.")
        if not ids:
            return []
        opening = None if self.answer is None else (self.answer.start,)
        state = (torch.get_num_threads(), _weights_state(self.model))
        engine = self._engine_of(state)
        results = run(engine, self.tokenizer, ids, every, self.end_ids, opening, stream, finished)
        self._kept[:] = [(state, engine)]
        return results

    def _engine_of(self, state: Any) -> Engine:
        """The engine that was kept, if it is of ``state`` and no other thread was quicker."""
        try:
            kept, engine = self._kept.pop()
        except IndexError:
            return self.engine()
        if kept == state:
            return engine
        del engine  # its memory is free before more is taken
        return self.engine()

    def engine(self, options: EngineOptions | None = None) -> Engine:
        """A new engine for the model, e.g. to serve requests as they come.

        Raises:
            CapacityError: there is no memory for its cache.
            ConfigError: what is to guess tokens does not go with the model.
        """
        options = options or self.options
        counts = (self.row_counts() if self.exact else None) or ()
        speculation = load_speculation(self.model, self.tokenizer, options)
        return Engine(
            self.model, self.tokenizer, self.end_ids, self.answer, counts, options, speculation
        )

    def row_counts(self) -> RowCounts | None:
        """See :func:`hone.engine.invariance.safe_row_counts`; measured on first use."""
        threads = torch.get_num_threads()
        if threads not in self._row_counts:
            self._row_counts[threads] = safe_row_counts(self.model)
        return self._row_counts[threads]

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """The token ids of a conversation up to where the model's answer begins.

        Args:
            messages: ``{"role": ..., "content": ...}``, oldest first.
            tools: JSON schemas of functions, for templates that offer tools.
            variables: whatever else the template reads.

        Raises:
            CheckpointError: the checkpoint has no chat template, or a broken one.
            RequestError: the template refuses the messages.
        """
        if not self.tokenizer.chat_templates:
            raise CheckpointError(
                f"{self.path} has no chat template, so it does not know how a conversation is "
                "written. Continue text with `hone generate` instead, or put the model's "
                "chat_template.jinja into that directory."
            )
        writer = Conversations(self.tokenizer)
        return writer.prompt_ids(canonical_messages(messages), tools, **variables)

    def _ids(self, prompt: Prompt, number: int) -> list[int]:
        if not isinstance(prompt, str):
            return _token_ids(prompt, number)
        ids = self.tokenizer.encode(prompt, add_special_tokens=True)
        bos = self.tokenizer.bos_id
        if not ids and bos is not None:
            ids = [bos]
        if not ids:
            raise RequestError(f"Prompt {number} is empty; write something to continue.")
        return ids


def _token_ids(prompt: Sequence[int], number: int) -> list[int]:
    try:
        return [operator.index(i) for i in prompt]
    except TypeError as error:
        raise RequestError(
            f"Prompt {number} is {prompt!r}; give a text or a list of token ids."
        ) from error


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise RequestError(f"prompts is {prompts!r}; give a text, or a list of texts.")
    found = list(prompts)
    if found and all(isinstance(item, Integral) for item in found):
        return [found]  # type: ignore[list-item]
    return found  # type: ignore[return-value]


def load(
    path: str | Path,
    dtype: str = "auto",
    device: str | torch.device = "cpu",
    exact: bool | None = None,
    options: EngineOptions | None = None,
    int8_activations: Int8Activations = False,
) -> LM:
    """Read a checkpoint, quantized or not, the checkpoint of a run, or an adapter with its base.

    An adapter is merged into a float base, and stays beside a quantized one.

    Args:
        path: a Hugging Face directory of a model that continues or answers texts, a run of hone, a
            LoRA adapter, or a name on the hub such as ``hf://org/name``.
        dtype: "float32", "bfloat16", "float16", or "auto": as stored, except that a processor
            without bfloat16 instructions computes 16-bit weights in float32, which loses nothing
            and is many times faster there.
        device: where to compute.
        exact: compute a few prompts in the way in which many are computed, so that no output
            depends on what else is in the batch, to the last bit. Else rounding can differ, which
            shows where two tokens are as good as equally likely. Exactness can take a lone prompt
            up to 3 times as long on a large model, up to twice on a tiny one; None means: up to
            20 million parameters. A processor whose products depend on the number of rows in
            every size allows no exactness (``lm.row_counts()`` is None).
        options: of the engine that computes.
        int8_activations: int8 layers round what they read to int8 as well, which costs accuracy and
            is faster on processors with instructions for it; "auto" measures whether it is here.

    Raises:
        CheckpointError: the directory or one of its files is missing, broken or unknown.
        ConfigError: ``int8_activations`` is True, and there are no int8 layers.
    """
    if dtype not in _DTYPES:
        raise CheckpointError(f"dtype is {dtype!r}; choose one of {', '.join(_DTYPES)}.")
    directory, adapter = find_model(path)
    config = load_config(directory)
    if dtype == "auto" and config.dtype != "float32" and preferred_dtype(device) == torch.float32:
        dtype = "float32"
    own = adapter is not None and (adapter / "tokenizer.json").is_file()
    tokenizer = Tokenizer.load(adapter if adapter is not None and own else directory)
    if adapter is None:
        check_vocabulary(config, tokenizer.vocab_size, directory)
    answers = config.encoder is not None
    if not answers and not config.causal:
        raise CheckpointError(
            f"{directory} holds an encoder, which reads texts and writes none. Use it with "
            "hone.pipeline, e.g. for fill-mask, classification or embeddings."
        )
    if config.head not in ("causal", "seq2seq", "masked") and not config.tie_word_embeddings:
        raise CheckpointError(
            f"{directory} holds a model with the head {config.head!r}, without the layer that "
            "scores tokens, so it cannot write. Use it with hone.pipeline, or load one that writes."
        )
    head: Head = "seq2seq" if answers else "causal"
    model: Model
    if adapter is None:
        model = load_model(directory, dtype, device, head)
    else:
        model = load_adapted(directory, adapter, dtype, device, head)
        check_vocabulary(model.config, tokenizer.vocab_size, adapter)
    assert isinstance(model, CausalLM | Seq2SeqLM)
    use_int8_activations(model, int8_activations)
    if exact is None:
        exact = config.parameter_count <= _EXACT_UP_TO
    generation = _generation_config(directory)
    if adapter is not None:  # it may have been trained to end its answers otherwise
        generation = _generation_config(adapter) or generation
    end_ids = _end_ids(generation or {}, config, tokenizer)
    answer = answer_tokens(config, generation) if answers else None
    return LM(
        adapter or directory,
        model.config,
        tokenizer,
        model,
        end_ids,
        exact,
        answer,
        options or EngineOptions(),
    )


def _weights_state(model: Model) -> tuple[tuple[int, int], ...]:
    """Changes when a weight is exchanged or written to: then nothing computed is of use."""
    return tuple(
        (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        for weight in (*model.parameters(), *model.buffers())
    )


def _generation_config(directory: Path) -> dict[str, Any] | None:
    """The content of ``generation_config.json``; None without the file."""
    file = directory / "generation_config.json"
    if not file.is_file():
        return None
    try:
        values = read_json(file)
    except DataError as error:
        raise CheckpointError(f"{file} is not a JSON object: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} is not a JSON object.")
    return values


def _end_ids(
    generation: Mapping[str, Any], config: ModelConfig, tokenizer: Tokenizer
) -> frozenset[int]:
    """From ``generation_config.json`` first, as transformers does it."""
    eos = generation.get("eos_token_id")
    for candidate in (eos, config.eos_token_id, tokenizer.eos_id):
        if candidate is not None:
            ids = candidate if isinstance(candidate, list | tuple) else [candidate]
            return frozenset(int(i) for i in ids)
    return frozenset()
