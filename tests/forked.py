"""Processes of one run on this machine, forked: torch is imported once for all of them.

For programs of their own: threads do not survive a fork.
"""

import json
import os
import socket
import tempfile
import time
import traceback
from pathlib import Path

from hone.parallel import join_processes


def in_processes(count, work, patience=60.0):
    """``work(processes)`` of every process: what it returned, or the error that it raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(count)]
        children = []
        for rank, file in enumerate(files):
            child = os.fork()
            if child == 0:
                _be(rank, count, port, work, file)
            children.append(child)
        _wait(children, patience)
        # A process that was killed leaves no file.
        return [json.loads(file.read_text()) if file.exists() else None for file in files]


def _be(rank, count, port, work, file):
    environment = {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        with join_processes(environment) as processes:
            try:
                result = {"value": work(processes)}
            except BaseException as error:  # noqa: BLE001 - to be looked at
                result = {"error": type(error).__name__, "message": str(error)}
            result["ended"] = time.monotonic()
            file.with_suffix(".part").write_text(json.dumps(result))
            file.with_suffix(".part").rename(file)
    except BaseException:  # noqa: BLE001 - it must not go on as the parent
        traceback.print_exc()
    os._exit(0)


def _wait(children, patience):
    end = time.monotonic() + patience
    while children and time.monotonic() < end:
        children = [child for child in children if os.waitpid(child, os.WNOHANG) == (0, 0)]
        time.sleep(0.005)
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
    if children:
        raise SystemExit(f"{len(children)} processes did not end in {patience} s")
