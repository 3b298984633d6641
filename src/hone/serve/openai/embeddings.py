"""POST /v1/embeddings."""

import asyncio
import base64
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    matrix = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    if not np.isfinite(lengths).all():
        raise ApiError(500, "The model's embedding is not a number; its weights are damaged.")
    units = matrix / np.where(lengths == 0, 1, lengths)
    data = [
        {"object": "embedding", "index": number, "embedding": _written(unit, body)}
        for number, unit in enumerate(units)
    ]
    await call.json(
        {
            "object": "list",
            "data": data,
            "model": adapter or info.name,
            "usage": {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt},
        }
    )


def _written(unit: NDArray[np.float32], body: EmbeddingRequest) -> Any:
    if body.encoding_format == "base64":
        return base64.b64encode(unit.astype("<f4").tobytes()).decode()
    return unit.tolist()
