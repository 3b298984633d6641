"""What tests of the engine's process share: a client of an echo engine, in an event loop."""

import asyncio
import os
from contextlib import asynccontextmanager
from pathlib import Path

from hone.engine.params import SamplingParams
from hone.engine.request import Request
from hone.serve.client import EngineClient, Patience
from hone.serve.wire import Settings

HERE = str(Path(__file__).parent)
QUICK = Patience(hang=0.8, pause=0.01, settled=60.0, quick_deaths=3, ending=1.0)


def echo_settings(**arguments):
    """Settings that load an echo engine; its file is made importable for the process."""
    path = os.environ.get("PYTHONPATH", "")
    if HERE not in path.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HERE, path]))
    return Settings("echo_engine:load", arguments)


@asynccontextmanager
async def running(patience=QUICK, settings=None, **arguments):
    """A client whose engine is ready."""
    client = EngineClient(settings or echo_settings(**arguments), patience)
    client.start()
    try:
        await client.ready()
        yield client
    finally:
        await client.stop()


def request(name, prompt=(1, 2, 3), tokens=5, **values):
    """A request of so many tokens; ``n`` and the like go to its parameters."""
    embed = values.pop("embed", False)
    return Request(name, tuple(prompt), SamplingParams(max_tokens=tokens, **values), embed=embed)


async def collect(client, wanted):
    """All tokens of a request, by output."""
    outputs = {}
    async for delta in client.generate(wanted):
        outputs.setdefault(delta.index, []).extend(delta.tokens)
    return outputs


async def until(condition, seconds=5.0):
    """Wait until something is true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
