"""`hone finetune` on a tiny model: every kind of data, every method, through the command."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hone
from hone.cli.app import app
from hone.core.errors import CapacityError, CheckpointError, ConfigError, DataError
from hone.models import ModelConfig, load_model, make_model, save_checkpoint
from hone.recipes.card import find_source, model_card
from hone.recipes.finetune import FinetuneOptions, Tuning
from hone.recipes.finetune.report import next_commands
from hone.text.tokenizer import Tokenizer

WORDS = ["사과", "바나나", "포도", "하늘", "바다", "apple", "river", "stone", "cloud", "green"]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def read_jsonl(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="module")
def tokenizer():
    texts = [f"{a} {b}? {b} {a}. ### User: Assistant:" for a in WORDS for b in WORDS]
    return Tokenizer.train(texts, 360)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory, tokenizer):
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    return save(tmp_path_factory.mktemp("decoder"), config, tokenizer)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, tokenizer, decoder):
    from hone.models import load_config

    config = replace(load_config(decoder), causal=False, head="masked", extra={})
    config = replace(config, model_type="hone", embedding_pooling="mean", pooling="cls")
    return save(tmp_path_factory.mktemp("encoder"), config, tokenizer)


def save(folder, config, tokenizer):
    model = make_model(config)
    model.initialise(seed=0)
    save_checkpoint(folder / "m", model, tokenizer)
    return folder / "m"


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    rows = [
        {"instruction": f"{a} {b}?", "input": "", "output": f"{b} {a}."}
        for a in WORDS
        for b in WORDS[:6]
    ]
    return write_jsonl(tmp_path_factory.mktemp("data") / "대화.jsonl", rows)


def options(model, data, **changes):
    return FinetuneOptions(model=str(model), data=data, **changes)


def tune(model, data, out, **changes):
    return Tuning(options(model, data, **({"learning_rate": 5e-3} | changes)), out)


def run(*args):
    result = CliRunner().invoke(app, ["finetune", *map(str, args)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def scores(out):
    return json.loads((out / "results.json").read_text())["scores"]


def test_one_command_tunes_all_weights_and_says_why(decoder, chats, tmp_path):
    result = run(decoder, "--data", chats, "-o", tmp_path / "run", "--steps", 60, "--lr", 5e-3)
    for choice in ("method", "template", "max length", "tokens per step", "learning rate"):
        assert choice in result.output
    found = scores(tmp_path / "run")
    assert found["loss"]["after"] < 0.7 * found["loss"]["before"]
    assert "predicted" in result.output
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<mark>" in page
    lm = hone.load(tmp_path / "run")
    prompt = lm.chat_prompt([{"role": "user", "content": "사과 바다?"}])
    (answer,) = lm.generate([prompt], hone.SamplingParams(max_tokens=12))
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_updates_are_an_adapter_that_serves(method, decoder, chats, tmp_path):
    out = tmp_path / "run"
    tune(decoder, chats, out, method=method, steps=60, learning_rate=3e-2, rank=8).run()
    found = scores(out)
    assert found["loss"]["after"] < 0.95 * found["loss"]["before"]
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert not (out / "checkpoint").exists()
    lm = hone.load(out)
    prompt = lm.chat_prompt([{"role": "user", "content": "사과 바다?"}])
    assert lm.generate([prompt], hone.SamplingParams(max_tokens=4))[0].text is not None


def test_a_finished_run_is_not_done_again_and_a_changed_one_is(decoder, chats, tmp_path):
    out = tmp_path / "run"
    tune(decoder, chats, out, steps=4).run()
    written = (out / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    tune(decoder, chats, out, steps=4).run()
    assert (out / "checkpoint" / "model.safetensors").stat().st_mtime_ns == written
    before = (out / "before" / "scores.json").stat().st_mtime_ns
    tune(decoder, chats, out, steps=5).run()
    assert (out / "checkpoint" / "model.safetensors").stat().st_mtime_ns != written
    assert (out / "before" / "scores.json").stat().st_mtime_ns == before


def test_a_json_list_on_one_line_has_many_rows(decoder, chats, tmp_path):
    rows = read_jsonl(chats)
    file = tmp_path / "대화.json"
    file.write_text(json.dumps(rows, ensure_ascii=False))
    found, lines = tune(decoder, str(file), tmp_path / "run").data, tune(decoder, chats, tmp_path)
    assert [len(found.train), len(found.held_out)] == [57, 3]
    assert found.held_out == lines.data.held_out


def test_answers_of_one_conversation_are_not_shared_out(decoder, tmp_path):
    turns = [
        {"role": role, "content": f"{a} {b}"}
        for a, b in pairwise(WORDS)
        for role in ("user", "assistant")
    ]
    data = write_jsonl(tmp_path / "a.jsonl", [{"messages": turns}] * 4)
    found = tune(decoder, data, tmp_path / "run", max_length=48, held_out=0.25).data
    assert len(found.train) == 3 * len(found.held_out) > 3


def test_a_held_out_sample_may_be_the_longest(decoder, chats, tmp_path):
    rows = read_jsonl(chats)
    held_out = tune(decoder, chats, tmp_path / "a").data.held_out
    at = next(i for i, row in enumerate(rows) if is_of(row, held_out[0], decoder))
    rows[at]["output"] = "사과 바다 하늘 apple."
    data = write_jsonl(tmp_path / "long.jsonl", rows)
    tuning = tune(decoder, data, tmp_path / "run", steps=2)
    lengths = [max(sample.longest for sample in x) for x in (tuning.data.train, held_out)]
    assert tuning.choices["max_length"] == tuning.data.longest > lengths[0]
    tuning.run()


def is_of(row, sample, model):
    text = Tokenizer.load(model).decode([int(i) for i in sample.ids], skip_special_tokens=False)
    return row["instruction"] in text


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_is_published_with_its_card(method, decoder, chats, tmp_path):
    out = tmp_path / "run"
    tune(decoder, chats, out, method=method, steps=2).run()
    found = find_source(out)
    assert found.checkpoint == out / ("checkpoint" if method == "full" else "adapter")
    assert "대화.jsonl" in model_card(found) or method == "lora"


def test_a_run_of_updates_is_no_whole_model(decoder, chats, tmp_path):
    out = tmp_path / "run"
    tune(decoder, chats, out, method="lora", steps=2).run()
    with pytest.raises(CheckpointError, match="is an adapter and no whole model"):
        tune(out, chats, tmp_path / "second")


def test_plain_text_goes_on_being_pretrained(decoder, tmp_path):
    data = tmp_path / "t.txt"
    data.write_text("사과 바나나 포도. 하늘 바다. " * 60)
    tune(decoder, str(data), tmp_path / "run", steps=30, max_length=32).run()
    found = scores(tmp_path / "run")
    assert found["perplexity"]["after"] < found["perplexity"]["before"]


def test_a_text_that_is_none_is_named(decoder, tmp_path):
    for wrong in (5, None, ["가"]):
        data = write_jsonl(tmp_path / "t.jsonl", [{"text": "가나 다라"}] * 30 + [{"text": wrong}])
        with pytest.raises(DataError, match='line 31: "text" must be a text'):
            tune(decoder, data, tmp_path / "run").choices  # noqa: B018


def test_texts_with_labels_make_a_classifier(encoder, tmp_path):
    rows = [
        {"text": f"{a} {b}", "label": "과일" if a in WORDS[:3] else "other"}
        for a in WORDS
        for b in WORDS
    ]
    data = write_jsonl(tmp_path / "c.jsonl", rows)
    tuning = tune(encoder, data, tmp_path / "run", steps=80, held_out=0.2)
    tuning.run()
    assert scores(tmp_path / "run")["accuracy"]["after"] > 0.9
    (command,) = next_commands(tuning)
    said = subprocess.run([sys.executable, *shlex.split(command)[1:]], capture_output=True)
    assert "과일" in said.stdout.decode() or "other" in said.stdout.decode()
    model = load_model(tmp_path / "run" / "checkpoint")
    assert model.config.labels == ("other", "과일")
    (found,) = hone.pipeline("text-classification", str(tmp_path / "run" / "checkpoint"))("사과 돌")
    assert found["label"] == "과일"


def test_a_classifier_of_small_updates_is_used_and_merged(encoder, tmp_path):
    rows = [{"text": f"{a} {b}", "label": a} for a in WORDS[:3] for b in WORDS]
    data = write_jsonl(tmp_path / "c.jsonl", rows)
    out = tmp_path / "run"
    tune(encoder, data, out, method="lora", steps=60, learning_rate=2e-2, held_out=0.2).run()
    merged = CliRunner().invoke(app, ["merge", str(out / "adapter"), "-o", str(tmp_path / "m")])
    assert merged.exit_code == 0, merged.output
    texts = [row["text"] for row in rows[::5]]
    alone = hone.pipeline("text-classification", str(out))(texts)
    assert {found["label"] for found in alone} <= set(WORDS[:3])
    both = hone.pipeline(model=str(tmp_path / "m"))(texts)
    assert [one["label"] for one in alone] == [two["label"] for two in both]
    right = sum(one["label"] == row["label"] for one, row in zip(alone, rows[::5], strict=True))
    assert right > len(texts) / 2


def test_words_with_tags_make_a_tagger(encoder, tmp_path):
    rows = [{"tokens": [a, "and", b], "tags": [tag(a), "O", tag(b)]} for a in WORDS for b in WORDS]
    data = write_jsonl(tmp_path / "t.jsonl", rows)
    tune(encoder, data, tmp_path / "run", steps=80, held_out=0.2).run()
    assert scores(tmp_path / "run")["accuracy"]["after"] > 0.9


def tag(word):
    return "B-FRUIT" if word in WORDS[:3] else "O"


def test_pairs_make_an_embedder(encoder, tmp_path):
    rows = [{"anchor": f"{a} {b}", "positive": f"{b} {a}"} for a in WORDS for b in WORDS if a < b]
    data = write_jsonl(tmp_path / "p.jsonl", rows)
    tune(encoder, data, tmp_path / "run", steps=40, held_out=0.2, tokens_per_step=300).run()
    found = scores(tmp_path / "run")
    assert found["loss"]["after"] < found["loss"]["before"]
    assert (tmp_path / "run" / "checkpoint" / "modules.json").is_file()


def test_scored_pairs_learn_similarity(encoder, tmp_path):
    rows = [
        {"sentence1": a, "sentence2": b, "score": 5.0 if a == b else 0.5}
        for a in WORDS
        for b in WORDS
    ]
    data = write_jsonl(tmp_path / "s.jsonl", rows)
    tune(encoder, data, tmp_path / "run", steps=60, held_out=0.2, learning_rate=1e-3).run()
    found = scores(tmp_path / "run")
    assert found["loss"]["after"] < found["loss"]["before"]


def test_what_an_encoder_cannot_learn_is_one_sentence(encoder, chats, tmp_path):
    with pytest.raises(ConfigError, match="writes nothing"):
        tune(encoder, chats, tmp_path / "run").choices  # noqa: B018


def test_preferences_are_told_apart_from_answers(decoder, tmp_path):
    data = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(DataError, match="preference"):
        tune(decoder, data, tmp_path / "run").choices  # noqa: B018


def test_a_run_that_cannot_fit_names_what_would(decoder, chats, tmp_path):
    with pytest.raises(CapacityError, match="does not fit") as error:
        tune(decoder, chats, tmp_path / "run", memory=300_000).choices  # noqa: B018
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_savers_are_chosen_when_memory_is_short(decoder, chats, tmp_path):
    easy = tune(decoder, chats, tmp_path / "run", tokens_per_step=2000)
    tight = tune(decoder, chats, tmp_path / "run", tokens_per_step=2000, memory=easy.plan.peak // 2)
    assert tight.choices["micro_batches"] > 1
    assert tight.plan.peak <= easy.plan.peak // 2
    assert "memory" in {n: r for n, _, r in tight.choices.rows()}["micro batches"]


def test_a_run_goes_on_as_it_began_whatever_is_free_today(decoder, chats, tmp_path, monkeypatch):
    from hone.recipes.finetune import tuning

    changes = {"steps": 2, "tokens_per_step": 2000}
    began = tune(decoder, chats, tmp_path / "run", **changes)
    assert began.choices["micro_batches"] == 1
    began.run()
    monkeypatch.setattr(tuning, "memory_budget", lambda *_: began.plan.peak * 3 // 4)
    monkeypatch.setattr("hone.recipes.forecast.memory_budget", lambda *_: began.plan.peak * 3 // 4)
    elsewhere = tune(decoder, chats, tmp_path / "other", **changes)
    assert elsewhere.choices["micro_batches"] > 1, "less memory is another way"
    with pytest.raises(CapacityError):
        tune(decoder, chats, tmp_path / "run", **changes).choices  # noqa: B018
    anew = Tuning(
        options(decoder, chats, learning_rate=5e-3, **changes), tmp_path / "run", fresh=True
    )
    assert anew.choices["micro_batches"] > 1


def test_prompts_are_continued_along_the_way(decoder, chats, tmp_path):
    tune(decoder, chats, tmp_path / "run", steps=5, prompts=("사과",)).run()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert any(line.get("samples", [{}])[0].get("prompt") == "사과" for line in lines)
