"""POST /v1/chat/completions."""

import time
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from hone.core.errors import RequestError
from hone.engine.params import Grammar
from hone.engine.request import Request
from hone.serve.openai.calls import CallPart, Reader
from hone.serve.openai.errors import unsupported
from hone.serve.openai.generation import Calling, Generation, Step
from hone.serve.openai.http import Call
from hone.serve.openai.logprobs import chat_logprobs
from hone.serve.openai.schemas import ChatRequest, NamedTool, wrong
from hone.serve.openai.service import Service
from hone.serve.openai.structured import grammar_of
from hone.serve.openai.tools import CallWriter, Tools


async def chat(service: Service, call: Call, body: ChatRequest) -> None:
    """Answer a conversation, whole or as a stream."""
    info = service.writer()
    adapter = service.adapter(info, body.model)
    tools = _tools(body)
    writer = _writer(service) if tools else None
    prompt = await service.conversation(body.messages, tools, _variables(service, body))
    grammar, calling = _output(body, tools, writer)
    if writer is not None and _forced(body) and writer.opener is not None:
        prompt.append(writer.opener)
    n = body.n or 1
    service.bounds.check_samples(n)
    service.bounds.check_prompt(len(prompt), info.longest_prompt)
    budget = service.bounds.check_output(body.max_completion_tokens or body.max_tokens)
    top = body.top_logprobs or 0
    if top and not body.logprobs:
        raise wrong("top_logprobs", "top_logprobs needs logprobs to be true.")
    params = service.params(body, budget, info, top if body.logprobs else None, grammar)
    answer = _Answer(service, f"chatcmpl-{uuid.uuid4().hex}", body, adapter or info.name, writer)
    request = Request(answer.id, tuple(prompt), params, body.priority or 0, call.owner, adapter)
    with service.limiter.admit(call.owner, len(prompt)) as held:
        await service.prepare(params)
        generation = Generation(service, [request], held, calling)
        if body.stream:
            await answer.stream(call, generation)
        else:
            await answer.whole(call, generation, n)


def _variables(service: Service, body: ChatRequest) -> dict[str, Any]:
    found = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        if "reasoning_effort" not in service.conversations.source():
            raise unsupported("reasoning_effort", "this model's chat template does not read it")
        found.setdefault("reasoning_effort", body.reasoning_effort)
    return found


def _tools(body: ChatRequest) -> Tools | None:
    """The functions that the model is told of; None where it is to call none.

    Raises:
        ApiError: 400, the choice names a function that is not on offer.
    """
    names = [tool.function.name for tool in body.tools or ()]
    choice = body.tool_choice
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise wrong(
            "tool_choice",
            f"tool_choice names {choice.function.name!r:.100}, which is no tool here.",
        )
    if choice == "required" and not names:
        raise wrong("tool_choice", "tool_choice is 'required', but there are no tools.")
    if choice == "none" or not body.tools:
        return None
    return [tool.model_dump(exclude_none=True) for tool in body.tools]


def _forced(body: ChatRequest) -> bool:
    return body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)


def _writer(service: Service) -> CallWriter:
    if service.calls is None:
        raise unsupported(
            "tools", "the chat template of this model writes no calls in a form that is known"
        )
    return service.calls


def _output(
    body: ChatRequest, tools: Tools | None, writer: CallWriter | None
) -> tuple[Grammar | None, Calling | None]:
    """What the output must be, and how it is read."""
    grammar = grammar_of(body)
    if tools is None or writer is None:
        return grammar, None
    several = body.parallel_tool_calls is not False
    forced = _forced(body)
    try:
        if forced:
            if grammar is not None:
                raise wrong(
                    "response_format", "response_format cannot be used where a tool must be called."
                )
            if isinstance(body.tool_choice, NamedTool):
                name = body.tool_choice.function.name
                tools = [tool for tool in tools if tool["function"]["name"] == name][:1]
                several = False
            grammar = writer.forced(tools, several)
        elif grammar is not None:
            grammar = writer.answer_or(grammar, tools, several)
    except RequestError as error:
        raise wrong("tool_choice" if forced else "response_format", str(error)) from error
    opened = forced and writer.opener is not None

    def reader() -> Reader:
        return writer.form.read(opened)

    return grammar, Calling(reader, writer.signs, one=not several)


class _Answer:
    """The answer to one request."""

    def __init__(
        self,
        service: Service,
        identity: str,
        body: ChatRequest,
        model: str,
        writer: CallWriter | None,
    ) -> None:
        self.id = identity
        self._texts, self._writer = service.texts, writer
        self._created, self._model = int(time.time()), model
        self._top = (body.top_logprobs or 0) if body.logprobs else None
        options = body.stream_options
        self._tells_usage = bool(options and options.include_usage)

    async def whole(self, call: Call, generation: Generation, n: int) -> None:
        """Answer when all is there."""
        choices = [Step(number) for number in range(n)]
        async with aclosing(generation.steps()) as steps:
            async for step in steps:
                choice = choices[step.choice]
                choice.text += step.text
                choice.calls += step.calls
                choice.logprobs += step.logprobs
                choice.finish_reason = step.finish_reason
        made = self._object("chat.completion", [self._choice(choice) for choice in choices])
        await call.json(made | {"usage": generation.usage.json()})

    async def stream(self, call: Call, generation: Generation) -> None:
        """Answer as it comes."""
        begun: set[int] = set()
        async with aclosing(generation.steps()) as steps:
            async for step in steps:
                delta: dict[str, Any] = {}
                if step.choice not in begun:
                    begun.add(step.choice)
                    delta = {"role": "assistant", "content": ""}
                if step.text:
                    delta["content"] = step.text
                if step.calls:
                    delta["tool_calls"] = [self._call(part, True) for part in step.calls]
                choice = {
                    "index": step.choice,
                    "delta": delta,
                    "logprobs": self._logprobs(step),
                    "finish_reason": step.finish_reason,
                }
                await call.event(self._chunk([choice], None))
        if self._tells_usage:
            await call.event(self._chunk([], generation.usage.json()))
        await call.done()

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        made = self._object("chat.completion.chunk", choices)
        return made | {"usage": usage} if self._tells_usage else made

    def _choice(self, step: Step) -> dict[str, Any]:
        calls = _whole_calls(step.calls)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": step.text or (None if calls else ""),
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = [self._call(part, False) for part in calls]
        return {
            "index": step.choice,
            "message": message,
            "logprobs": self._logprobs(step),
            "finish_reason": step.finish_reason,
        }

    def _logprobs(self, step: Step) -> dict[str, Any] | None:
        if self._top is None:
            return None
        return chat_logprobs(self._texts, step.logprobs, self._top)

    def _call(self, part: CallPart, streams: bool) -> dict[str, Any]:
        index = {"index": part.index} if streams else {}
        if part.name is None:
            return index | {"function": {"arguments": part.arguments}}
        assert self._writer is not None
        return index | {
            "id": self._writer.form.new_id(),
            "type": "function",
            "function": {"name": part.name, "arguments": part.arguments},
        }


def _whole_calls(parts: Sequence[CallPart]) -> list[CallPart]:
    calls: list[CallPart] = []
    for part in parts:
        if part.name is not None:
            calls.append(CallPart(part.index, part.name, part.arguments))
        else:
            calls[-1].arguments += part.arguments
    return calls
