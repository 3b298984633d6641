"""A server of one path without the protocol: tokens of the echo engine, a line for each.

Started as a program: PORT, then what the echo engine is called with, as JSON. It prints the port.
"""

import asyncio
import json
import sys
from contextlib import aclosing

from engine_processes import QUICK, echo_settings, request

from hone.core.errors import HoneError
from hone.serve import lifecycle
from hone.serve.client import EngineClient


def stub_app(client):
    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        await receive()
        tokens = int(scope["query_string"] or 0)

        async def start(status):
            await send({"type": "http.response.start", "status": status})

        if not tokens:
            await start(200 if client.state == "ready" else 503)
            await send({"type": "http.response.body", "body": client.state.encode()})
            return
        try:
            name = str(id(scope))
            async with aclosing(client.generate(request(name, (1, 2, 3), tokens))) as deltas:
                first = await anext(deltas)
                await start(200)
                await _write(send, first)
                async for delta in deltas:
                    await _write(send, delta)
        except HoneError as error:
            await start(503)
            await send({"type": "http.response.body", "body": str(error).encode()})
            return
        await send({"type": "http.response.body"})

    return app


async def _write(send, delta):
    body = "".join(f"{token}\n" for token in delta.tokens).encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})


def main():
    port, arguments, drain = int(sys.argv[1]), json.loads(sys.argv[2]), float(sys.argv[3])
    client = EngineClient(echo_settings(**arguments), QUICK)
    listener = lifecycle.listen("127.0.0.1", port)
    print(lifecycle.url(listener), flush=True)

    def ready(info):
        print("ready", info.name, flush=True)

    try:
        asyncio.run(lifecycle.serve(stub_app(client), client, listener, drain, ready))
    except HoneError as error:
        print("error", error, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
