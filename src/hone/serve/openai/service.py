"""What the endpoints share: the model, its text side, the bounds, and how a prompt is read."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from hone.core.errors import HoneError, RequestError
from hone.engine.params import Grammar, SamplingParams
from hone.engine.request import Delta, EngineStats, Request
from hone.serve.info import ModelInfo
from hone.serve.keys import KeyRing
from hone.serve.limits import Bounds, Limiter
from hone.serve.metrics import Metrics
from hone.serve.openai.errors import ApiError, unsupported
from hone.serve.openai.grammars import GrammarCheck
from hone.serve.openai.logprobs import TokenTexts
from hone.serve.openai.schemas import Message, Sampled
from hone.serve.openai.tools import CallWriter, find_format
from hone.text.conversation import Conversations
from hone.text.messages import canonical_messages
from hone.text.tokenizer import Tokenizer

# Shorter texts are encoded at once; longer ones in a thread, where they delay nobody.
_LONG_TEXT = 4_000
# The same of messages; tools may be of any size.
_MANY_MESSAGES = 64
_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class Client(Protocol):
    """What the endpoints need of :class:`hone.serve.client.EngineClient`."""

    @property
    def state(self) -> str:
        """One of loading, ready, failed, stopping."""

    @property
    def error(self) -> str:
        """Why it failed."""

    @property
    def info(self) -> ModelInfo | None:
        """The model; None until it was loaded."""

    def stats(self) -> EngineStats | None:
        """How the engine stands."""

    def generate(self, request: Request) -> AsyncIterator[Delta]:
        """The deltas of a request; closing it takes the request back."""

    def end_output(self, request_id: str, index: int) -> None:
        """Take back one output of a request."""


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """What holds where a request says nothing, from a checkpoint's ``generation_config.json``.

    As vLLM does it: OpenAI's temperature of 1, unless the file has other numbers. Beyond that, a
    file that says ``do_sample: false`` means greedy, as it does in transformers.
    """
    found = {
        name: value
        for name in _DEFAULTS
        if isinstance(value := generation_config.get(name), int | float)
        and not isinstance(value, bool)
    }
    if generation_config.get("do_sample") is False:
        return {"repetition_penalty": found.get("repetition_penalty", 1.0), "temperature": 0.0}
    return {"temperature": 1.0} | found


@dataclass(frozen=True, slots=True)
class AppSettings:
    """How a server behaves.

    Attributes:
        keys: who may ask; an empty ring lets everybody.
        bounds: the most that is let in.
        cors_origins: web pages of these origins may ask; "*" means of any.
        log_content: what is asked and answered is written to the log.
        sampling: see :func:`sampling_defaults`.
    """

    keys: KeyRing = field(default_factory=KeyRing)
    bounds: Bounds = field(default_factory=Bounds)
    cors_origins: tuple[str, ...] = ()
    log_content: bool = False
    sampling: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 1.0})


class Service:
    """One model that is served."""

    def __init__(
        self,
        settings: AppSettings,
        client: Client,
        tokenizer: Tokenizer,
        conversations: Conversations,
    ) -> None:
        self.settings, self.client = settings, client
        self.tokenizer, self.conversations = tokenizer, conversations
        self.bounds, self.limiter = settings.bounds, Limiter(settings.bounds)
        self.metrics = Metrics(client.stats, lambda: client.info.name if client.info else "")
        self.texts = TokenTexts(tokenizer)
        self._check_grammar = GrammarCheck()

    @cached_property
    def calls(self) -> CallWriter | None:
        """How the model writes calls of functions; None when it cannot."""
        form = find_format(self.conversations)
        return None if form is None else CallWriter(form, self.tokenizer)

    @cached_property
    def chats(self) -> bool:
        """Whether there is a way to write conversations."""
        try:
            self.conversations.source()
        except HoneError:
            return False
        return True

    def ready(self) -> ModelInfo:
        """The model; raises :class:`ApiError` 503 while it is not there."""
        info, state = self.client.info, self.client.state
        if state == "ready" and info is not None:
            return info
        reasons = {
            "loading": ApiError(503, "The model is being loaded.", None, "engine_loading", 5),
            "stopping": ApiError(503, "The server is stopping.", None, "server_stopping", 5),
        }
        failed = ApiError(503, f"The engine failed: {self.client.error}", None, "engine_failed")
        raise reasons.get(state, failed)

    def writer(self) -> ModelInfo:
        """The model, where it writes; raises :class:`ApiError` 400 for one that does not."""
        info = self.ready()
        if not info.generates:
            raise ApiError(400, "This model writes no texts; ask it for embeddings.", "model")
        return info

    def adapter(self, info: ModelInfo, model: str | None) -> str | None:
        """The adapter that a request's ``model`` chooses; None for the model itself.

        Raises:
            ApiError: 404, there is no such model.
        """
        if model is None or model == info.name:
            return None
        if model in info.adapters:
            return model
        known = ", ".join([info.name, *info.adapters])
        message = f"There is no model {model!r:.100} here; choose one of {known}."
        raise ApiError(404, message, "model", "model_not_found")

    async def encode(self, text: str, special: bool = True) -> list[int]:
        """The ids of a text."""
        return (await self.encode_all([text], special))[0]

    async def encode_all(self, texts: list[str], special: bool = True) -> list[list[int]]:
        """The ids of each text."""
        if sum(map(len, texts)) < _LONG_TEXT:
            return [self.tokenizer.encode(text, add_special_tokens=special) for text in texts]
        return await asyncio.to_thread(self.tokenizer.encode_batch, texts, special)

    async def prompts(self, given: Any, param: str, info: ModelInfo, special: bool) -> list[Any]:
        """The ids of each prompt of ``prompt`` or ``input``: texts or ids, one or several.

        Raises:
            ApiError: 400, one is empty or has ids that the model does not know.
        """
        single = isinstance(given, str) or isinstance(given[0], int)
        found = [given] if single else list(given)
        texts = isinstance(found[0], str)
        if texts:
            found = await self.encode_all(found, special)
        for number, ids in enumerate(found):
            where = param if single else f"{param}[{number}]"
            if not ids and self.tokenizer.bos_id is not None and texts:
                found[number] = ids = [self.tokenizer.bos_id]
            if not ids:
                raise ApiError(400, f"{where} is empty; write something.", where, "invalid_value")
            self.check_ids(ids, where, info)
        return found

    async def prepare(self, params: SamplingParams) -> None:
        """Do what takes long before a request is sent: check its grammar, read the vocabulary.

        Raises:
            RequestError: the grammar cannot be used.
            ApiError: 429, too many others wait to be checked.
        """
        if params.logprobs is not None:
            await asyncio.to_thread(self.texts.read)
        await self._check_grammar(params.grammar)

    def check_ids(self, ids: Sequence[int], param: str, info: ModelInfo) -> None:
        """Raises :class:`ApiError` 400 for ids that the model does not know."""
        if (largest := max(ids, default=0)) >= info.vocabulary:
            raise ApiError(
                400,
                f"{param} holds the token {largest}; the model's last one is "
                f"{info.vocabulary - 1}.",
                param,
                "invalid_value",
            )

    async def conversation(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> list[int]:
        """The ids of a conversation up to where the answer begins.

        Raises:
            ApiError: 400, a message cannot be read; its place is the error's ``param``.
            RequestError: the template refuses it.
        """
        for name in variables:
            if name in ("messages", "tools", "add_generation_prompt", "documents"):
                raise RequestError(f"chat_template_kwargs must not hold {name!r}.")

        def write() -> str:
            made = [_canonical(number, message) for number, message in enumerate(messages)]
            return self.conversations.prompt(made, tools, **variables)

        large = tools or len(messages) > _MANY_MESSAGES
        text = await asyncio.to_thread(write) if large else write()
        ids = await self.encode(text, special=False)
        if not ids:
            raise RequestError("The chat template made no prompt of these messages.")
        return ids

    def params(
        self,
        body: Sampled,
        budget: int | None,
        info: ModelInfo,
        logprobs: int | None,
        grammar: Grammar | None,
    ) -> SamplingParams:
        """How a request is continued, by its own word or else by the settings.

        Raises:
            RequestError: a value is out of range.
        """
        given = {
            name: value
            for name in (
                "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "n", "stop",
                "presence_penalty", "frequency_penalty", "logit_bias", "min_tokens",
                "stop_token_ids", "ignore_eos",
            )
            if (value := getattr(body, name)) is not None
        }  # fmt: skip
        self.check_ids(list(given.get("logit_bias", ())), "logit_bias", info)
        if body.seed is not None:
            given["seed"] = body.seed % 2**63
        return SamplingParams(
            **(dict(self.settings.sampling) | given),
            max_tokens=budget,
            logprobs=logprobs,
            grammar=grammar,
        )


def _canonical(number: int, message: Message) -> dict[str, Any]:
    """A message as templates read it; ``number`` is its place in the request."""
    where = f"messages[{number}]"
    if isinstance(message.content, list):
        for place, part in enumerate(message.content):
            if part.get("type", "text") != "text":
                raise unsupported(
                    f"{where}.content[{place}]",
                    f"it is of the type {part.get('type')!r:.40}, and only text can be read",
                )
    plain = message.model_dump(exclude_none=True)
    # OpenAI's newer name of the same.
    plain["role"] = "system" if message.role == "developer" else message.role
    try:
        return canonical_messages([plain])[0]
    except RequestError as error:
        text = str(error).removeprefix("Message 1").lstrip(": ")
        raise ApiError(400, f"{where}: {text}", where, "invalid_value") from error
