"""Answers of an encoder-decoder are trained in the frame in which serving writes them."""

import json

import pytest

from hone.core.errors import ConfigError
from hone.engine.sources import answer_tokens
from hone.models import ModelConfig
from hone.recipes.finetune.datasets import read_data
from hone.recipes.finetune.options import FinetuneOptions
from hone.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["서울에 사는 고객은 몇 명이야? 열두 명."] * 5, 330)
END = TOKENIZER.eos_id


def config_of(**changes):
    sizes = {
        "vocab_size": TOKENIZER.vocab_size,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "eos_token_id": END,
    }
    encoder = ModelConfig(**sizes, causal=False)
    return ModelConfig(
        **sizes, head="seq2seq", encoder=encoder, **({"decoder_start_token_id": 0} | changes)
    )


def read(folder, rows, config, length=64):
    data = folder / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = FinetuneOptions(model=str(folder), data=str(data))
    return read_data(options, config, TOKENIZER, length, folder)


@pytest.mark.parametrize("generation", [None, {"forced_bos_token_id": 7}, {}])
@pytest.mark.parametrize("forced", [None, 5])
def test_what_serving_forces_is_trained(tmp_path, generation, forced):
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    config = config_of(forced_bos_token_id=forced)
    found = read(tmp_path, [{"prompt": "서울에", "completion": " 사는"}] * 4, config)
    frame = answer_tokens(config, generation)
    assert frame.first == (forced if generation is None else generation.get("forced_bos_token_id"))
    answer = [*([] if frame.first is None else [frame.first]), *TOKENIZER.encode(" 사는"), END]
    assert len(found.train) == 3
    for sample in [*found.train, *found.held_out]:
        assert list(sample.labels) == answer
        assert list(sample.ids) == [frame.start, *answer[:-1]]
        # A source is the prompt as serving encodes it, and ends.
        prompt = TOKENIZER.encode("서울에", add_special_tokens=True)
        assert list(sample.source) == [*prompt, END]


def test_of_a_conversation_the_last_answer_is_told_from_all_before_it(tmp_path):
    messages = [
        {"role": "user", "content": "서울에"},
        {"role": "assistant", "content": "사는"},
        {"role": "user", "content": "고객은"},
        {"role": "assistant", "content": "열두 명."},
    ]
    found = read(tmp_path, [{"messages": messages}] * 4, config_of(), length=400)
    (sample, *_) = found.train
    assert TOKENIZER.decode(list(sample.labels), False).strip() == "열두 명.<eos>"
    source = TOKENIZER.decode(list(sample.source), False)
    assert source.index("서울에") < source.index("사는") < source.index("고객은")


def test_plain_text_is_not_for_answers(tmp_path):
    with pytest.raises(ConfigError, match=r"is plain text, and .* is an encoder-decoder"):
        read(tmp_path, [{"text": "서울에"}] * 4, config_of())
