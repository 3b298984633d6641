"""Recipes that train a model on text, through the command, on a tiny model."""

import gzip
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import hone
from hone.cli.app import app
from hone.core.errors import CapacityError, ConfigError, DataError, HoneError
from hone.core.files import read_json, sha256_file
from hone.models import load_config, load_model
from hone.recipes.text_settings import load_text_recipe
from hone.recipes.text_stages import run_text_recipe
from hone.text.tokenizer import Tokenizer
from hone.train.checkpoints import CheckpointStore

RECIPES = Path(__file__).parents[2] / "recipes"
TEXT = """
seed = 1
[data]
text = ["문서.jsonl.gz", "b.txt"]
held_out = 0.1
[tokenizer]
vocab_size = 300
[model]
hidden = 16
layers = 1
heads = 2
kv_heads = 2
ffn = 32
context = 48
[train]
steps = 6
tokens_per_step = 256
warmup_steps = 2
checkpoint_every = 2
evaluate_every = 2
precision = "fp32"
device = "cpu"
"""
BERT = [
    'model.positions="learned"',
    'model.norm="layer"',
    'model.block="post"',
    'model.activation="gelu"',
    "model.gated=false",
    "model.biases=true",
]
KINDS = {
    "causal": ("llama", []),
    "characters": ("llama", ['tokenizer.kind="characters"', "data.separate=false"]),
    "mamba": ("mamba", ['model.mixer="mamba"']),
    "masked": ("bert", ['train.objective="masked"', "train.whole_words=true", *BERT]),
    "spans": (
        "t5",
        [
            "train.objective=spans",
            "model.positions=buckets",
            "model.activation=relu",
            "model.gated=false",
        ],
    ),
    "infilling": (None, ["train.objective=infilling", *BERT]),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    texts = [f"나는 {n}번째 사과를 먹었다. 하늘은 {n % 7} 넓다. The river runs." for n in range(80)]
    with gzip.open(folder / "문서.jsonl.gz", "wt", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    (folder / "b.txt").write_text("\n".join(texts[:10]))
    (folder / "tiny.toml").write_text(TEXT)
    return folder / "tiny.toml"


def run(recipe, out, *assignments, **options):
    return run_text_recipe(load_text_recipe(recipe, assignments), out, **options)


def command(recipe, out, *assignments):
    options = [part for one in assignments for part in ("--set", one)]
    return CliRunner().invoke(app, ["run", str(recipe), "-o", str(out), *options])


def weights(out):
    return sha256_file(out / "checkpoint" / "model.safetensors")


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_makes_a_model_of_its_family(kind, recipe, tmp_path):
    family, changes = KINDS[kind]
    result = command(recipe, tmp_path / "run", *changes)
    assert result.exit_code == 0, result.output
    assert "predicted" in result.output
    out = tmp_path / "run"
    results = read_json(out / "results.json")
    assert 0 < results["scores"]["loss"]["after"] < 7
    assert results["memory"]["predicted_bytes"] > 0
    assert results["memory"]["measured_bytes"] > 0
    if family:
        assert load_config(out / "checkpoint").model_type == family
    assert [line["step"] for line in metrics(out) if "held_out_loss" in line] == [2, 4, 6]
    tokenizer = Tokenizer.load(out / "checkpoint")
    assert "사과" in tokenizer.decode(tokenizer.encode("나는 사과"))
    page = (out / "report.html").read_text()
    assert "Memory" in page
    if kind == "masked":
        found = hone.pipeline("fill-mask", str(out / "checkpoint"))(
            f"나는 {tokenizer.mask_token} 먹었다."
        )
        assert found
    else:
        lm = hone.load(out)
        assert lm.generate(["나는"], hone.SamplingParams(max_tokens=3))[0].text is not None


@pytest.mark.parametrize("kind", ["causal", "spans"])
@pytest.mark.parametrize("how", ["Ctrl-C", "killed"])
def test_a_stopped_run_goes_on_to_the_same_weights(kind, how, recipe, tmp_path, monkeypatch):
    changes = KINDS[kind][1]
    run(recipe, tmp_path / "whole", *changes)
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 2:
            if how == "killed":
                raise MemoryError
            os.kill(os.getpid(), signal.SIGINT)
        return 1.0

    with monkeypatch.context() as patch:
        patch.setattr("hone.evals.held_out.held_out_loss", stop)
        with pytest.raises((KeyboardInterrupt, MemoryError)):
            run(recipe, tmp_path / "stopped", *changes)
    assert not (tmp_path / "stopped" / "checkpoint").exists()
    run(recipe, tmp_path / "stopped", *changes)
    trained = read_json(tmp_path / "stopped" / "results.json")["train"]
    assert trained["resumed_from"] == (5 if how == "Ctrl-C" else 2)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    steps = [line["step"] for line in metrics(tmp_path / "stopped") if "held_out_loss" in line]
    assert steps == [2, 4, 6]


def test_a_changed_setting_redoes_what_it_must(recipe, tmp_path):
    out = tmp_path / "run"

    def stamps(*assignments):
        run(recipe, out, *assignments)
        stages = ("tokenizer", "corpus", "train", "eval")
        return {name: (out / name / "stage.json").stat().st_mtime_ns for name in stages}

    def redone(before, after):
        return [name for name in before if before[name] != after[name]]

    first = stamps()
    same = stamps("train.evaluate_every=3", "train.micro_batches=2", "train.memory=4GB")
    assert redone(first, same) == []
    steps = stamps("train.steps=7")
    assert redone(same, steps) == ["train", "eval"]
    vocabulary = stamps("tokenizer.vocab_size=280")
    assert redone(steps, vocabulary) == ["tokenizer", "corpus", "train", "eval"]


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_weights_of_the_best_step_are_taken(ema, recipe, tmp_path, monkeypatch):
    losses, seen = {2: 3.0, 4: 1.0, 6: 2.0}, {}

    def loss(model, _):
        step = 2 * (len(seen) + 1)
        seen[step] = {name: p.detach().clone() for name, p in model.named_parameters()}
        return losses[step]

    monkeypatch.setattr("hone.evals.held_out.held_out_loss", loss)
    monkeypatch.setattr("hone.evals.held_out.held_out_scores", lambda *_: {"loss": 1.0})
    out = run(recipe, tmp_path / "run", "train.keep_best=true", f"train.ema={ema}")
    assert read_json(out / "results.json")["train"]["best_step"] == 4
    model = load_model(out / "checkpoint", "float32")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, seen[4][name]), name
        if "norm" not in name:
            assert not torch.equal(parameter, seen[6][name]), name
    monkeypatch.undo()
    damaged = CheckpointStore(out / "train" / "checkpoints", 2).at(4).path / "state.safetensors"
    damaged.write_bytes(b"")
    (out / "train" / "stage.json").unlink()
    with pytest.raises(HoneError, match="damaged"):
        run(recipe, tmp_path / "run", "train.keep_best=true", f"train.ema={ema}")


def test_prompts_are_continued_along_the_way(recipe, tmp_path):
    out = run(recipe, tmp_path / "run", 'train.prompts=["나는 "]', "train.steps=2")
    (line,) = [line for line in metrics(out) if "samples" in line]
    assert line["samples"][0]["prompt"] == "나는 "
    assert "<strong>나는 </strong>" in (out / "report.html").read_text()


def test_a_run_that_cannot_fit_leaves_the_last_one_as_it_was(recipe, tmp_path):
    out = run(recipe, tmp_path / "run")
    before = weights(out)
    with pytest.raises(CapacityError, match=r"does not fit: .*What would fit: .*micro_batches = "):
        run(recipe, out, "train.steps=7", "train.memory=600kB")
    assert weights(out) == before
    assert (out / "train" / "result.json").is_file()
    with pytest.raises(CapacityError, match="smaller model"):
        run(recipe, out, "train.steps=7", "train.memory=1kB")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (['data.text="none.txt"'], DataError, r"none\.txt.*data\.text.*No such file"),
        (['data.text="binary.txt"'], DataError, r"binary\.txt, line 1: not UTF-8"),
        (['data.text="empty.txt"'], DataError, r"empty\.txt is empty"),
        (['data.text="other.jsonl"'], DataError, r"other\.jsonl, line 1: .*'text'.*column.*body"),
        (
            ['data.text="other.jsonl"', 'data.column="n"'],
            DataError,
            r'other\.jsonl, line 1: "n" must be a text, found 3',
        ),
        (['data.text="short.txt"'], DataError, r"data\.held_out.*tokens, too few for one piece"),
        (["data.text=b.txt", "data.held_out=0.01"], DataError, r"data\.held_out.* is 0\.01"),
        (["data.held_out=1"], ConfigError, r"data\.held_out"),
        (["train.length=49"], ConfigError, r"train\.length.* is 49.*48.*model\.context"),
        (["train.memory=2apples"], ConfigError, r"train\.memory.*2apples"),
        (["train.share=0.2"], ConfigError, "share means nothing"),
        (["train.objective=masked", 'train.prompts=["a"]'], ConfigError, "prompts mean nothing"),
        (["train.keep_best=true", "train.evaluate_every=0"], ConfigError, "needs evaluate_every"),
        (["model.mixer=mamba", "train.objective=masked"], ConfigError, "mixer"),
    ],
)
def test_what_cannot_be_is_one_sentence(changes, kind, message, recipe, tmp_path):
    folder = recipe.parent
    (folder / "binary.txt").write_bytes(bytes(range(128, 256)) * 4)
    (folder / "empty.txt").write_bytes(b"")
    (folder / "short.txt").write_text("짧은 글.")
    (folder / "other.jsonl").write_text('{"body": "글", "n": 3}\n')
    with pytest.raises(kind, match=message) as error:
        run(recipe, tmp_path / "run", *changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_a_column_has_the_texts(recipe, tmp_path):
    rows = [json.dumps({"review": f"영화 {n} 좋다 " * 5}, ensure_ascii=False) for n in range(60)]
    (recipe.parent / "reviews.jsonl").write_text("\n".join(rows))
    files = 'data.text=["reviews.jsonl", "b.txt"]'
    out = run(recipe, tmp_path / "run", files, "data.column=review", "train.steps=2")
    assert Tokenizer.load(out / "tokenizer").encode("영화 좋다")


@pytest.mark.parametrize("name", ["shakespeare", "korean-masked"])
def test_the_examples_run(name, hone_data, tmp_path, monkeypatch):
    monkeypatch.setenv("HONE_DATA", str(hone_data))
    path = RECIPES / f"{name}.toml"
    full = load_text_recipe(path)
    assert full.name == name
    # The recipe as it is, on the beginning of its data.
    source, lines = Path(full.data.text[0]), []
    opened = gzip.open if source.suffix == ".gz" else open
    with opened(source, "rt", encoding="utf-8") as file:
        lines = [line for line, _ in zip(file, range(300), strict=False)]
    piece = tmp_path / source.name.removesuffix(".gz")
    piece.write_text("".join(lines))
    out = run(path, tmp_path / "run", f'data.text="{piece}"', "train.steps=2", "model.layers=1")
    assert read_json(out / "results.json")["train"]["steps"] == 2
