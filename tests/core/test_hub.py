"""Names to directories and directories to the hub, against a hub on this machine."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple

import huggingface_hub.constants
import pytest
from fake_hub import Repository, serve, weights
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hone.core import progress
from hone.core.errors import CapacityError, CheckpointError, RequestError
from hone.core.hub import CONFIG_FILES, checkpoint_files, parse_name, resolve, upload

MODEL = {
    "config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "model.safetensors": weights(5000),
    "README.md": b"# a model",
}
FETCHED = {"config.json", "tokenizer.json", "model.safetensors"}


@pytest.fixture(scope="module")
def server():
    with serve() as hub:
        yield hub


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """An empty hub that is asked, an empty cache that is used, and no token."""
    server.repositories.clear()
    server.requests.clear()
    server.token, server.may_write, server.broken = None, True, None
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    return server


def go_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def names_in(folder):
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def refusal(*arguments, **options):
    with pytest.raises(CheckpointError) as caught:
        resolve(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.smoke
def test_a_local_path_wins_and_asks_nobody(hub, tmp_path, monkeypatch):
    hub.repositories["org/name"] = Repository(dict(MODEL))
    write(tmp_path / "org" / "name", MODEL)
    assert resolve("org/name").samefile(tmp_path / "org" / "name")
    assert resolve(tmp_path / "org").samefile(tmp_path / "org")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/org").samefile(tmp_path / "org")
    assert not hub.requests
    # hf:// always means the hub.
    assert tmp_path / "cache" in resolve("hf://org/name").parents
    assert "no revision 'v1'" in refusal("org/name", revision="v1")


@pytest.mark.parametrize(
    "path", ["./x", "/no/where", "../x", "~/none", "a/b/c", "https://h.co/a/b"]
)
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(hub, path):
    assert f"{path} does not exist" in refusal(path)
    assert not hub.requests


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["hf://org/name", "org/name", "hf://gpt", "gpt"])
def test_a_name_is_fetched_once(hub, name):
    hub.repositories["org/name"] = Repository(dict(MODEL))
    hub.repositories["gpt"] = Repository(dict(MODEL))
    found = resolve(name)
    assert names_in(found) == FETCHED
    assert all((found / file).read_bytes() == MODEL[file] for file in FETCHED)
    assert len(hub.asked("GET", "/resolve/")) == 3
    assert resolve(name) == found
    assert len(hub.asked("GET", "/resolve/")) == 3


def test_a_path_object_may_hold_a_name(hub):
    from pathlib import Path

    hub.repositories["org/name"] = Repository(dict(MODEL))
    assert resolve(Path("hf://org/name")) == resolve("hf://org/name")


def test_only_what_is_read_here_is_fetched(hub):
    unwanted = [
        "pytorch_model.bin",
        "optimizer.pt",
        "model.onnx",
        "onnx/model.safetensors",
        "consolidated.safetensors",
        "code.py",
        "original/config.json",
    ]
    wanted = ["1_Pooling/config.json", "merges.txt", "model-00001-of-00002.safetensors"]
    files = MODEL | dict.fromkeys(unwanted + wanted, b"{}")
    hub.repositories["org/name"] = Repository(files)
    assert names_in(resolve("org/name")) == FETCHED | set(wanted)


def test_a_config_can_be_had_without_weights(hub, monkeypatch):
    hub.repositories["org/name"] = Repository(dict(MODEL))
    assert names_in(resolve("org/name", files=CONFIG_FILES)) == {"config.json"}
    go_offline(monkeypatch)
    assert names_in(resolve("org/name", files=CONFIG_FILES)) == {"config.json"}
    said = refusal("org/name")
    assert "only partly in the cache" in said
    assert "HF_HUB_OFFLINE" in said


def test_revisions(hub):
    hub.repositories["org/name"] = Repository(dict(MODEL))
    assert resolve("hf://org/name@v1") == resolve("org/name", revision="v1")
    assert resolve("org/name@main", revision="main") == resolve("org/name")
    assert "has no revision 'v9'" in refusal("org/name@v9")
    assert "contradict" in refusal("org/name@v1", revision="main")


@pytest.mark.smoke
def test_offline_finds_what_was_fetched_and_says_what_is_missing(hub, monkeypatch, tmp_path):
    hub.repositories["org/name"] = Repository(dict(MODEL))
    found = resolve("org/name")
    go_offline(monkeypatch)
    hub.requests.clear()
    assert resolve("org/name") == resolve("hf://org/name@main") == found
    for name, start in (
        ("hf://org/other", "hf://org/other is not in the cache"),
        ("org/other", "org/other does not exist here, it is not in the cache"),
    ):
        said = refusal(name)
        assert said.startswith(start)
        assert str(tmp_path / "cache") in said
        assert "HF_HUB_OFFLINE" in said
    assert not hub.requests


def build_cache(root, files, commit="a" * 40):
    """The layout that the library documents, without the library."""
    repository = root / "models--org--name"
    write(repository, {"refs/main": commit.encode()})
    for number, (name, data) in enumerate(files.items()):
        write(repository, {f"blobs/{number:040}": data})
        link = repository / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(repository / "blobs" / f"{number:040}", link.parent))
    return repository / "snapshots" / commit


def test_a_cache_that_another_tool_filled_is_used(hub, monkeypatch, tmp_path):
    snapshot = build_cache(tmp_path / "theirs", MODEL)
    go_offline(monkeypatch)
    assert resolve("org/name", cache_dir=tmp_path / "theirs") == snapshot
    assert resolve("org/name@" + "a" * 40, cache_dir=tmp_path / "theirs") == snapshot
    assert "not in the cache" in refusal("org/name@v1", cache_dir=tmp_path / "theirs")


@pytest.mark.parametrize(
    ("lost", "said"),
    [("config.json", "config.json"), ("model-2.safetensors", "model-2.safetensors")],
)
def test_a_half_filled_cache_is_not_a_checkpoint(hub, monkeypatch, tmp_path, lost, said):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1.safetensors": b"",
        "model-2.safetensors": b"",
    }
    go_offline(monkeypatch)
    cache = tmp_path / "theirs"
    snapshot = build_cache(cache, files)
    assert resolve("org/name", cache_dir=cache) == snapshot
    (snapshot / lost).unlink()
    assert f"({snapshot} has no {said})" in refusal("org/name", cache_dir=cache)


def test_no_network_and_a_hub_in_trouble(hub, monkeypatch, tmp_path):
    hub.repositories["org/name"] = Repository(dict(MODEL))
    found = resolve("org/name")
    hub.broken = 503
    assert resolve("org/name") == found
    assert "answered 503" in refusal("org/other")
    hub.broken = 429
    assert "too many requests" in refusal("org/other")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve("org/name") == found
    said = refusal("org/other")
    assert said.startswith("org/other does not exist here, it is not in the cache")
    assert "the hub at http://127.0.0.1:9 cannot be reached (" in said


def test_what_the_hub_does_not_give(hub):
    assert "nowhere does not exist here, and the hub" in refusal("nowhere")
    said = refusal("hf://org/none")
    assert "shows no model org/none" in said
    assert "HF_TOKEN" in said
    hub.repositories["org/gated"] = Repository(dict(MODEL), gated=True)
    said = refusal("hf://org/gated")
    assert "accept its terms on" in said
    assert f"{hub.endpoint}/org/gated" in said
    hub.repositories["org/data"] = Repository({"data.csv": b""})
    assert "holds no checkpoint" in refusal("org/data")


def test_a_pickle_is_refused_before_it_is_fetched(hub):
    hub.repositories["org/old"] = Repository({"config.json": b"{}", "pytorch_model.bin": b"x"})
    said = refusal("org/old")
    assert "pickle (pytorch_model.bin), which can run code" in said
    assert "save_pretrained" in said
    assert not hub.asked("GET", "/resolve/")
    assert names_in(resolve("org/old", files=CONFIG_FILES)) == {"config.json"}


def test_a_repository_cannot_write_outside_its_directory(hub, tmp_path):
    name = "additional_chat_templates/../../../../evil.jinja"
    hub.repositories["org/evil"] = Repository(MODEL | {name: b"x", "../evil.json": b"x"})
    assert "outside its own directory" in refusal("org/evil")
    assert not list(tmp_path.rglob("evil*"))


def test_a_full_disk_is_known_before_the_first_byte(hub, monkeypatch):
    hub.repositories["org/name"] = Repository(dict(MODEL))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9, 9, 100))
    with pytest.raises(CapacityError, match=r"needs 5,\d+ more bytes and the disk of .* has 100;"):
        resolve("org/name")
    assert not hub.asked("GET", "/resolve/")


def test_a_disk_that_fills_up_is_one_sentence(hub, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    hub.repositories["org/name"] = Repository(dict(MODEL))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(CapacityError, match="is full"):
        resolve("org/name")


def test_fetching_reports_every_byte_through_our_progress(hub, monkeypatch):
    hub.repositories["org/name"] = Repository(MODEL | {"model.safetensors": bytes(3_000_000)})
    shown = io.StringIO()
    monkeypatch.setattr(progress, "_console", Console(file=shown, width=100))
    advanced = []
    monkeypatch.setattr(progress._Lines, "advance", lambda _, n=1, **info: advanced.append(n))
    resolve("org/name")
    assert sum(advanced) == 3000
    assert re.fullmatch(r"✓ Fetching org/name · 3,000 kB in [\d.]+ s\n", shown.getvalue())
    resolve("org/name")
    assert shown.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [
        ("hf://org/name", "org/name", None),
        ("gpt2", "gpt2", None),
        ("hf://Org_1/a.b-c@refs/pr/1", "Org_1/a.b-c", "refs/pr/1"),
        ("a/b@v1.0", "a/b", "v1.0"),
    ],
)
def test_names(text, repository, revision):
    name = parse_name(text)
    assert (name.repository, name.revision) == (repository, revision)
    assert parse_name(str(name)) == name


@pytest.mark.parametrize(
    "text",
    ["", "hf://", "a b", "모델", "a/b/c", "a//b", "..", "a/..", "-a", "a--b", "a.git", "/a", "a/",
     "a\0b", "a\n", "hf://a@", "a@../x", "a@-x", "a@x//y", "a@b@c", "x" * 97,
     f"{50 * 'x'}/{50 * 'x'}"],
)  # fmt: skip
def test_what_is_no_name(text):
    with pytest.raises(RequestError, match="cannot be"):
        parse_name(text)


@given(st.text(st.sampled_from("ab./-_@~:% \\\0가"), max_size=12))
def test_no_name_leaves_the_cache(text):
    try:
        name = parse_name(text)
    except RequestError:
        return
    for part in (*name.repository.split("/"), *(name.revision or "x").split("/")):
        assert part not in ("", ".", "..")
        assert not set(part) & set("\\\0:%~ @")


def test_illegal_names_say_where_they_were_looked_for(hub):
    assert "모델 does not exist here, and '모델' cannot be the name" in refusal("모델")
    assert refusal("hf://a b").startswith("'hf://a b' cannot be the name")
    assert not hub.requests


@pytest.mark.smoke
def test_a_checkpoint_goes_up_and_comes_back(hub, tmp_path):
    more = {"stage.json": b"{}", "notes/private.txt": b"secret", "1_Pooling/config.json": b"{}"}
    folder = write(tmp_path / "model", MODEL | more)
    assert upload(folder, "hf://org/name", message="first") == f"{hub.endpoint}/org/name"
    stored = hub.repositories["org/name"]
    assert stored.private
    assert stored.messages == ["first"]
    sent = MODEL | {"1_Pooling/config.json": b"{}"}
    assert {k: v for k, v in stored.files.items() if k != ".gitattributes"} == sent
    assert len(hub.asked("POST", "/commit/")) == 1
    back = resolve("hf://org/name")
    assert all((back / name).read_bytes() == sent[name] for name in names_in(back))
    assert names_in(back) == FETCHED | {"1_Pooling/config.json"}


def test_a_later_upload_leaves_no_old_weights_behind(hub, tmp_path):
    old = {"model-00001-of-00001.safetensors": b"old", "model.safetensors.index.json": b"{}"}
    hub.repositories["org/name"] = Repository(old | {"notes.txt": b"", "README.md": b"# old"}, True)
    upload(write(tmp_path / "model", MODEL), "org/name")
    assert set(hub.repositories["org/name"].files) == {*MODEL, "notes.txt"}


def test_the_card_is_sent_unless_there_is_a_readme(hub, tmp_path):
    folder = write(tmp_path / "model", MODEL)
    upload(folder, "org/name", card="# ours")
    assert hub.repositories["org/name"].files["README.md"] == b"# a model"
    (folder / "README.md").unlink()
    upload(folder, "org/name", card="# 우리 모델")
    assert hub.repositories["org/name"].files["README.md"].decode() == "# 우리 모델"
    assert not (folder / "README.md").exists()


def test_private_weights_do_not_become_public_by_mistake(hub, tmp_path):
    folder = write(tmp_path / "model", MODEL)
    upload(folder, "org/name", private=False)
    assert not hub.repositories["org/name"].private
    with pytest.raises(RequestError, match="is public"):
        upload(folder, "org/name")
    assert len(hub.repositories["org/name"].messages) == 1


def test_an_upload_that_the_hub_refuses(hub, tmp_path, monkeypatch):
    folder = write(tmp_path / "model", MODEL)
    hub.token = "right"
    with pytest.raises(CheckpointError, match=r"does not know who asks.*HF_TOKEN"):
        upload(folder, "org/name", token="wrong")
    upload(folder, "org/name", token="right")
    hub.may_write = False
    with pytest.raises(CheckpointError, match="forbids this"):
        upload(folder, "org/name", token="right")
    with pytest.raises(CheckpointError, match="forbids this"):
        upload(folder, "org/another", token="right")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"hub at http://127.0.0.1:9 cannot be reached"):
        upload(folder, "org/name")
    go_offline(monkeypatch)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        upload(folder, "org/name")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("org/name@v1", "leave out the revision"),
        ("name", "give hf://OWNER/name"),
        ("../name", "cannot be the name"),
    ],
)
def test_where_an_upload_cannot_go(hub, tmp_path, name, said):
    with pytest.raises(RequestError, match=said):
        upload(write(tmp_path / "model", MODEL), name)
    assert not hub.requests


def sharded(*names):
    return json.dumps({"weight_map": {str(i): name for i, name in enumerate(names)}}).encode()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tokenizer.json": b"{}"}, "has no config.json"),
        ({"config.json": b"{}"}, "has no model.safetensors"),
        (MODEL | {"optimizer.pt": b""}, r"holds a pickle \(optimizer.pt\)"),
        ({"config.json": b"{}", "model.safetensors.index.json": b"{}"}, "no readable 'weight_map'"),
        (
            {"config.json": b"{}", "model.safetensors.index.json": sharded("a.safetensors")},
            "has no a.safetensors",
        ),
        (
            {"config.json": b"{}", "model.safetensors.index.json": sharded("../x.safetensors")},
            "outside its directory",
        ),
        ({"adapter_config.json": b"{}"}, "has no adapter_model.safetensors"),
        ({"config.json": b"{}", "model.safetensors": weights(500)[:-1]}, "is truncated"),
        ({"config.json": b"{}", "model.safetensors": b""}, "is truncated"),
    ],
)
def test_what_is_no_checkpoint_is_not_sent(hub, tmp_path, files, said):
    folder = write(tmp_path / "model", files)
    with pytest.raises(CheckpointError, match=said):
        upload(folder, "org/name")
    assert not hub.requests


def test_the_files_of_a_sharded_checkpoint_and_of_an_adapter(tmp_path):
    index = sharded("model-1.safetensors", "model-2.safetensors")
    shards = {"config.json": b"{}", "model.safetensors.index.json": index}
    shards |= {"model-1.safetensors": weights(100), "model-2.safetensors": weights(200)}
    folder = write(tmp_path / "sharded", shards | {"other.safetensors": b""})
    assert {file.name for file in checkpoint_files(folder)} == set(shards)
    adapter = {
        "adapter_config.json": b"{}",
        "adapter_model.safetensors": weights(100),
        "LICENSE": b"",
    }
    folder = write(tmp_path / "adapter", adapter)
    assert {file.name for file in checkpoint_files(folder)} == set(adapter)


def test_the_library_is_imported_only_where_it_is_used(tmp_path):
    code = (
        "import sys, hone.core.hub as hub; hub.parse_name('a/b'); hub.resolve('.');"
        "print('huggingface_hub' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
