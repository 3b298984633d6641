"""``hone generate`` with a model that has an encoder."""

import json
import sys

import pytest
import torch

import hone
from hone.cli.app import main
from hone.models import make_model, read_config, save_checkpoint
from hone.text.tokenizer import Tokenizer

SIZES = {
    "model_type": "bart",
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_layers": 1,
    "decoder_ffn_dim": 48,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "init_std": 0.3,
}


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    tokenizer = Tokenizer.train(["안녕 hello 😀"] * 3, 300)
    model = make_model(
        read_config(SIZES | {"vocab_size": tokenizer.vocab_size}), dtype=torch.float32
    )
    model.initialise(seed=3)
    folder = tmp_path_factory.mktemp("cli") / "bart"
    save_checkpoint(folder, model, tokenizer)
    return folder


def test_prompts_are_answered(bart, monkeypatch, capsys):
    params = hone.SamplingParams(max_tokens=7)
    expected = hone.load(bart).generate(["안녕", "hello there"], params)
    arguments = ["hone", "generate", str(bart), "안녕", "hello there", "--max-tokens", "7"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == [result.text for result in expected]
    assert [line["tokens"] for line in lines] == [len(result.token_ids) for result in expected]
    assert all(result.token_ids[-1] == 2 for result in expected)
