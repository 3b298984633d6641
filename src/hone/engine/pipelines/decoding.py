"""transformers' names for how a text is generated, as the engine's parameters."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hone.core.errors import CheckpointError, DataError, RequestError
from hone.core.files import read_json
from hone.engine.params import SamplingParams
from hone.models import ModelConfig

# What the engine computes.
_COMPUTED = (
    "max_new_tokens",
    "max_length",
    "min_new_tokens",
    "min_length",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "num_return_sequences",
    "eos_token_id",
    "stop_strings",
)
# What it does not, and the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "no_repeat_ngram_size": (0,),
    "typical_p": (1.0,),
    "bad_words_ids": (),
}
# What has a meaning only with others that are refused, or changes no result.
_WITHOUT_EFFECT = ("pad_token_id", "use_cache", "length_penalty", "early_stopping")
OPTIONS = frozenset({*_COMPUTED, *_REFUSED, *_WITHOUT_EFFECT, "stop_sequence", "seed"})
# Whole numbers, and the least that each can be.
_WHOLE = {
    "max_new_tokens": 1,
    "max_length": 1,
    "min_new_tokens": 0,
    "min_length": 0,
    "num_return_sequences": 1,
    "seed": 0,
}
# transformers' own where nothing is said.
_TOP_K = 50


def stored_settings(path: Path, config: ModelConfig) -> dict[str, Any]:
    """What a checkpoint says: ``generation_config.json``, or ``config.json`` in older ones.

    Raises:
        CheckpointError: the file is broken.
    """
    file = path / "generation_config.json"
    try:
        values = read_json(file) if file.is_file() else config.extra
    except DataError as error:
        raise CheckpointError(f"{file} is not a JSON object: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} is not a JSON object.")
    known = {name: values.get(name) for name in (*_COMPUTED, *_REFUSED)}
    known.pop("eos_token_id")  # the model's own, which the engine knows
    return known_only(known)


def known_only(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` that are said: not None."""
    return {name: value for name, value in values.items() if value is not None}


def without_refused(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``values`` of a checkpoint less those that the engine does not compute, with a warning."""
    asked = [f"{name} = {values[name]}" for name in _refused(values)]
    if asked:
        warnings.warn(
            f"{where} asks for {', '.join(asked)}, which is not computed here; the likeliest token "
            "is taken at each step, or one is drawn.",
            stacklevel=6,
        )
    return {name: value for name, value in values.items() if name not in _REFUSED}


def _refused(values: Mapping[str, Any]) -> list[str]:
    return [
        name
        for name, neutral in _REFUSED.items()
        if values.get(name) is not None and values[name] not in neutral
    ]


class Decoding:
    """The settings of one call: what it asks for, else the checkpoint's, else the task's."""

    def __init__(
        self, asked: Mapping[str, Any], stored: Mapping[str, Any], task: Mapping[str, Any]
    ) -> None:
        """Settle what counts.

        Raises:
            RequestError: an option that hone does not compute.
        """
        asked = known_only(asked)
        if refused := _refused(asked):
            raise RequestError(
                f"{refused[0]} is {asked[refused[0]]!r}; hone takes the likeliest token at each "
                "step or draws one, and knows no other search. Leave it out."
            )
        values = {**stored, **asked}
        if "max_length" in values:
            task = {name: value for name, value in task.items() if name != "max_new_tokens"}
        self._values = {**task, **values}
        for name, least in _WHOLE.items():
            _check_whole(name, self._values.get(name, least), least)
        self.sampled = bool(self._values.get("do_sample", False))
        self.count: int = self._values.get("num_return_sequences", 1)
        if self.count > 1 and not self.sampled:
            raise RequestError(
                f"num_return_sequences is {self.count}, and without do_sample=True all would be "
                "the same."
            )

    def params(self, prompt_length: int) -> list[SamplingParams]:
        """One for each continuation of a prompt of so many tokens.

        Raises:
            RequestError: a value out of range, or no room behind the prompt.
        """
        values = self._values
        most, least = values.get("max_new_tokens"), values.get("min_new_tokens")
        if most is None and values.get("max_length") is not None:
            most = values["max_length"] - prompt_length
            if most < 1:
                raise RequestError(
                    f"max_length is {values['max_length']}, and the prompt has {prompt_length} "
                    "tokens already; set max_new_tokens instead."
                )
        if least is None:
            least = max(0, values.get("min_length", 0) - prompt_length)
        ends = values.get("eos_token_id")
        stop = values.get("stop_sequence", values.get("stop_strings", ()))
        common: dict[str, Any] = {
            "max_tokens": most,
            "min_tokens": least if most is None else min(least, most),
            "repetition_penalty": values.get("repetition_penalty", 1.0),
            "stop": stop,
            "stop_token_ids": [ends] if isinstance(ends, int) else ends or (),
            "ignore_eos": ends is not None,
        }
        if not self.sampled:
            return [SamplingParams(**common)]
        common |= {
            "temperature": values.get("temperature", 1.0),
            "top_k": values.get("top_k", _TOP_K),
            "top_p": values.get("top_p", 1.0),
            "min_p": values.get("min_p", 0.0),
        }
        return [SamplingParams(**common, seed=self._seed(n)) for n in range(self.count)]

    def _seed(self, number: int) -> int:
        seed = self._values.get("seed")
        # torch's own generator, so that torch.manual_seed makes a program repeatable.
        return int(torch.randint(2**62, ())) if seed is None else seed + number


def _check_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RequestError(f"{name} is {value!r}; give a whole number of {least} or more.")
