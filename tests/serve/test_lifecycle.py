"""The server's process: its port, signals, draining, and an engine that fails under it."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine_processes import HERE

from hone.core.errors import ConfigError
from hone.serve import lifecycle


class Server:
    """The program, and its port."""

    def __init__(self, drain, arguments):
        self.process = subprocess.Popen(
            [sys.executable, Path(HERE) / "stub_server.py", "0", json.dumps(arguments), str(drain)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": HERE},
        )
        self.port = int(self.line().rpartition(":")[2])

    def line(self):
        return self.process.stdout.readline().strip()

    def ask(self, path="/"):
        """(status, body), the body as far as it came."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        try:
            return answer.status, answer.read().decode()
        except http.client.IncompleteRead as error:
            return answer.status, error.partial.decode()
        finally:
            connection.close()


@contextmanager
def started(drain=10.0, **arguments):
    server = Server(drain, arguments)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        server.process.stdout.close()


class Asking(threading.Thread):
    """A request that runs beside the test."""

    def __init__(self, server, path):
        super().__init__(daemon=True)
        self.server, self.path, self.answer = server, path, None
        self.start()
        time.sleep(0.2)

    def run(self):
        try:
            self.answer = self.server.ask(self.path)
        except (OSError, http.client.HTTPException) as error:
            self.answer = error

    def result(self):
        self.join(10)
        return self.answer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_what_runs_end(number):
    with started(delay=0.01) as server:
        assert server.line() == "ready echo"
        assert server.ask() == (200, "ready")
        asking = Asking(server, "/?80")
        server.process.send_signal(number)
        time.sleep(0.05)
        assert server.ask() == (503, "stopping")
        status, body = server.ask("/?5")
        assert status == 503
        assert "stopping" in body
        assert asking.result() == (200, "1\n2\n3\n" * 26 + "1\n2\n")
        assert server.process.wait(5) == 0


def test_a_request_that_takes_too_long_does_not_hold_up_the_end():
    with started(drain=0.3, delay=0.01) as server:
        server.line()
        asking = Asking(server, "/?100000")
        start = time.monotonic()
        server.process.terminate()
        assert server.process.wait(5) == 0
        assert time.monotonic() - start < 3
        assert asking.result() is not None


def test_the_second_signal_ends_at_once():
    with started(drain=60.0, delay=0.01) as server:
        server.line()
        Asking(server, "/?100000")
        server.process.terminate()
        time.sleep(0.1)
        server.process.terminate()  # so soon, it is the same signal
        time.sleep(0.4)
        assert server.process.poll() is None
        start = time.monotonic()
        server.process.terminate()
        assert server.process.wait(5) == 0
        assert time.monotonic() - start < 2


def test_it_can_be_stopped_while_the_model_is_loaded():
    with started(loading=60.0) as server:
        assert server.ask() == (503, "loading")
        server.process.terminate()
        assert server.process.wait(5) == 0


def test_an_engine_that_cannot_be_loaded_ends_the_server_with_its_reason():
    with started(fail="config.json is missing.") as server:
        assert server.line() == "error config.json is missing."
        assert server.process.wait(5) == 1


def test_a_port_that_is_taken_or_an_address_of_nobody():
    with lifecycle.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert lifecycle.url(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConfigError, match=f"Port {port} of 127.0.0.1 is taken"):
            lifecycle.listen("127.0.0.1", port)
    with lifecycle.listen("127.0.0.1", port):
        pass
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1 is no address of this machine"):
        lifecycle.listen("192.0.2.1", 0)
    with pytest.raises(ConfigError, match="There is no host"):
        lifecycle.listen("no host", 0)
