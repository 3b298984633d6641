"""What a model writes while and after it is trained: held-out prompts, and prompts of the user."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hone.core.files import read_json
from hone.data import IGNORED, Sample
from hone.engine import SamplingParams
from hone.engine.generate import generate
from hone.engine.sources import answer_tokens
from hone.text.tokenizer import Tokenizer

_MOST_PROMPT = 400


def answer_samples(
    model: Any,
    tokenizer: Tokenizer,
    directory: Path,
    samples: Sequence[Sample],
    end_ids: Sequence[int],
    most_tokens: int,
) -> list[dict[str, str]]:
    """Each sample's first prompt, the answer that was wanted, and the model's own, greedily.

    Args:
        directory: the checkpoint that the model was read from.
        end_ids: what ends an answer, beside the model's own end tokens.
    """
    prompts, wanted = [], []
    for sample in samples:
        labels = np.asarray(sample.labels)
        first = int(np.argmax(labels != IGNORED))
        after = np.flatnonzero(labels[first:] == IGNORED)
        end = first + (int(after[0]) if len(after) else len(labels) - first)
        before = sample.ids[: first + 1] if sample.source is None else sample.source
        prompts.append([int(index) for index in before])
        wanted.append([int(index) for index in labels[first:end]])
    kept = [n for n, prompt in enumerate(prompts) if _fits(model, prompt, most_tokens)]
    written = _write(model, tokenizer, directory, [prompts[n] for n in kept], end_ids, most_tokens)
    return [
        {
            "prompt": tokenizer.decode(prompts[n])[-_MOST_PROMPT:],
            "wanted": tokenizer.decode(wanted[n]),
            "answer": text,
        }
        for n, text in zip(kept, written, strict=True)
    ]


def continue_prompts(
    model: Any,
    tokenizer: Tokenizer,
    directory: Path | None,
    prompts: Sequence[str],
    most_tokens: int = 64,
) -> list[dict[str, str]]:
    """Each prompt with how the model goes on, greedily."""
    ids = [tokenizer.encode(prompt, add_special_tokens=True) for prompt in prompts]
    written = _write(model, tokenizer, directory, ids, (), most_tokens)
    return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, written, strict=True)]


def _fits(model: Any, prompt: Sequence[int], most_tokens: int) -> bool:
    config = model.config
    room = config.extrapolates or config.encoder is not None
    return room or len(prompt) + most_tokens <= config.max_position_embeddings


def _write(
    model: Any,
    tokenizer: Tokenizer,
    directory: Path | None,
    prompts: Sequence[Sequence[int]],
    end_ids: Sequence[int],
    most_tokens: int,
) -> list[str]:
    if not prompts:
        return []
    own = model.config.eos_token_id
    ends = {*end_ids, *(own if isinstance(own, tuple) else () if own is None else (own,))}
    answer = None
    if model.config.encoder is not None:
        file = None if directory is None else directory / "generation_config.json"
        values = read_json(file) if file is not None and file.is_file() else None
        answer = answer_tokens(model.config, values)
    params = [SamplingParams(max_tokens=most_tokens)] * len(prompts)
    was_training = model.training
    model.eval()
    results = generate(model, tokenizer, prompts, params, ends, answer=answer)
    model.train(was_training)
    return [result.text for result in results]
