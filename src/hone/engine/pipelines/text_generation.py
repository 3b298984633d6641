"""Continuations of texts, and answers in conversations."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hone.core.errors import RequestError
from hone.engine.generate import GenerationResult
from hone.engine.lm import LM, load
from hone.engine.pipelines.base import Pipeline, cut_length
from hone.engine.pipelines.decoding import OPTIONS, Decoding, stored_settings, without_refused
from hone.text.chat import ChatTemplate
from hone.text.tokenizer import Tokenizer

Chat = Sequence[Mapping[str, Any]]
# transformers' defaults for this task.
_DEFAULTS = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
# Stands where the last message ends, to find that place in what a template makes of it.
_END_MARK = "MESSAGEENDSHERE"


class Writer(Pipeline):
    """A task whose model writes text.

    Attributes:
        lm: the model with its tokenizer.
    """

    more_options = OPTIONS

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
        self.lm: LM = load(path, dtype, device)
        if tokenizer != path:
            self.lm = replace(self.lm, tokenizer=Tokenizer.load(tokenizer))
        self.tokenizer = self.lm.tokenizer
        stored = self.special_settings(stored_settings(path, self.lm.config))
        self.stored = without_refused(stored, str(path))

    def special_settings(self, stored: dict[str, Any]) -> dict[str, Any]:
        """``stored`` with what the checkpoint says of this task alone."""
        return stored

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, length: int | None = None
    ) -> list[list[GenerationResult]]:
        """The results of each prompt.

        Args:
            length: what counts as each prompt's length in ``max_length``, if not its own.
        """
        each = [decoding.params(len(ids) if length is None else length) for ids in prompts]
        results = iter(
            self.lm.generate(
                [ids for ids, several in zip(prompts, each, strict=True) for _ in several],
                [params for several in each for params in several],
            )
        )
        return [[next(results) for _ in several] for several in each]


class TextGeneration(Writer):
    """A text with its continuation: ``[{"generated_text": ...}]``, one for each asked for.

    A conversation, a list of ``{"role", "content"}``, gets the model's answer as its last message.
    """

    def is_one(self, inputs: Any) -> bool:
        """See :class:`Pipeline`."""
        return super().is_one(inputs) or _is_chat(inputs)

    def run(
        self,
        items: list[str | Chat],
        batch_size: int | None = None,
        *,
        return_full_text: bool | None = None,
        return_text: bool | None = None,
        return_tensors: bool | str | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        skip_special_tokens: bool = True,
        prefix: str = "",
        add_special_tokens: bool = True,
        handle_long_generation: str | None = None,
        continue_final_message: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **generation: Any,
    ) -> list[Any]:
        """See :class:`Pipeline`.

        Args:
            return_full_text: False leaves the input out of the text.
            return_tensors: ``{"generated_token_ids": ...}`` instead, the prompt's and the new.
            return_text: True is the usual text; for the sake of old code.
            clean_up_tokenization_spaces, skip_special_tokens: see :meth:`Tokenizer.decode`.
            prefix: stands before every text.
            handle_long_generation: "hole" leaves out the beginning of a prompt that is too long.
            continue_final_message: go on with a conversation's last message; None does so where the
                assistant wrote it.
            tools, documents: for the chat template.
            generation: transformers' names: ``max_new_tokens``, ``do_sample``, ``temperature`` and
                so on; and ``seed``.
        """
        if return_tensors and (return_full_text is not None or return_text):
            raise RequestError("return_tensors gives no text; leave out the other return option.")
        decoding = Decoding(generation, self.stored, _DEFAULTS)
        prompts, continued = [], []
        for number, item in enumerate(items, 1):
            goes_on = False
            if isinstance(item, str):
                ids = self._ids(prefix + item, add_special_tokens)
            elif _is_chat(item):
                goes_on = bool(continue_final_message)
                if continue_final_message is None:
                    goes_on = item[-1].get("role") == "assistant"
                ids = self._chat_ids(item, goes_on, tools, documents)
            else:
                raise RequestError(
                    f"Input {number} is {item!r}; give a text, or a conversation: a list of "
                    '{"role": ..., "content": ...}.'
                )
            if handle_long_generation is not None:
                ids = self._hole(ids, decoding, handle_long_generation)
            prompts.append(ids)
            continued.append(goes_on)
        found = []
        results = self.generate(prompts, decoding)
        for item, goes_on, several in zip(items, continued, results, strict=True):
            records: list[dict[str, Any]] = []
            for result in several:
                if return_tensors:
                    ids = [*result.prompt_token_ids, *result.token_ids]
                    records.append({"generated_token_ids": ids})
                    continue
                text: Any = self._new_text(
                    result, skip_special_tokens, clean_up_tokenization_spaces
                )
                if return_full_text is not False:
                    text = _whole(item, text, goes_on)
                records.append({"generated_text": text})
            found.append(records)
        return found

    def _ids(self, text: str, special: bool) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=special)
        bos = self.tokenizer.bos_id
        return [bos] if not ids and bos is not None else ids

    def _chat_ids(self, chat: Chat, goes_on: bool, tools: Any, documents: Any) -> list[int]:
        if not goes_on:
            return self.lm.chat_prompt(chat, tools, documents=documents)
        last = chat[-1].get("content")
        source = self.tokenizer.chat_template_for(tools)
        if source is None:
            return self.lm.chat_prompt(chat, tools)  # which refuses it
        if not isinstance(last, str):
            raise RequestError(
                "The last message has no text to continue; pass continue_final_message=False."
            )
        marked = [*chat[:-1], {**chat[-1], "content": f"{last}{_END_MARK} "}]
        template = ChatTemplate(source, self.tokenizer.config)
        text = template.render(marked, tools, add_generation_prompt=False, documents=documents)
        begin, mark, after = text.rpartition(_END_MARK)
        if not mark:
            raise RequestError(
                "The chat template leaves out the last message, so it cannot be continued; pass "
                "continue_final_message=False."
            )
        # A template that strips messages wants no white space at the end of this one either.
        return self.tokenizer.encode(begin if after.startswith(" ") else begin.rstrip())

    def _hole(self, ids: list[int], decoding: Decoding, how: str) -> list[int]:
        if how != "hole":
            raise RequestError(f'handle_long_generation is {how!r}; give "hole" or None.')
        new = decoding.params(len(ids))[0].max_tokens or 0
        longest = cut_length(self.lm.config, self.tokenizer)
        if longest is None:
            return ids
        room = longest - new
        if room < 1:
            raise RequestError(f"{new} new tokens leave no room for a prompt; ask for fewer.")
        return ids[-room:]

    def _new_text(self, result: GenerationResult, skip: bool, clean_up: bool | None) -> str:
        """The text that the new tokens add to the prompt's, with the space between the two."""

        def decode(ids: Sequence[int]) -> str:
            return self.tokenizer.decode(ids, skip, clean_up)

        before = decode(result.prompt_token_ids)
        whole = decode([*result.prompt_token_ids, *result.token_ids])
        return whole[len(before) :] if whole.startswith(before) else decode(result.token_ids)


def _is_chat(item: Any) -> bool:
    return (
        isinstance(item, list | tuple)
        and bool(item)
        and all(isinstance(message, Mapping) and "role" in message for message in item)
    )


def _whole(item: str | Chat, text: str, goes_on: bool) -> Any:
    """The input with the new ``text`` behind it."""
    if isinstance(item, str):
        return item + text
    if goes_on:
        last = item[-1]
        return [*item[:-1], {"role": last["role"], "content": last["content"] + text}]
    return [*item, {"role": "assistant", "content": text}]
