"""The command line as a person meets it: help, mistakes, exit codes, and how fast it starts."""

import json
import os
import sqlite3
import subprocess
import sys

import pytest

from hone.sql.sample import write_sample_database

COMMANDS = ("demo", "run", "finetune", "plan", "runs", "data", "ask", "generate", "chat")
COMMANDS += ("quantize", "merge", "show", "push")


def hone(*arguments: object, folder=None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from hone.cli.app import main; main()", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "TERM": "dumb"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=120
    )


@pytest.mark.smoke
def test_help_lists_every_command_without_importing_torch():
    code = "import sys, hone.cli.app; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
    shown = hone("--help").stdout
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize(
    ("command", "words"),
    [("run", ("`[data] text`", "[default: runs/NAME]")), ("runs", ("[default: runs]",))],
)
def test_brackets_in_help_are_no_markup(command, words):
    shown = " ".join(hone(command, "--help").stdout.replace("│", " ").split())
    assert all(word in shown for word in words)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run", "no-such-recipe"), 2, "There is no recipe no-such-recipe"),
        (("run", "demo", "--set", "train.step=3"), 2, 'Did you mean "steps"?'),
        (("finetune", "x", "-d", "y", "--set", "epochs=all"), 2, "--set epochs=all:"),
        (("ask", "nowhere", "how many?"), 1, "nowhere does not say which database"),
        (("ask", "nowhere", "how many?", "--db", "none.sqlite"), 1, "none.sqlite"),
        (("generate", "nowhere", "x"), 1, "nowhere does not exist"),
        (("frobnicate",), 2, "No such command"),
        (("ask", "x", "y", "--rows", "0"), 2, "Invalid value"),
    ],
)
def test_a_mistake_is_a_sentence_and_an_exit_code(tmp_path, arguments, code, message):
    done = hone(*arguments, folder=tmp_path)
    assert done.returncode == code
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(tmp_path):
    done = hone("--debug", "run", "no-such-recipe", folder=tmp_path)
    assert "Traceback" in done.stderr


def test_an_unwritable_place_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = hone("demo", "-o", tmp_path / "file" / "run")
    assert done.returncode == 1
    assert "a file is in the way" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("room", [1024, 40])
def test_ask_prints_valid_sql_and_fails_when_it_was_cut_off(tmp_path, room):
    """A model that knows nothing can still write nothing but queries that the database takes."""
    from hone.models import CausalLM, ModelConfig, save_checkpoint
    from hone.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(["고객은 몇 명? SELECT"] * 2, 300)
    config = ModelConfig(tokenizer.vocab_size, 16, 32, 1, 2, max_position_embeddings=room)
    model = CausalLM(config)
    model.initialise(0)
    save_checkpoint(tmp_path / "model", model, tokenizer)
    database = write_sample_database(tmp_path / "shop.sqlite")
    before = database.read_bytes()
    question = "x'; DROP TABLE customers; --"
    done = hone("ask", tmp_path / "model", question, "--db", database, "--rows", 3, "--json")
    answer = json.loads(done.stdout)
    assert answer["question"] == question
    assert answer["sql"].startswith("SELECT ")
    if room == 40:
        assert done.returncode == 1
        assert "was cut off" in answer["error"]
        assert "was cut off" in done.stderr
        assert "rows" not in answer
    else:
        assert done.returncode == 0, done.stderr
        assert answer["error"] is None
        found = sqlite3.connect(database).execute(answer["sql"])
        assert [list(row) for row in found.fetchmany(3)] == answer["rows"]
        assert [column[0] for column in found.description] == answer["columns"]
    assert database.read_bytes() == before


def test_quantize_replaces_no_file(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    done = hone("quantize", tmp_path / "model", "--out", tmp_path / "notes.txt")
    assert done.returncode != 0
    assert (tmp_path / "notes.txt").read_text() == "keep"
