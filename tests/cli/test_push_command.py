"""`hone push`, through the entry of the command line, to a hub on this machine."""

import json
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
from fake_hub import Repository, serve, weights

from hone.cli.app import main

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32}


@pytest.fixture(scope="module")
def server():
    with serve() as hub:
        yield hub


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    server.repositories.clear()
    server.requests.clear()
    server.token = "right"
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_TOKEN", "right")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    return server


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(weights(1234))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def hone_command(monkeypatch, capsys):
    """Run `hone ...`: (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hone", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code, out, " ".join(err.split())

    return run


@pytest.fixture
def push(hone_command):
    return lambda *arguments: hone_command("push", *arguments)


@pytest.mark.smoke
def test_a_checkpoint_is_pushed_with_its_card(push, hub, model):
    code, out, err = push(model, "hf://shop/sql", "-m", "첫 모델")
    assert code == 0, err
    assert f"Sent to {hub.endpoint}/shop/sql" in out
    stored = hub.repositories["shop/sql"]
    assert stored.private
    assert stored.messages == ["첫 모델"]
    assert stored.files["model.safetensors"] == weights(1234)
    card = stored.files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: hone\n")
    assert push(model, "shop/sql", "--card-only")[1] == card
    assert not (model / "README.md").exists()


def test_json_tells_what_was_sent(push, hub, model):
    code, out, _ = push(model, "shop/sql", "--public", "--json")
    assert code == 0
    record = json.loads(out)
    files = hub.repositories["shop/sql"].files
    assert not hub.repositories["shop/sql"].private
    assert record["public"]
    assert record["sent"]
    assert record["url"] == f"{hub.endpoint}/shop/sql"
    sent = {name: len(data) for name, data in files.items() if name != ".gitattributes"}
    assert record["files"] == sent
    assert record["bytes"] == sum(sent.values())


@pytest.mark.smoke
def test_nothing_is_sent_by_a_dry_run_and_by_the_card_alone(push, hub, model):
    code, out, _ = push(model, "hf://shop/sql", "--dry-run")
    assert code == 0
    assert "model.safetensors 1,234" in " ".join(out.split())
    assert "Nothing is sent; it would go to hf://shop/sql, private" in out
    assert "# sql" in out
    code, out, _ = push(model, "hf://shop/sql", "--dry-run", "--json")
    assert json.loads(out)["sent"] is False
    code, out, _ = push(model, "hf://shop/sql", "--card-only")
    assert code == 0
    assert out.startswith("---\n")
    assert json.loads(push(model, "shop/sql", "--card-only", "--json")[1]) == {"card": out}
    assert not hub.requests


def test_a_readme_of_ones_own_is_sent_as_it_is(push, hub, model):
    (model / "README.md").write_text("# 우리 모델\n", encoding="utf-8")
    assert push(model, "shop/sql", "--card-only")[1] == "# 우리 모델\n"
    assert push(model, "shop/sql")[0] == 0
    assert hub.repositories["shop/sql"].files["README.md"].decode() == "# 우리 모델\n"


@pytest.mark.parametrize(
    ("name", "options", "code", "said"),
    [
        ("sql", (), 2, "give hf://OWNER/sql"),
        ("hf://shop/s q l", (), 2, "cannot be the name of a model"),
        ("hf://../sql", (), 2, "cannot be the name of a model"),
        ("shop/sql@v1", (), 2, "leave out the revision"),
        ("shop/sql", ("-m", " "), 2, "--message is empty"),
        ("shop/public", (), 2, "is public"),
    ],
)
def test_a_wrong_request(push, hub, model, name, options, code, said):
    hub.repositories["shop/public"] = Repository({})
    found, out, err = push(model, name, *options)
    assert (found, out) == (code, "")
    assert said in err
    assert not hub.asked("POST", "")


def test_a_source_that_cannot_be_pushed(push, hub, model, tmp_path):
    for source, said in (
        (tmp_path / "none", "is not there"),
        (tmp_path, "neither a checkpoint"),
    ):
        code, _, err = push(source, "shop/sql")
        assert code == 1
        assert said in err
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    code, _, err = push(model, "shop/sql")
    assert code == 1
    assert "holds a pickle" in err
    assert not hub.requests


def test_a_hub_that_refuses(push, hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    code, _, err = push(model, "shop/sql")
    assert code == 1
    assert "HF_TOKEN" in err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, _, err = push(model, "shop/sql")
    assert code == 1
    assert "cannot be reached" in err
    assert "Traceback" not in err


def test_what_was_pushed_is_found_by_its_name(push, hone_command, hub, model):
    from hone.core.hub import find_checkpoint

    assert push(model, "hf://shop/sql")[0] == 0
    for name in ("hf://shop/sql", Path("hf://shop/sql"), "shop/sql@main"):
        assert (find_checkpoint(name) / "model.safetensors").read_bytes() == weights(1234)
    code, _, err = hone_command("generate", "hf://shop/none", "x")
    assert code == 1
    assert "shows no model shop/none" in err
