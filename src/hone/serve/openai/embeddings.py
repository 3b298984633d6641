"""POST /v1/embeddings."""

import asyncio
import base64
import math
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import numpy as np

from hone.engine.request import Request
from hone.serve.openai.errors import ApiError
from hone.serve.openai.generation import Usage, aborted
from hone.serve.openai.http import Call
from hone.serve.openai.schemas import EmbeddingRequest, wrong
from hone.serve.openai.service import Service

_AT_ONCE = 32


async def embeddings(service: Service, call: Call, body: EmbeddingRequest) -> None:
    """Embeddings of length 1, as OpenAI's are, in the order of the inputs."""
    info = service.ready()
    if not info.embeds:
        raise ApiError(400, "This model computes no embeddings.", "model")
    adapter = service.adapter(info, body.model)
    prompts = await service.prompts(body.input, "input", info, special=True)
    # Nothing is generated, so that there may be one token more than models which write leave room.
    longest = None if info.longest_prompt is None else info.longest_prompt + info.generates
    for prompt in prompts:
        service.bounds.check_prompt(len(prompt), longest)
    usage = Usage(prompt=sum(map(len, prompts)))
    identity = f"embd-{uuid.uuid4().hex}"
    # Those of one call go in one after the other, and take no more than their share of the queue.
    gate = asyncio.Semaphore(_AT_ONCE)

    async def embed(number: int, prompt: Sequence[int]) -> list[float]:
        request = Request(
            f"{identity}-{number}",
            tuple(prompt),
            priority=body.priority or 0,
            owner=call.owner,
            adapter=adapter,
            embed=True,
        )
        async with gate, aclosing(service.client.generate(request)) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                if delta.embedding is not None:
                    return delta.embedding
        raise aborted()

    with service.limiter.admit(call.owner, usage.prompt, min(len(prompts), _AT_ONCE)):
        tasks = [asyncio.create_task(embed(*item)) for item in enumerate(prompts)]
        try:
            vectors = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    if body.dimensions is not None and body.dimensions != len(vectors[0]):
        raise wrong(
            "dimensions",
            f"dimensions is {body.dimensions}; this model's embeddings have {len(vectors[0])}, and "
            "a part of one means nothing.",
        )
    if not np.isfinite(vectors).all():
        raise ApiError(500, "The model's embedding is not a number; its weights are damaged.")
    data = [
        {"object": "embedding", "index": number, "embedding": _written(vector, body)}
        for number, vector in enumerate(vectors)
    ]
    await call.json(
        {
            "object": "list",
            "data": data,
            "model": adapter or info.name,
            "usage": {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt},
        }
    )


def _written(vector: Sequence[float], body: EmbeddingRequest) -> Any:
    length = math.sqrt(sum(value * value for value in vector)) or 1.0
    unit = np.asarray(vector, np.float32) / np.float32(length)
    if body.encoding_format == "base64":
        return base64.b64encode(unit.astype("<f4").tobytes()).decode()
    return unit.tolist()
