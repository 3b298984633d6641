"""POST /v1/completions."""

import time
import uuid
from contextlib import aclosing
from typing import Any

from hone.engine.request import Request
from hone.serve.openai.errors import unsupported
from hone.serve.openai.generation import Generation, Step
from hone.serve.openai.http import Call
from hone.serve.openai.logprobs import completion_logprobs
from hone.serve.openai.schemas import CompletionRequest
from hone.serve.openai.service import Service
from hone.serve.openai.structured import grammar_of

_MAX_TOKENS = 16


async def completions(service: Service, call: Call, body: CompletionRequest) -> None:
    """Continue texts, or token ids, whole or as a stream."""
    info = service.writer()
    adapter = service.adapter(info, body.model)
    _check(body)
    n = body.n or 1
    several = isinstance(body.prompt, list) and not isinstance(body.prompt[0], int)
    service.bounds.check_samples(n * (len(body.prompt) if several else 1))
    special = body.add_special_tokens is not False
    prompts = await service.prompts(body.prompt, "prompt", info, special)
    identity = f"cmpl-{uuid.uuid4().hex}"
    asked = body.max_tokens
    if asked is None:  # OpenAI's default, where more is not allowed at all
        asked = min(_MAX_TOKENS, service.bounds.output_tokens or _MAX_TOKENS)
    grammar, budget = grammar_of(body), service.bounds.check_output(asked)
    params = service.params(body, budget, info, body.logprobs, grammar)
    requests = []
    for number, prompt in enumerate(prompts):
        service.bounds.check_prompt(len(prompt), info.longest_prompt)
        requests.append(
            Request(
                f"{identity}-{number}",
                tuple(prompt),
                params,
                body.priority or 0,
                call.owner,
                adapter,
            )
        )
    answer = _Answer(service, identity, body, adapter or info.name, _echoes(service, body, prompts))
    total = sum(map(len, prompts))
    with service.limiter.admit(call.owner, total, len(requests)) as held:
        await service.prepare(params)
        generation = Generation(service, requests, held, None)
        if body.stream:
            await answer.stream(call, generation)
        else:
            await answer.whole(call, generation, n * len(requests))


def _check(body: CompletionRequest) -> None:
    if body.suffix:
        raise unsupported("suffix", "put it into the prompt")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise unsupported("best_of", "ask for n outputs and choose among them")
    if body.echo and body.logprobs is not None:
        raise unsupported("echo", "with logprobs the prompt's are not computed; leave one out")


def _echoes(service: Service, body: CompletionRequest, prompts: list[list[int]]) -> list[str]:
    """What stands before the text of each choice."""
    if not body.echo:
        return [""] * len(prompts) * (body.n or 1)
    if isinstance(body.prompt, str):
        texts = [body.prompt]
    else:
        texts = [
            given if isinstance(given, str) else service.tokenizer.decode(prompt)
            for given, prompt in zip(
                body.prompt if len(body.prompt) == len(prompts) else prompts, prompts, strict=True
            )
        ]
    return [text for text in texts for _ in range(body.n or 1)]


class _Answer:
    """The answer to one request."""

    def __init__(
        self,
        service: Service,
        identity: str,
        body: CompletionRequest,
        model: str,
        echoes: list[str],
    ) -> None:
        self._texts, self._echoes = service.texts, echoes
        self._id, self._created, self._model = identity, int(time.time()), model
        self._top = body.logprobs
        options = body.stream_options
        self._tells_usage = bool(options and options.include_usage)

    async def whole(self, call: Call, generation: Generation, count: int) -> None:
        """Answer when all is there."""
        choices = [Step(number, self._echoes[number]) for number in range(count)]
        async with aclosing(generation.steps()) as steps:
            async for step in steps:
                choice = choices[step.choice]
                choice.text += step.text
                choice.logprobs += step.logprobs
                choice.finish_reason = step.finish_reason
        made = self._object([self._choice(choice, 0) for choice in choices])
        await call.json(made | {"usage": generation.usage.json()})

    async def stream(self, call: Call, generation: Generation) -> None:
        """Answer as it comes."""
        lengths: dict[int, int] = {}
        async with aclosing(generation.steps()) as steps:
            async for step in steps:
                if step.choice not in lengths:
                    step.text = self._echoes[step.choice] + step.text
                offset = lengths.get(step.choice, 0)
                lengths[step.choice] = offset + len(step.text)
                await call.event(self._chunk([self._choice(step, offset)], None))
        if self._tells_usage:
            await call.event(self._chunk([], generation.usage.json()))
        await call.done()

    def _object(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        made = self._object(choices)
        return made | {"usage": usage} if self._tells_usage else made

    def _choice(self, step: Step, offset: int) -> dict[str, Any]:
        logprobs = None
        if self._top is not None:
            logprobs = completion_logprobs(self._texts, step.logprobs, self._top, offset)
        return {
            "index": step.choice,
            "text": step.text,
            "logprobs": logprobs,
            "finish_reason": step.finish_reason,
        }
