import json
import shutil
import sqlite3

import pytest
from tiny_recipe import write_recipe

import hone
from hone.core.errors import CheckpointError, DataError
from hone.recipes import Assistant, load_recipe
from hone.recipes.run import run_recipe
from hone.recipes.run_data import run_database, run_glossary
from hone.sql import open_database, read_schema


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return run_recipe(load_recipe(write_recipe(folder)), folder / "out")


def test_the_folder_holds_what_it_promises(run):
    figures = json.loads((run / "results.json").read_text())
    for block in (figures, figures["int8"]):
        for metric in ("execution_accuracy", "exact_match"):
            for split in ("unseen_queries", "unseen_phrasings"):
                assert set(block[metric][split]) == {"ko", "en", "all"}
                assert all(0 <= value <= 1 for value in block[metric][split].values())
        assert block["bytes"] > 0
        assert block["tokens_per_second"] > 0
    assert figures["int8"]["bytes"] < figures["bytes"]
    assert set(figures["seconds"]) >= {"train", "total"}
    assert figures["parameters"] == sum(p.numel() for p in hone.load(run).model.parameters())
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 24
    report = (run / "report.html").read_text()
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert "<script" not in report
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["outputs"]["checkpoint/model.safetensors"]


def test_no_held_out_query_and_no_held_out_pattern_was_trained_on(run):
    def read(name):
        lines = (run / "questions" / name).read_text().splitlines()
        return [json.loads(line) for line in lines]

    train, held_out = read("train.jsonl"), read("held_out.jsonl")
    assert not {q["sql"] for q in train} & {q["sql"] for q in held_out}
    phrasings = {q["pattern"] for q in held_out if q["split"] == "unseen_phrasings"}
    assert phrasings
    assert not phrasings & {q["pattern"] for q in train}


def test_a_second_run_does_nothing_and_a_changed_setting_only_what_depends_on_it(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "out")
    weights = (copy / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    recipe = load_recipe(write_recipe(tmp_path))
    run_recipe(recipe, copy)
    assert (copy / "checkpoint" / "model.safetensors").stat().st_mtime_ns == weights
    changed = load_recipe(write_recipe(tmp_path), ["eval.max_tokens=5"])
    run_recipe(changed, copy)
    assert (copy / "checkpoint" / "model.safetensors").stat().st_mtime_ns == weights
    assert '"max_tokens": 5' in (copy / "recipe.json").read_text()


def test_the_model_opens_in_transformers_with_the_same_logits_and_greedy_output(run):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    lm = hone.load(run, dtype="float32")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(run / "checkpoint").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "checkpoint")
    prompt = "고객은 모두 몇 명이야? 🌍\x07 How many?\nSQL:"
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == lm.tokenizer.encode(prompt, add_special_tokens=True)
    assert ids[0].tolist().count(lm.tokenizer.bos_id) == 1
    with torch.no_grad():
        assert torch.allclose(lm.model(ids).logits, oracle(ids).logits, atol=1e-4)
        theirs = oracle.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    (ours,) = lm.generate(prompt, hone.SamplingParams(max_tokens=20))
    assert list(ours.token_ids) == theirs.tolist()


def test_asking_cannot_change_the_database(run):
    path = run_database(run)
    before = path.read_bytes()
    with open_database(path) as database:
        schema = read_schema(path, run_glossary(run))
        answer = Assistant(hone.load(run), database, schema).ask("'; DROP TABLE customers; --")
    assert answer.sql
    assert (answer.result is None) == (answer.error is not None)
    assert path.read_bytes() == before


def test_a_folder_that_is_no_run_does_not_know_its_database(tmp_path):
    with pytest.raises(CheckpointError, match="--db FILE"):
        run_database(tmp_path)


def test_human_examples_are_split_varied_and_scored(tmp_path):
    database = tmp_path / "a.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE city (name TEXT, state TEXT, people INTEGER)")
        rows = [("austin", "texas", 3), ("dallas", "texas", 5), ("akron", "ohio", 2)]
        connection.executemany("INSERT INTO city VALUES (?, ?, ?)", rows)
    connection.close()
    asked = [
        ("which cities are in texas", 'SELECT C.name FROM city AS C WHERE C.state = "texas" ;'),
        ("how many cities are there", "SELECT count(*) FROM city"),
        ("what is the largest city", "SELECT name FROM city ORDER BY people DESC LIMIT 1"),
        ("who lives in ohio", "SELECT sum(people) FROM city WHERE state = 'ohio'"),
        ("name every city", "SELECT name FROM city"),
    ]
    lines = [json.dumps({"question": q, "sql": sql}) for q, sql in asked]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines))
    recipe = write_recipe(tmp_path)
    text = recipe.read_text().replace("questions = 400", "questions = 0\nexamples_copies = 3")
    text = text.replace("[data]", '[data]\ndatabase = "a.sqlite"\nexamples = "asked.jsonl"')
    recipe.write_text(text)
    out = run_recipe(load_recipe(recipe), tmp_path / "out")
    train = (out / "questions" / "train.jsonl").read_text()
    assert len(train.splitlines()) == 12  # four of five, three times each
    figures = json.loads((out / "results.json").read_text())
    assert figures["items"]["held_out"]["all"] == 1


def test_a_database_that_is_none_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "a.sqlite").write_text("I am a text file, not a database at all.")
    recipe = write_recipe(tmp_path)
    recipe.write_text(recipe.read_text().replace("[data]", '[data]\ndatabase = "a.sqlite"'))
    with pytest.raises(DataError, match=r"a\.sqlite"):
        run_recipe(load_recipe(recipe), tmp_path / "out")
    recipe.write_text(recipe.read_text().replace("a.sqlite", "none.sqlite"))
    with pytest.raises(DataError, match=r"none\.sqlite"):
        run_recipe(load_recipe(recipe), tmp_path / "out")
