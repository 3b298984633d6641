"""The model card says what is in the run's own files, and nothing else."""

import hashlib
import json
import re
import shutil

import pytest
import yaml

from hone.core.errors import CheckpointError
from hone.recipes.card import find_source, model_card

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "vocab_size": 4321,
    "dtype": "float32",
}
SHARES = {"unseen_queries": {"all": 0.6253, "ko": 0.5, "en": 0.75}}
FIGURES = {
    "execution_accuracy": SHARES,
    "exact_match": {"unseen_queries": {"all": 0.5, "ko": 0.25, "en": 0.75}},
    "items": {"unseen_queries": {"all": 8, "ko": 4, "en": 4}},
    "intervals": {
        "execution_accuracy": {"unseen_queries": {"all": [0.3057, 0.8632]}},
        "exact_match": {},
    },
    "bytes": 987654,
    "tokens_per_second": 1234.5,
}
SMALL = {"execution_accuracy": {"unseen_queries": {"all": 0.125}}, "bytes": 4567}


def digest(data):
    return hashlib.sha256(data).hexdigest()


def write_json(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


@pytest.fixture
def run(tmp_path):
    """A finished run, as far as a card reads it."""
    run = tmp_path / "runs" / "stores"
    for folder, weights in (("checkpoint", b"large"), ("int8", b"small")):
        write_json(run / folder / "config.json", CONFIG)
        (run / folder / "model.safetensors").write_bytes(weights)
    recipe = {
        "name": "stores",
        "seed": 7,
        "data": {"database": "/home/kim/secret/stores.sqlite", "languages": ["ko", "en"]},
        "train": {"steps": 1234, "optimizer": "muon"},
    }
    write_json(run / "recipe.json", recipe)
    manifest = {
        "hone": "9.8.7",
        "recipe": recipe,
        "inputs": {"database": {"file": "/home/kim/secret/stores.sqlite", "sha256": "ab" * 32}},
        "outputs": {
            "checkpoint/model.safetensors": digest(b"large"),
            "int8/model.safetensors": digest(b"small"),
        },
        "machine": {"processor": "Abacus 3000", "threads": 2},
        "held_out_templates_seen": {"unseen_queries": 0.25},
        "libraries": {"torch": "2.99"},
    }
    write_json(run / "manifest.json", manifest)
    results = FIGURES | {"int8": SMALL, "seconds": {"train": 60.4}, "parameters": 24680}
    write_json(run / "results.json", results)
    return run


def change(file, **values):
    write_json(file, json.loads(file.read_text()) | values)


def parts(card):
    """The header's values and the text."""
    _, header, text = card.split("---\n", 2)
    return yaml.safe_load(header), text


def rows(text):
    """The cells of every table, by the first of each row."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in cells}


@pytest.mark.smoke
def test_the_header_is_what_the_hub_documents(run):
    header, _ = parts(model_card(run, "shop/stores-sql"))
    assert header["language"] == ["ko", "en"]
    assert header["library_name"] == "hone"
    assert header["pipeline_tag"] == "text-generation"
    assert header["tags"] == ["llama", "text-to-sql"]
    assert not {"license", "base_model"} & set(header)
    (model,) = header["model-index"]
    assert model["name"] == "stores-sql"
    (result,) = model["results"]
    assert result["task"] == {"type": "text-generation", "name": "Text-to-SQL"}
    assert result["dataset"]["split"] == "unseen_queries"
    assert {"type", "name"} <= set(result["dataset"])
    found = [(m["type"], m["name"], m["value"]) for m in result["metrics"]]
    assert found == [
        ("execution_accuracy", "Execution accuracy, all", 0.6253),
        ("execution_accuracy", "Execution accuracy, Korean", 0.5),
        ("execution_accuracy", "Execution accuracy, English", 0.75),
        ("exact_match", "Exact match, all", 0.5),
        ("exact_match", "Exact match, Korean", 0.25),
        ("exact_match", "Exact match, English", 0.75),
    ]


def test_the_hubs_own_library_reads_the_results_back(run):
    from huggingface_hub import ModelCard

    card = ModelCard(model_card(run, "shop/stores-sql"))
    assert card.data.to_dict()["library_name"] == "hone"
    assert {r.metric_value for r in card.data.eval_results} == {0.6253, 0.5, 0.25, 0.75}


@pytest.mark.smoke
def test_the_text_has_the_runs_figures(run):
    _, text = parts(model_card(run, "shop/stores-sql"))
    table = rows(text)
    assert "# stores-sql\n" in text
    assert "| unseen queries | all | 8 | 62.5 (30.6–86.3) | 50.0 |" in text
    assert "| unseen queries | Korean | 4 | 50.0 | 25.0 |" in text
    assert "25.0% of the set “unseen queries”" in text
    assert table["Weights"] == ["987,654 bytes"]
    assert table["Generation, many questions at once, on Abacus 3000, 2 threads"] == [
        "1,234 tokens/s"
    ]
    assert table["Layers"] == ["3"]
    assert table["Vocabulary"] == ["4,321"]
    assert table["parameters"] == ["24,680"]
    assert table["steps"] == ["1,234"]
    assert table["seconds, train"] == ["60"]
    assert table["torch"] == ["2.99"]
    assert table["input, database"] == [f"stores.sqlite, SHA-256 {'ab' * 32}"]
    assert table["SHA-256 of checkpoint/model.safetensors"] == [digest(b"large")]
    assert "trained with hone 9.8.7" in text.replace("Trained", "trained")
    assert 'hone ask hf://shop/stores-sql --db DATABASE.sqlite "고객은' in text
    assert "## Usage" in text
    assert "## 사용법" in text


def test_nobody_learns_where_the_files_lay(run):
    card = model_card(run, "shop/stores-sql")
    assert "secret" not in card
    assert "kim" not in card
    assert str(run) not in card


def test_the_compressed_form_has_its_own_figures(run):
    header, text = parts(model_card(run / "int8", "shop/stores-int8"))
    values = [m["value"] for r in header["model-index"][0]["results"] for m in r["metrics"]]
    assert values == [0.125]
    assert rows(text)["Weights"] == ["4,567 bytes"]
    assert rows(text)["parameters"] == ["24,680"]
    assert "62.5" not in text
    assert "Exact match" not in text
    assert "tokens/s" not in text


def test_a_checkpoint_in_its_run_is_the_runs(run, monkeypatch):
    assert model_card(run / "checkpoint", "a/b") == model_card(run, "a/b")
    monkeypatch.chdir(run)
    assert model_card("checkpoint", "a/b") == model_card(".", "a/b")


@pytest.mark.smoke
def test_a_bare_checkpoint_has_only_what_its_config_shows(run, tmp_path):
    bare = shutil.copytree(run / "checkpoint", tmp_path / "bare")
    card = model_card(bare, "shop/bare")
    header, text = parts(card)
    assert header == {
        "library_name": "hone",
        "pipeline_tag": "text-generation",
        "tags": ["llama"],
    }
    figures = set(re.findall(r"\d[\d,]*", text))
    assert figures == {"3", "32", "4,321"} | {"32"}  # float32 has one, too
    assert "hone generate hf://shop/bare" in text
    (bare / "chat_template.jinja").write_text("")
    assert "hone chat hf://shop/bare" in model_card(bare, "shop/bare")


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("GPT2LMHeadModel", "text-generation"),
        ("BertForMaskedLM", "fill-mask"),
        ("RobertaForTokenClassification", "token-classification"),
        ("T5ForConditionalGeneration", None),
        (None, None),
    ],
)
def test_the_task_is_the_architectures(tmp_path, architecture, task):
    names = {} if architecture is None else {"architectures": [architecture]}
    write_json(tmp_path / "model" / "config.json", {"d_model": 8, **names})
    header, text = parts(model_card(tmp_path / "model"))
    assert header.get("pipeline_tag") == task
    assert ("## Usage" in text) == (task == "text-generation")
    assert rows(text)["Hidden size"] == ["8"]


def test_an_adapter_names_its_base(tmp_path):
    adapter = {"base_model_name_or_path": "org/base", "peft_type": "LORA"}
    write_json(tmp_path / "adapter" / "adapter_config.json", adapter)
    header, text = parts(model_card(tmp_path / "adapter", "a/b"))
    assert header["base_model"] == "org/base"
    assert rows(text)["Adapter of"] == ["org/base"]


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("hf://org/base", "org/base"),
        ("hf://org/base@v1.0", "org/base"),
        ("/home/kim/.cache/huggingface/hub/models--org--base/snapshots/0123abcd", "org/base"),
        ("/home/kim/secret/base", None),
        ("../base", None),
        ("runs/base/checkpoint", None),
        ("base", None),
    ],
)
def test_only_a_name_on_the_hub_is_published_of_a_base(tmp_path, base, name):
    adapter = {"base_model_name_or_path": base, "peft_type": "LORA"}
    write_json(tmp_path / "adapter" / "adapter_config.json", adapter)
    header, text = parts(model_card(tmp_path / "adapter", "a/b"))
    assert header.get("base_model") == name
    assert rows(text).get("Adapter of") == (None if name is None else [name])
    assert "kim" not in text


@pytest.fixture
def tuned(tmp_path):
    """A finished run that made an adapter of a model on this machine."""
    write_json(tmp_path / "base" / "config.json", CONFIG)
    run = tmp_path / "runs" / "tuned"
    adapter = {"base_model_name_or_path": str(tmp_path / "base"), "peft_type": "LORA"}
    write_json(run / "adapter" / "adapter_config.json", adapter)
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"update")
    write_json(run / "recipe.json", {"name": "조정", "chosen": {"steps": 60, "method": "lora"}})
    outputs = {"adapter/adapter_model.safetensors": digest(b"update")}
    write_json(run / "manifest.json", {"hone": "9.8.7", "outputs": outputs})
    scores = {
        "loss": {"before": 3.25, "after": 1.5},
        "accuracy": {"before": None, "after": 0.123456},
    }
    write_json(run / "results.json", {"kind": "finetune", "scores": scores})
    return run


def test_an_adapter_of_a_local_model_is_described_by_its_architecture(tuned):
    header, text = parts(model_card(tuned, "shop/tuned"))
    assert "base_model" not in header
    table = rows(text)
    assert table["Adapter of"] == ["LlamaForCausalLM"]
    assert table["Layers"] == ["3"]
    assert str(tuned.parent.parent) not in text
    assert "## Usage" not in text  # nobody else has the base


def test_the_scores_of_a_tuned_run_are_on_its_card(tuned):
    _, text = parts(model_card(tuned, "shop/tuned"))
    table = rows(text)
    assert table["Score on held-out data"] == ["Before training", "After training"]
    assert table["loss"] == ["3.25", "1.5"]
    assert table["accuracy"] == ["", "0.1235"]
    assert table["method"] == ["lora"]
    assert table["steps"] == ["60"]
    change(tuned / "results.json", scores={"loss": {"before": None, "after": 1.5}})
    assert rows(model_card(tuned))["Score on held-out data"] == ["After training"]
    (tuned / "adapter" / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="results in there are of another model"):
        model_card(tuned)


def test_weights_that_the_manifest_does_not_know_have_no_results(run, tmp_path):
    (run / "checkpoint" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="results in there are of another model"):
        model_card(run)
    copied = shutil.copytree(run / "checkpoint", tmp_path / "copied")
    assert "62.5" not in model_card(copied)
    write_json(run / "other" / "config.json", CONFIG)
    assert find_source(run / "other").run is None


def test_what_is_neither_a_run_nor_a_checkpoint(run, tmp_path):
    with pytest.raises(CheckpointError, match="is not there"):
        find_source(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        find_source(tmp_path)
    (run / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="not finished"):
        find_source(run)


def test_a_run_without_results_has_a_card_without_them(run):
    (run / "results.json").unlink()
    header, text = parts(model_card(run, "a/b"))
    assert "model-index" not in header
    assert "## Results" not in text
    assert rows(text)["steps"] == ["1,234"]


@pytest.mark.parametrize("file", ["manifest.json", "results.json", "recipe.json"])
@pytest.mark.parametrize(
    "content", ["[]", "{", '{"outputs": 3, "data": 3, "intervals": 3, "exact_match": 3}']
)
def test_a_broken_file_is_one_sentence(run, file, content):
    (run / file).write_text(content)
    with pytest.raises(CheckpointError, match=r"\.json|JSON"):
        model_card(run, "a/b")


def test_names_cannot_break_the_page(run):
    name = 'a|b\n---\n"x": {y} 가나'
    change(run / "recipe.json", name=name)
    header, text = parts(model_card(run))
    assert header["model-index"][0]["name"] == 'a|b --- "x": {y} 가나'
    assert '\n# a\\|b --- "x": {y} 가나\n' in text


def test_a_real_run(tmp_path):
    """The names that a card reads are those that a run writes."""
    import torch
    from tiny_recipe import write_recipe

    from hone.recipes import load_recipe
    from hone.recipes.run import run_recipe

    torch.set_num_threads(1)
    small = ["data.questions=40", "data.held_out=4", "train.steps=2", "eval.max_tokens=2"]
    run = run_recipe(load_recipe(write_recipe(tmp_path), small), tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    for source, figures in ((run, results), (run / "int8", results["int8"])):
        header, text = parts(model_card(source, "org/tiny"))
        expected = [
            value
            for metric in ("execution_accuracy", "exact_match")
            for shares in figures[metric].values()
            for value in shares.values()
        ]
        found = [m["value"] for r in header["model-index"][0]["results"] for m in r["metrics"]]
        assert sorted(found) == sorted(expected)
        assert len(found) >= 8
        assert rows(text)["Weights"] == [f"{figures['bytes']:,} bytes"]
        assert rows(text)["steps"] == ["2"]
        assert rows(text)["input, database"] == ["sample"]
