"""What a server tells of itself before it is measured."""

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any

from hone.core.errors import HoneError, RequestError
from hone.serve.bench_client import Address, RequestFailedError, ask
from hone.serve.bench_stream import Answer, Api, Target, send, whole
from hone.serve.bench_workload import Ask, Words, words

_PROBES = (10, 40)  # words of the requests that tell how many tokens a word has


@dataclass(frozen=True, slots=True)
class Found:
    """What a server told of itself before the load.

    Attributes:
        words: how many tokens words have for it.
        context: the longest prompt and answer together, where it tells.
    """

    target: Target
    words: Words
    context: int | None


async def explore(
    address: Address, model: str | None, api: Api, timeout: float, fields: dict[str, Any]
) -> Found:
    """Find the server's model, warm it up, and see what it can be asked.

    Raises:
        HoneError: nobody is there, or no request gets an answer.
        RequestError: there is no such model.
    """
    name, context = await _model(address, model)
    target = Target(address, name, api, True, timeout, fields)
    try:
        sizes = [await _prompt_tokens(target, count) for count in _PROBES]
        stream = Answer(Ask(_text(_PROBES[0]), 4), 0.0)
        for usage in (True, False):  # some servers refuse to be asked for usage in a stream
            target = Target(address, name, api, usage, timeout, fields)
            stream = Answer(Ask(_text(_PROBES[0]), 4), 0.0)
            await send(target, stream, time.perf_counter())
            if stream.trouble not in ("HTTP 400", "HTTP 422"):
                break
        if stream.trouble:
            raise RequestFailedError(stream.trouble, stream.detail)
    except RequestFailedError as error:
        raise _unusable(address, error) from error
    few, many = sizes
    each = (many - few) / (_PROBES[1] - _PROBES[0])
    size = Words(each, few - each * _PROBES[0]) if each > 0 else Words()
    return Found(target, size, context)


def _text(count: int) -> str:
    return words(count, random.Random(count))


async def _prompt_tokens(target: Target, count: int) -> int:
    answer = await whole(target, Ask(_text(count), 1))
    return int((answer.get("usage") or {}).get("prompt_tokens") or 0)


async def _model(address: Address, model: str | None) -> tuple[str, int | None]:
    """The name of the model, and its context where the server tells."""
    try:
        async with asyncio.timeout(30):
            answer = await ask(address, "GET", "/models")
        known = {str(entry["id"]): entry for entry in answer["data"]}
    except TimeoutError as error:
        raise HoneError(f"{address.base} does not answer within 30 s.") from error
    except RequestFailedError as error:
        if model is not None and error.kind in ("HTTP 404", "HTTP 405"):
            return model, None  # a server without a list of models
        raise _unusable(address, error) from error
    except (KeyError, TypeError) as error:
        raise HoneError(f"{address.base}/models is no list of models.") from error
    if model is None and not known:
        raise HoneError(f"{address.base} serves no model.")
    name = model if model is not None else next(iter(known))
    if name not in known:
        raise RequestError(
            f"{address.base} has no model {name!r}; it serves {', '.join(known) or 'none'}."
        )
    length = known[name].get("max_model_len")
    return name, length if isinstance(length, int) else None


def _unusable(address: Address, error: RequestFailedError) -> HoneError:
    if error.kind == "no connection":
        return HoneError(
            f"Nothing answers at {address.base}: {error.detail}. Start a server there, for example "
            "with `hone serve MODEL`, or give the address of one that runs."
        )
    told = f": {error.detail}" if error.detail else ""
    if error.kind in ("HTTP 401", "HTTP 403"):
        return HoneError(f"{address.base} wants a key ({error.kind}); put it into OPENAI_API_KEY.")
    return HoneError(f"{address.base} cannot be measured ({error.kind}){told}.")
