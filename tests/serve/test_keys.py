"""API keys: where they come from, whose they are, and that nothing shows them."""

import hmac
import pickle

import pytest

from hone.core.errors import ConfigError
from hone.serve import keys as keys_module
from hone.serve.keys import KeyRing


def written(tmp_path, text):
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600)
    return file


@pytest.mark.smoke
def test_keys_of_a_file_and_of_the_environment(tmp_path):
    file = written(
        tmp_path,
        "# who may ask\n\nkim: sk-kim-1\n  영업팀: sk-sales  \nsk-nameless\nkim: sk-kim-2\n",
    )
    ring = KeyRing.load(file, {"HONE_API_KEYS": "ci: sk-ci, sk-other"})
    assert ring.owner("sk-kim-1") == ring.owner("sk-kim-2") == "kim"
    assert ring.owner("sk-sales") == "영업팀"
    assert ring.owner("sk-ci") == "ci"
    assert ring.owner("sk-nameless").startswith("key-")
    assert ring.owner("sk-nameless") != ring.owner("sk-other")
    for wrong in (None, "", "sk-kim-3", "sk-kim-1 ", "SK-KIM-1", "kim", "sk-\udcff", "비밀"):
        assert ring.owner(wrong) is None


def test_without_keys_everybody_is_the_same_nobody():
    ring = KeyRing.load(None, {})
    assert not ring
    assert ring.owner(None) == ring.owner("anything") == ""


def test_every_key_is_compared_whichever_it_is(monkeypatch):
    ring = KeyRing([(None, f"sk-{i}") for i in range(20)])
    compared = []
    really = hmac.compare_digest

    def compare(one, other):
        compared.append((len(one), len(other)))
        return really(one, other)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)
    for key in ("sk-0", "sk-19", "wrong", "x" * 100_000):
        compared.clear()
        ring.owner(key)
        assert compared == [(32, 32)] * 20


def test_nothing_shows_a_key():
    ring = KeyRing([("kim", "sk-secret-kim"), (None, "sk-secret-other")])
    shown = repr(ring) + str(ring) + repr(vars(ring)) + repr(pickle.dumps(ring))
    assert "secret" not in shown
    assert repr(ring) == "KeyRing(2 keys)"


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("kim:sk-secret", "line 1", "write `name: key`"),
        ("a: sk-1\nb: sk secret", "line 2", "without spaces"),
        ("a: sk-비밀", "line 1", "of ASCII"),
        ("kim: ", "line 1", "write `name: key`"),
        ("a: sk-secret\n\nb: sk-secret", "line 3", "the same key"),
    ],
)
def test_a_wrong_line_is_named_and_not_shown(tmp_path, text, where, words):
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        KeyRing.load(file, {})
    assert f"{file}, {where}" in str(caught.value)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "비밀" not in str(caught.value)


def test_a_file_without_keys_does_not_open_the_server(tmp_path):
    with pytest.raises(ConfigError, match="holds no key"):
        KeyRing.load(written(tmp_path, "# none yet\n"), {})
    with pytest.raises(ConfigError, match="Cannot read"):
        KeyRing.load(tmp_path / "absent", {})
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        KeyRing.load(tmp_path / "bytes", {})


def test_the_environment_is_named_when_it_is_wrong():
    with pytest.raises(ConfigError, match="HONE_API_KEYS, part 2: a colon without a space"):
        KeyRing.load(None, {"HONE_API_KEYS": "sk-1,kim:sk-2"})


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_file_that_others_can_read_gets_a_warning(tmp_path, caplog, mode, warned):
    file = written(tmp_path, "sk-1")
    file.chmod(mode)
    KeyRing.load(file, {})
    assert ("chmod 600" in caplog.text) == warned
