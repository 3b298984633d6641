"""``hone data inspect`` as a person meets it."""

import json
import os
import re
import subprocess
import sys

import pytest
from chat_zoo import make_chat_tokenizer
from typer.testing import CliRunner

from hone.cli.app import app
from hone.core.errors import CheckpointError, ConfigError, DataError
from hone.text.conversation import Conversations

MESSAGES = [
    {"role": "system", "content": "짧게 답하세요."},
    {"role": "user", "content": "서울에 사는 고객은 몇 명이야?"},
    {"role": "assistant", "content": "12명."},
    {"role": "user", "content": "부산은?"},
    {"role": "assistant", "content": "네 명."},
]
MARKED = re.compile("⟦([^⟧]*)⟧")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_chat_tokenizer("chatml").save(folder / "checkpoint")
    config = {"model_type": "llama", "max_position_embeddings": 512}
    (folder / "checkpoint" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"messages": MESSAGES}, {"messages": MESSAGES[:2]}, {"messages": MESSAGES[:3]}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def inspect(*arguments):
    words = ["data", "inspect", *map(str, arguments)]
    return CliRunner().invoke(app, words, catch_exceptions=False)


def command(*arguments, code="from hone.cli.app import main; main()", **environment):
    done = subprocess.run(
        [sys.executable, "-c", code, "data", "inspect", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "100", "TERM": "dumb"} | environment,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    return done


def test_what_is_trained_is_shown_with_counts(model, file):
    done = inspect(file, "--model", model)
    shown = done.stdout
    for line in (
        r"format +conversation", r"template +the model's", r"examples +3", r"samples +2",
        r"max length +512", r"dropped +1 time, first at line 2: there is no answer to train",
    ):  # fmt: skip
        assert re.search(line, shown), line
    assert MARKED.findall(shown) == ["in brackets", "12명.<|im_end|>", "네 명.<|im_end|>"]
    text = Conversations(make_chat_tokenizer("chatml")).text(MESSAGES)
    unmarked = shown.replace("⟦", "").replace("⟧", "")
    assert text.rstrip("\n") in unmarked


def test_json_has_the_same(model, file):
    done = inspect(file, "--model", model, "--json", "--sample", 2, "--train-on", "last")
    found = json.loads(done.stdout)
    sample = found["sample"]
    assert (found["format"], found["examples"], found["samples"]) == ("conversation", 3, 2)
    assert found["dropped"] == {"there is no answer to train": {"times": 1, "first_line": 2}}
    assert (sample["number"], sample["line"]) == (2, 3)
    assert MARKED.findall(sample["text"]) == ["12명.<|im_end|>"]
    trained = [label for label in sample["labels"] if label >= 0]
    assert make_chat_tokenizer("chatml").decode(trained, False) == "12명.<|im_end|>"
    assert found["tokens"] > found["trained_tokens"] > 0
    assert len(sample["ids"]) == len(sample["labels"]) <= found["length"]["max"]


def test_truncation_is_counted(model, file):
    whole = json.loads(inspect(file, "-m", model, "--json").stdout)["length"]["max"]
    cut = inspect(file, "-m", model, "--json", "--max-length", whole - 1)
    found = json.loads(cut.stdout)
    assert found["truncated"]["a conversation was cut between turns"]["first_line"] == 1
    assert found["samples"] == 3
    assert found["length"]["max"] < whole


def test_colours_where_there_are_any(model, file):
    shown = command(file, "-m", model, FORCE_COLOR="1", TERM="xterm-256color").stdout
    assert "⟦" not in shown
    assert "\x1b[1;32m12명." in shown
    assert "\x1b[1;7;32m<|im_end|>" in shown
    assert "\x1b[2;7m<|im_start|>" in shown


@pytest.mark.smoke
def test_it_starts_without_torch_and_transformers(model, file):
    code = (
        "import sys; from hone.cli.app import app\n"
        "try: app()\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'pyarrow', 'datasets', 'sqlglot'}\n"
        "    assert not heavy & set(sys.modules)"
    )
    done = command(file, "--model", model, code=code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("--sample", "9"), ConfigError, "--sample is 9"),
        (("--train-on", "first"), ConfigError, "train_on is 'first'"),
        (("--column", "prompt"), ConfigError, "write FORMAT=FILE"),
        (("--column", "prompt=Q"), DataError, "there is no column 'Q'; the columns are messages"),
        (("--chat-template", "none.jinja"), ConfigError, "none.jinja cannot be read"),
        (("--model", "."), CheckpointError, "is neither a checkpoint"),
    ],
)
def test_a_mistake_is_a_sentence(model, file, arguments, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        inspect(file, "-m", model, *arguments)


def test_a_mistake_ends_the_command(model, file):
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}')
    refused = command(file, "-m", model)
    assert refused.returncode == 1
    assert "which is for preference training" in " ".join(refused.stderr.split())


def test_another_template(model, file, tmp_path):
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    done = inspect(file, "-m", model, "--chat-template", tmp_path / "t.jinja", "-n", 2)
    assert MARKED.findall(done.stdout) == ["in brackets", " 12명.<|im_end|>"]
    assert "[system] 짧게" in done.stdout


def test_real_files(hone_data, tmp_path):
    folder = hone_data / "tokenizers" / "chatml-49k"
    lines = (hone_data / "ko_chatbot" / "ChatbotData.csv").read_text().splitlines()[:301]
    (tmp_path / "chat.csv").write_text("\n".join(lines))
    done = inspect(tmp_path / "chat.csv", "-m", folder, "-n", 5,
                   "--column", "instruction=Q", "--column", "output=A", "--json")  # fmt: skip
    found = json.loads(done.stdout)
    assert (found["format"], found["examples"], found["samples"]) == ("alpaca", 300, 300)
    assert MARKED.findall(found["sample"]["text"]) == ["눈살이 찌푸려지죠.<|im_end|>"]
    assert not found["truncated"]
    assert not found["dropped"]
