"""What the server tells of its model and its tokens: models, tokenize, detokenize, info."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hone.serve.info import ModelInfo
from hone.serve.openai.errors import ApiError
from hone.serve.openai.http import Call
from hone.serve.openai.schemas import DetokenizeRequest, TokenizeRequest, wrong
from hone.serve.openai.service import Service


async def models(service: Service, call: Call) -> None:
    """GET /v1/models: the model first, then its adapters."""
    info = service.ready()
    data = [_model(info, name) for name in (info.name, *info.adapters)]
    await call.json({"object": "list", "data": data})


async def model(service: Service, call: Call) -> None:
    """GET /v1/models/{id}."""
    info = service.ready()
    name = call.scope["path_params"]["model"]
    service.adapter(info, name)
    await call.json(_model(info, name))


def _model(info: ModelInfo, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": info.created,
        "owned_by": "hone",
        "root": info.name,
        "parent": None if name == info.name else info.name,
        "max_model_len": info.context,
    }


async def tokenize(service: Service, call: Call, body: TokenizeRequest) -> None:
    """POST /tokenize, in vLLM's form."""
    info = service.ready()
    service.adapter(info, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise wrong("prompt", "Give either prompt or messages.")
    if body.messages is not None:
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()] or None
        ids = await service.conversation(body.messages, tools, body.chat_template_kwargs or {})
    else:
        ids = await service.encode(body.prompt or "", body.add_special_tokens is not False)
    made: dict[str, Any] = {"count": len(ids), "max_model_len": info.context, "tokens": ids}
    spelled = None
    if body.return_token_strs:
        spelled = [service.tokenizer.id_to_token(index) for index in ids]
    await call.json(made | {"token_strs": spelled})


async def detokenize(service: Service, call: Call, body: DetokenizeRequest) -> None:
    """POST /detokenize, in vLLM's form."""
    info = service.ready()
    service.adapter(info, body.model)
    service.check_ids(body.tokens, "tokens", info)
    text = service.tokenizer.decode(body.tokens, skip_special_tokens=False)
    await call.json({"prompt": text})


async def health(service: Service, call: Call) -> None:
    """GET /health: 200 when requests are taken, 503 else."""
    state = service.client.state
    if state == "ready":
        await call.json({"state": state})
        return
    error = ApiError(503, service.client.error or f"The server is {state}.", None, state, 5)
    message = {"message": service.client.error} if service.client.error else {}
    await call.json({"state": state} | message | error.body, 503, error.headers)


async def info(service: Service, call: Call, database: bool) -> None:
    """GET /api/info: what the playground shows of the model."""
    known = service.ready()
    await call.json(
        {
            "name": known.name,
            "version": _version(),
            "context": known.context,
            "vocabulary": known.vocabulary,
            "chat": known.generates and service.chats,
            "tools": service.calls is not None,
            "generates": known.generates,
            "embeds": known.embeds,
            "database": database,
            "adapters": list(known.adapters),
            "quantization": known.quantization,
            "dtype": known.dtype,
            "speculation": known.speculation,
            "defaults": dict(service.settings.sampling),
        }
    )


def _version() -> str:
    try:
        return version("hone-llm")
    except PackageNotFoundError:
        return ""
