"""`hone serve` as a program: one tiny model, asked as clients do, killed, and stopped."""

import dataclasses
import http.client
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

import hone
from hone.cli.app import main
from hone.cli.serve import serve
from hone.engine.options import EngineOptions
from hone.models import CausalLM, ModelConfig, save_checkpoint
from hone.text.tokenizer import Tokenizer

PATIENCE = 60.0
KEY = "sk-test-key"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = Tokenizer.train(["안녕 hello 😀"] * 3, 300)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    llama = CausalLM(config, torch.float32)
    llama.initialise(seed=1)
    folder = tmp_path_factory.mktemp("serve") / "작은모델"
    save_checkpoint(folder, llama, tokenizer)
    return folder


class Server:
    """The command, and its port."""

    def __init__(self, folder, *arguments):
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hone", "serve", *map(str, arguments), "--port", "0"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"HONE_API_KEYS": KEY},
            )
        self.line = self.process.stdout.readline().strip()
        found = re.search(r"http://127\.0\.0\.1:(\d+)$", self.line)
        assert found, self.log.read_text()
        self.port = int(found[1])

    def ask(self, path, body=None, key=KEY):
        """(status, the answer as JSON or text)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        method = "GET" if body is None else "POST"
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        is_json = answer.headers["content-type"].startswith("application/json")
        return answer.status, json.loads(text) if is_json else text

    def stream(self, **body):
        """The events of a stream, as they come."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps({"stream": True} | body), headers)
        answer = connection.getresponse()
        for line in answer:
            if line.startswith(b"data: "):
                yield line[6:].strip().decode()
        connection.close()

    def gauge(self, name):
        _, text = self.ask("/metrics")
        return float(re.search(rf"^vllm:{name}{{.*}} (\S+)$", text, re.MULTILINE)[1])

    def engine(self):
        """The process id of the engine."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
            (child,) = file.read().split()
        return int(child)


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    made = Server(
        tmp_path_factory.mktemp("log"), model, "--threads", 1, "--max-output", 1500, "--no-exact"
    )
    yield made
    made.process.kill()
    made.process.wait()
    made.process.stdout.close()


def test_one_line_says_what_is_served_and_where(server):
    assert re.fullmatch(
        r"Serving 작은모델 \(float32 · cache [\d.]+ GB = [\d,]+ tokens\) at http://127.0.0.1:\d+",
        server.line,
    )
    assert server.ask("/health") == (200, {"state": "ready"})


def test_it_answers_as_generation_without_a_server_does(server, model):
    (expected,) = hone.load(model).generate("안녕", hone.SamplingParams(max_tokens=12))
    body = {"prompt": "안녕", "max_tokens": 12, "temperature": 0}
    status, answer = server.ask("/v1/completions", body)
    assert status == 200
    assert answer["choices"][0]["text"] == expected.text
    assert answer["model"] == "작은모델"
    *events, done = server.stream(**body)
    assert done == "[DONE]"
    text = "".join(json.loads(event)["choices"][0]["text"] for event in events)
    assert text == expected.text


def test_keys_of_the_environment_are_asked_for(server):
    assert server.ask("/v1/models")[0] == 200
    assert server.ask("/v1/models", key="wrong")[0] == 401
    assert KEY not in server.log.read_text()


def test_a_killed_engine_is_503_and_comes_back_by_itself(server):
    before = server.engine()
    stream = server.stream(prompt="안녕", max_tokens=1500, ignore_eos=True)
    next(stream)
    os.kill(before, signal.SIGKILL)
    *_, error, done = stream
    assert done == "[DONE]"
    assert "died" in json.loads(error)["error"]["message"]
    assert server.ask("/health")[0] == 503
    assert server.ask("/v1/completions", {"prompt": "안녕"})[0] == 503
    until(lambda: server.ask("/health")[0] == 200)
    assert server.engine() != before
    assert server.ask("/v1/completions", {"prompt": "안녕"})[0] == 200


def test_readers_that_hang_up_free_their_blocks(server):
    for number in range(20):
        stream = server.stream(prompt=f"안녕 {number}", max_tokens=1500, ignore_eos=True)
        next(stream)
        stream.close()
    until(lambda: server.gauge("num_requests_running") == 0)
    assert server.gauge("kv_cache_usage_perc") == 0


def test_nothing_of_what_was_asked_is_in_the_log(server):
    log = server.log.read_text()
    assert "POST /v1/completions 200" in log
    assert "안녕" not in log


def test_a_signal_lets_running_requests_end(server):
    stream = server.stream(prompt="안녕", max_tokens=200, ignore_eos=True)
    next(stream)
    engine = server.engine()
    server.process.terminate()
    *events, done = stream
    assert done == "[DONE]"
    assert json.loads(events[-1])["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(PATIENCE) == 0
    assert not os.path.exists(f"/proc/{engine}")


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run `hone serve ...` that does not start: (exit code, its one sentence)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hone", "serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, capsys.readouterr().err

    return run


@pytest.mark.smoke
def test_what_cannot_be_served_is_told_in_a_sentence_before_anything_is_loaded(
    refused, model, tmp_path
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "keys").write_text("kim:sk-secret")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, code, words in (
            ((tmp_path / "empty",), 1, "is neither a checkpoint"),
            ((tmp_path / "absent",), 1, "does not exist"),
            ((model, "--port", port), 2, f"Port {port} of 127.0.0.1 is taken"),
            ((model, "--api-keys", tmp_path / "keys"), 2, "line 1: a colon without a space"),
            ((model, "--api-keys", tmp_path / "no-keys"), 2, "Cannot read"),
            ((model, "--db", tmp_path / "no.db"), 2, "there is no such file"),
            ((model, "--adapter", "kim"), 2, "write it as NAME=PATH"),
            ((model, "--adapter", "a=x", "--adapter", "a=y"), 2, "names 'a' twice"),
            ((model, "--cache-memory", "lots"), 2, '--cache-memory is "lots"'),
            ((model, "--max-prompt", "0"), 2, "prompt_tokens is 0"),
            ((model, "--block-size", "0"), 2, "block_size is 0"),
        ):
            found, message = refused(*arguments)
            assert (found, "Traceback" in message) == (code, False), message
            assert words in message.replace("\n", " "), message
            assert "secret" not in message


@pytest.mark.slow
def test_a_model_that_turns_out_broken_ends_the_command(refused, model, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in model.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"nothing")
    code, message = refused(broken, "--port", 0)
    assert code == 1
    assert "model.safetensors" in message
    assert "Traceback" not in message


def test_its_defaults_are_the_engines_own():
    given = inspect.signature(serve).parameters
    for field in dataclasses.fields(EngineOptions):
        if field.name in given:
            assert given[field.name].default == field.default, field.name


def test_the_process_that_speaks_http_does_without_torch():
    program = (
        "import sys; import hone.cli.app, hone.serve.app, hone.serve.client, hone.serve.lifecycle,"
        "hone.serve.places, hone.plan.devices; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
