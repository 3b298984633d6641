"""The database pane of the playground: GET /api/database, POST /api/database/ask and /run."""

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

from hone.engine.params import SamplingParams
from hone.engine.request import Request
from hone.serve.database import DatabasePane
from hone.serve.openai.errors import ApiError
from hone.serve.openai.generation import Generation
from hone.serve.openai.http import Call
from hone.serve.openai.schemas import QueryRequest, QuestionRequest
from hone.serve.openai.service import Service

# What is not a whole query may still run, and would answer another question.
_CUT_OFF: dict[str, Any] = {
    "columns": [],
    "rows": [],
    "truncated": False,
    "error": "The query was cut off before its end, and was not run; ask for less at once.",
    "seconds": 0.0,
}


_AT_ONCE = 4


class Panes:
    """The endpoints of one database; without one they answer 404.

    Queries take up to seconds, and have threads of their own, so that no text waits behind them.
    """

    def __init__(self, pane: DatabasePane | None) -> None:
        self._pane = pane
        self._queries = ThreadPoolExecutor(_AT_ONCE, "database")

    async def schema(self, _: Service, call: Call) -> None:
        """GET /api/database."""
        await call.json(await asyncio.to_thread(self._there().schema))

    async def ask(self, service: Service, call: Call, body: QuestionRequest) -> None:
        """POST /api/database/ask: a question to SQL and its rows.

        With ``stream``: ``{"sql": piece}`` while the model writes, then the whole answer.
        """
        pane = self._there()
        info = service.writer()
        adapter = service.adapter(info, body.model)
        question = await asyncio.to_thread(pane.ask, body.question)
        prompt = await service.encode(question.prompt)
        service.bounds.check_prompt(len(prompt), info.longest_prompt)
        budget = min(question.max_tokens, service.bounds.output_tokens or question.max_tokens)
        params = SamplingParams(max_tokens=budget, grammar=question.grammar)
        request = Request(f"ask-{uuid.uuid4().hex}", tuple(prompt), params, 0, call.owner, adapter)
        output, whole = "", True
        with service.limiter.admit(call.owner, len(prompt)) as held:
            generation = Generation(service, [request], held, None)
            async with aclosing(generation.steps()) as steps:
                async for step in steps:
                    output += step.text
                    whole = whole and step.finish_reason != "length"
                    if body.stream and step.text:
                        await call.event({"delta": step.text})
            sql = await asyncio.to_thread(pane.query, question, output)
            answer = await self._run(pane, sql) if whole else {"sql": sql} | _CUT_OFF
        if body.stream:
            await call.event(answer)
            await call.done()
        else:
            await call.json(answer)

    async def run(self, service: Service, call: Call, body: QueryRequest) -> None:
        """POST /api/database/run: a query that somebody wrote, for reading only."""
        pane = self._there()
        with service.limiter.admit(call.owner):
            await call.json(await self._run(pane, body.sql))

    async def _run(self, pane: DatabasePane, sql: str) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        return {"sql": sql} | await loop.run_in_executor(self._queries, pane.run, sql)

    def _there(self) -> DatabasePane:
        if self._pane is None:
            raise ApiError(404, "No database was given to this server.", None, "no_database")
        return self._pane
