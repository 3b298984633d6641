"""The bodies of requests.

null is the same as a field that is not there, as OpenAI's clients send it. Fields that are not
listed are ignored; but one that would change the answer, and that hone does not do, is refused by
its name (``refused``). Lists are read up to the first error (``fail_fast``), so that a body of a
million wrong items has one error, and not a million.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
)
from pydantic_core import from_json

from hone.engine.params import MOST_LOGPROBS
from hone.serve.openai.errors import ApiError, from_validation, unsupported

_Token = Annotated[int, Field(ge=0, lt=2**31)]
_Stop = Annotated[str, Field(min_length=1, max_length=1024)]
_Count = Annotated[int, Field(ge=1, lt=2**31)]
_MOST_PROMPTS = 2048  # OpenAI's bound of the inputs of one call
# A body is read in one go, and meanwhile nobody else is answered: what takes time in it is bounded.
_MOST_MESSAGES = 10_000
_MOST_PARTS = 200_000


def _kind(prompts: Any) -> str:
    """Which of the four forms is meant, so that an error is about that one."""
    if not isinstance(prompts, list):
        return "text"
    first = prompts[0] if prompts else ""
    return "several" if isinstance(first, list) else "texts" if isinstance(first, str) else "ids"


def _biases(given: Mapping[str, Any]) -> dict[int, float]:
    """``logit_bias`` with its keys as numbers, as far as the first that is wrong."""
    for token, bias in given.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise ValueError(f"{token!r:.40} is no token; the keys are token ids")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise ValueError(f"the bias of token {token} should be a number")
    return {int(token): bias for token, bias in given.items()}


# One text or several; the ids of one or of several.
Prompts = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[
        list[str], Field(fail_fast=True, min_length=1, max_length=_MOST_PROMPTS), Tag("texts")
    ]
    | Annotated[list[_Token], Field(fail_fast=True, min_length=1), Tag("ids")]
    | Annotated[
        list[Annotated[list[_Token], Field(fail_fast=True, min_length=1)]],
        Field(fail_fast=True, min_length=1, max_length=_MOST_PROMPTS),
        Tag("several"),
    ],
    Discriminator(_kind),
]

BodyT = TypeVar("BodyT", bound="Body")


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Body(_Part):
    """A body; ``refused`` are fields that hone does not do, and the values that ask for nothing."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    def check_refused(self) -> None:
        """Raises :class:`ApiError` 400 for a field that would change the answer."""
        for name, neutral in self.refused.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and value not in neutral:
                raise unsupported(name, "leave it out")


def read_body(kind: type[BodyT], body: bytes) -> BodyT:
    """``body`` as a ``kind``.

    Raises:
        ApiError: 400, it is not JSON, or a field is missing, wrong or not supported; 413, it has
            too many parts.
    """
    # Texts have such signs too, but one of so many is longer than what any model reads.
    if sum(map(body.count, (b"[", b"{", b":"))) > _MOST_PARTS:
        message = f"The body has over {_MOST_PARTS:,} lists, objects and fields; send fewer."
        raise ApiError(413, message, None, "too_many_parts")
    try:
        made = kind.model_validate_json(body)
    except ValidationError as error:
        try:
            data = from_json(body)
        except ValueError:
            data = None
        raise from_validation(error, data) from error
    made.check_refused()
    return made


class StreamOptions(_Part):
    """How a stream is written."""

    include_usage: bool | None = None


class JsonSchema(_Part):
    """The schema of an answer."""

    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Part):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(_Part):
    """vLLM's name for what an output must be; one of the fields is set."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(fail_fast=True, min_length=1)] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Sampled(Body):
    """What chat and plain completions have in common; vLLM's names beside OpenAI's."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: _Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: _Stop | Annotated[list[_Stop], Field(fail_fast=True, max_length=64)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[str, Any], AfterValidator(_biases)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: Annotated[list[_Token], Field(fail_fast=True, max_length=1024)] | None = None
    ignore_eos: bool | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(fail_fast=True, min_length=1)] | None = None
    guided_grammar: str | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "use_beam_search": (False,),
        "length_penalty": (1, 1.0),
        "bad_words": ([],),
        "allowed_token_ids": (),
        "prompt_logprobs": (),
        "truncate_prompt_tokens": (),
        "logits_processors": ([],),
        "include_stop_str_in_output": (False,),
        "skip_special_tokens": (True,),
        "return_tokens_as_token_ids": (False,),
    }


class Function(_Part):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Part):
    """OpenAI's wrapping of a function."""

    type: Literal["function"]
    function: Function


class NamedFunction(_Part):
    """The name in a tool_choice."""

    name: str


class NamedTool(_Part):
    """A tool_choice that names a function."""

    type: Literal["function"]
    function: NamedFunction


class Message(_Part):
    """One message; ``hone.text.messages`` says which forms of it are read."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None


Messages = Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=_MOST_MESSAGES)]


class ChatRequest(Sampled):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **Sampled.refused,
        "audio": (),
        "modalities": (["text"], []),
        "functions": ([],),
        "function_call": ("none",),
        "web_search_options": (),
        "store": (False,),
        "moderation": (),
        "verbosity": ("medium",),
        "echo": (False,),
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
        "add_special_tokens": (False,),
        "documents": ([],),
        "chat_template": (),
        "mm_processor_kwargs": ({},),
    }


class CompletionRequest(Sampled):
    """POST /v1/completions."""

    prompt: Prompts
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    add_special_tokens: bool | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {**Sampled.refused, "prompt_embeds": ()}


class EmbeddingRequest(Body):
    """POST /v1/embeddings."""

    model: str | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: _Count | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "truncate_prompt_tokens": (),
        "normalize": (True,),
    }


class TokenizeRequest(Body):
    """POST /tokenize: a text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
        "chat_template": (),
    }


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[_Token], Field(fail_fast=True)]


class QuestionRequest(Body):
    """POST /api/database/ask."""

    question: Annotated[str, Field(min_length=1, max_length=10_000)]
    model: str | None = None
    stream: bool | None = None


class QueryRequest(Body):
    """POST /api/database/run."""

    sql: Annotated[str, Field(min_length=1, max_length=100_000)]


def wrong(param: str, message: str) -> ApiError:
    """A field whose value cannot be used."""
    return ApiError(400, message, param, "invalid_value")
