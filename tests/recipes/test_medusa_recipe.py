"""`hone medusa` through the command: heads that are right more often than the commonest token."""

import json

import pytest
import torch
from typer.testing import CliRunner

from hone.cli.app import app
from hone.core.errors import CheckpointError, ConfigError
from hone.core.seeds import rng
from hone.engine.lm import load
from hone.engine.options import EngineOptions
from hone.engine.request import Request
from hone.engine.sequence import Sequence
from hone.engine.speculation import load_speculation
from hone.engine.speculation.medusa import load_heads
from hone.models import CausalLM, ModelConfig, make_model, save_checkpoint
from hone.recipes.history import read_run
from hone.recipes.medusa import MedusaOptions, MedusaRun
from hone.text.tokenizer import Tokenizer
from hone.train import TrainConfig, train

WORDS = ["사과", "바나나", "포도", "하늘", "바다", "구름", "강물", "나무"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Two threads gain nothing at these sizes, and wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def rows(count):
    random = rng(0, "rows")
    found = []
    for _ in range(count):
        first = random.randrange(len(WORDS))
        answer = " ".join(WORDS[(first + n) % len(WORDS)] for n in range(random.randint(4, 8)))
        found.append({"prompt": f"{WORDS[first]}?", "completion": " " + answer})
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("data") / "이어쓰기.jsonl", rows(150))


@pytest.fixture(scope="module")
def model(tmp_path_factory, data):
    """A model that has learnt the data, so that its hidden states know what comes."""
    tokenizer = Tokenizer.train([f"{a}? {b} {a}" for a in WORDS for b in WORDS], 330)
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
    body = make_model(config)
    body.initialise(seed=0)
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(folder / "m", body, tokenizer)
    run = MedusaRun(options(folder / "m", data), folder / "none")
    settings = TrainConfig(steps=60, optimizer="adamw", learning_rate=1e-2, warmup_steps=5)
    torch.manual_seed(0)
    train(body, run._batches(), settings, folder / "train")
    save_checkpoint(folder / "m", body, tokenizer)
    return folder / "m"


def options(model, data, **changes):
    return MedusaOptions(model=str(model), data=data, **changes)


@pytest.fixture(scope="module")
def trained(model, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "heads"
    arguments = ["medusa", model, "--data", data, "-o", out, "--heads", 3, "--steps", 60]
    command = [*arguments, "--lr", 1e-2, "--set", "held_out=0.1"]
    result = CliRunner().invoke(app, [str(x) for x in command], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out, result.output


def test_heads_beat_the_commonest_token(trained):
    out, shown = trained
    results = json.loads((out / "results.json").read_text())
    for shares in results["accuracies"]:
        assert shares[0] > 3 * results["commonest"]
        assert sum(shares) < 1.001
    assert "head 3" in shown
    assert str(out / "medusa") in shown
    assert 1 < results["expected_tokens"]["4"] < results["expected_tokens"]["8"] < 4
    past = read_run(out)
    assert (past.kind, past.state) == ("medusa", "finished")
    assert past.scores["head 1"] == results["accuracies"][0][0]
    manifest = json.loads((out / "manifest.json").read_text())
    assert "medusa/medusa.safetensors" in manifest["outputs"]


def test_heads_guess_what_the_model_writes(trained, model):
    out, _ = trained
    lm = load(model)
    speculation = load_speculation(
        lm.model, lm.tokenizer, EngineOptions(speculation=f"medusa:{out}")
    )
    ids = lm.tokenizer.encode("포도?")
    accepted = passes = 0
    with torch.inference_mode():
        text = list(ids)
        one = Sequence(0, Request("r", tuple(ids)), 0, 0, 0.0, text, len(ids))
        for _ in range(12):
            output = lm.model(torch.tensor([text]), output_hidden_states=True)
            text.append(int(output.logits[0, -1].argmax()))
            speculation.proposer.observe([one], output.hidden_states[-1][:, -1])
            (draft,) = speculation.proposer.propose([one], [6])
            assert len(draft.tokens) == 6
            (chain,) = speculation.proposer.propose([one], [1])
            assert chain == (draft.tokens[:1], None)
            after = list(text)
            for _ in range(3):
                scores = lm.model(torch.tensor([after])).logits[0, -1]
                after.append(int(scores.argmax()))
            accepted += draft.tokens[0] == after[len(text)]
            passes += 1
    assert accepted > 0.5 * passes
    speculation.forget(one)
    assert speculation.proposer.propose([one], [6]) == [([], None)]


def test_a_finished_run_is_not_done_again(trained, model, data):
    out, _ = trained
    written = (out / "medusa" / "medusa.safetensors").stat().st_mtime_ns
    same = options(model, data, heads=3, steps=60, learning_rate=1e-2, held_out=0.1)
    MedusaRun(same, out).run()
    assert (out / "medusa" / "medusa.safetensors").stat().st_mtime_ns == written


def test_heads_of_another_model_and_damaged_ones_are_refused(trained, model, tmp_path):
    out, _ = trained
    config = ModelConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    with pytest.raises(CheckpointError, match=r"99.*hone medusa"):
        load_heads(out, CausalLM(config))
    body = load(model).model
    for name, damage in (
        ("medusa.json", b'{"heads": 3}'),
        ("medusa.json", b"{"),
        ("medusa.safetensors", b"x" * 100),
    ):
        folder = tmp_path / "damaged"
        folder.mkdir(exist_ok=True)
        for file in ("medusa.json", "medusa.safetensors"):
            (folder / file).write_bytes((out / "medusa" / file).read_bytes())
        (folder / name).write_bytes(damage)
        with pytest.raises(CheckpointError, match=name):
            load_heads(folder, body)


def test_data_that_writes_nothing_is_refused(model, tmp_path):
    found = [{"text": f"{a} {b}", "label": n % 2} for n, a in enumerate(WORDS) for b in WORDS]
    labels = write_jsonl(tmp_path / "분류.jsonl", found)
    with pytest.raises(ConfigError, match="writes nothing"):
        MedusaRun(options(model, labels), tmp_path / "run").run()
