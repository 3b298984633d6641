"""Runs of several processes, as torchrun starts them, through the commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hone.models import ModelConfig, make_model, save_checkpoint
from hone.text.tokenizer import Tokenizer

TEXT = """
[data]
text = "t.txt"
held_out = 0.1
[tokenizer]
kind = "characters"
[model]
hidden = 16
layers = 1
heads = 2
kv_heads = 2
ffn = 32
context = 32
[train]
steps = 4
tokens_per_step = 128
warmup_steps = 2
precision = "fp32"
device = "cpu"
"""
TEXT2SQL = """
[data]
questions = 60
held_out = 1
languages = ["en"]
[tokenizer]
vocab_size = 300
[model]
hidden = 16
layers = 1
heads = 2
kv_heads = 1
ffn = 32
context = 320
[train]
steps = 3
tokens_per_step = 640
warmup_steps = 2
precision = "fp32"
device = "cpu"
[eval]
max_tokens = 1
"""
SENTENCES = [f"나는 {n}번째 사과를 먹었다. The {n}th river." for n in range(40)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "t.txt").write_text("\n".join(SENTENCES))
    (folder / "text.toml").write_text(TEXT)
    (folder / "text2sql.toml").write_text(TEXT2SQL)
    rows = [{"prompt": text[:5], "completion": text[5:]} for text in SENTENCES]
    data = folder / "pairs.jsonl"
    data.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    tokenizer = Tokenizer.train(SENTENCES, 300)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )
    model = make_model(config)
    model.initialise(seed=0)
    save_checkpoint(folder / "model", model, tokenizer)
    program = Path(__file__).with_name("joined_runs.py")
    files = (folder, folder / "model", folder / "text.toml", folder / "text2sql.toml", data)
    done = subprocess.run(
        [sys.executable, program, *files],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["text", "text2sql", "finetune"])
def test_two_processes_do_what_one_does(name, found):
    entry = found[name]
    for results in (entry["1 first"], entry["2 first"], entry["2 again"]):
        assert all("value" in result for result in results), results
    assert entry["same"]
    assert entry["distance"] < 2e-4
    assert entry["steps"] == sorted(set(entry["steps"]))


@pytest.mark.parametrize("name", ["text", "text2sql", "finetune"])
def test_only_the_first_process_shows_anything(name, found):
    first, second = (result["value"] for result in found[name]["2 first"])
    assert second["shown"] == ""
    assert first["shown"].count("The report is") == 1
    assert first["shown"].count("✓ Training") == 1


@pytest.mark.parametrize("name", ["text", "text2sql", "finetune"])
def test_a_finished_run_ends_at_once_in_both(name, found):
    first, second = (result["value"] for result in found[name]["2 again"])
    assert "Plan" not in first["shown"]
    assert "✓ Training" not in first["shown"]
    assert second["shown"] == ""
    assert abs(first["seconds"] - second["seconds"]) < 10
