"""Every example runs as its first line says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hone.models import CausalLM, ModelConfig, save_checkpoint
from hone.sql.sample import write_sample_database
from hone.text.tokenizer import Tokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    texts = ["How many customers are there?\nSQL: SELECT COUNT(*) FROM customers"] * 2
    tokenizer = Tokenizer.train(texts, 300)
    model = CausalLM(ModelConfig(tokenizer.vocab_size, 16, 32, 1, 2))
    model.initialise(0)
    path = tmp_path_factory.mktemp("model") / "checkpoint"
    save_checkpoint(path, model, tokenizer)
    return path


def run(name: str, *arguments: object) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_use_a_model(checkpoint):
    output = run("use_a_model.py", checkpoint)
    assert "1 layers, vocabulary of" in output
    assert output.count(" length 40 tokens") + output.count(" stop ") == 2
    assert "logits (1, " in output


def test_ask_a_database(checkpoint, tmp_path):
    database = write_sample_database(tmp_path / "shop.sqlite")
    output = run("ask_a_database.py", checkpoint, database, "How many customers are there?")
    assert "The query failed:" in output  # an untrained model writes no SQL


def test_serve_client(checkpoint):
    pytest.importorskip("openai")
    command = [sys.executable, "-m", "hone", "serve", str(checkpoint), "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        try:
            address = re.search(r" at (http\S+)", server.stdout.readline())[1]
            output = run("serve_client.py", f"{address}/v1")
        finally:
            server.terminate()
    assert server.returncode == 0
    assert output.startswith("model checkpoint")
    assert re.search(r"^\d{3}-\d{4} \d+ tokens$", output, re.MULTILINE)
