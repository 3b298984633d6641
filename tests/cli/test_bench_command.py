"""``hone bench serve`` from the command line."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from scripted_server import Script, error, serving
from typer.testing import CliRunner

from hone.cli.app import app


def run(*words, code=0):
    result = CliRunner().invoke(app, ["bench", "serve", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def refused(capsys, monkeypatch, *words):
    from hone.cli.app import main

    monkeypatch.setattr(sys, "argv", ["hone", "bench", "serve", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code, " ".join(capsys.readouterr().err.split())


def test_figures_are_printed_written_and_drawn(tmp_path):
    def behave(number, body):
        return error(429, "later", **{"Retry-After": "0"}) if number == 5 else "good"

    script = Script(behave)
    with serving(script) as url:
        words = (url, "--requests", 10, "--concurrency", 2, "--lengths", "40:6", "--seed", 3)
        found = json.loads(run(*words, "--json", "-o", tmp_path).stdout)
    assert (found["sent"], found["whole"], found["refused"], found["errors"]) == (10, 9, 1, {})
    assert found["output_tokens"] == 54
    # 40 tokens are 18 or 19 words for this server.
    assert 9 * 38 <= found["prompt_tokens"] <= 9 * 42
    assert found["settings"]["model"] == "scripted"
    assert found["settings"]["concurrency"] == 2
    assert json.loads((tmp_path / "report.json").read_text()) == found
    lines = (tmp_path / "requests.jsonl").read_text().splitlines()
    assert len(lines) == 10
    assert [json.loads(line)["trouble"] for line in lines].count("429") == 1
    assert (tmp_path / "load.svg").read_text().startswith("<?xml")
    assert all(body["temperature"] == 0.0 for body in script.seen)


def test_a_table_for_people(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "안녕"}]}\n', encoding="utf-8")

    def behave(number, body):
        return error(500, "broken") if number == 5 else "good"

    with serving(Script(behave)) as url:
        words = ("--api", "chat", "--rate", 50, "--requests", 6, "--slo-ttft", 30, "--ignore-eos")
        text = run(url, *words, "--lengths", file).stdout
    for part in ("time to the first token", "p99", "goodput", "5 whole", "1 × HTTP 500: broken"):
        assert part in text


def test_a_load_without_a_whole_answer_has_failed():
    def behave(number, body):
        return "good" if number <= 3 else error(500, "broken")

    with serving(Script(behave)) as url:
        assert "3 × HTTP 500" in run(url, "--requests", 3, "--concurrency", 3, code=1).stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--rate", 1, "--concurrency", 2), "Give --rate or --concurrency"),
        (("--requests", 1, "--seconds", 2), "Give --requests or --seconds"),
        (("--rate", 0), "--rate is 0.0; give a number above 0."),
        (("--lengths", "long"), "--lengths is 'long'; give mix"),
        (("--vocabulary", 9, "--api", "chat"), "a chat takes no token ids"),
        (("--plot", "load.txt"), "load.txt is not the name of a picture"),
        (("ftp://host",), "'ftp://host' is no server"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(capsys, monkeypatch, words, sentence):
    code, told = refused(capsys, monkeypatch, *words)
    assert code == 2
    assert sentence in told


def test_messages_need_a_chat(capsys, monkeypatch, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "안녕"}]}\n', encoding="utf-8")
    code, told = refused(capsys, monkeypatch, "--lengths", file)
    assert (code, "ask with --api chat" in told) == (2, True)


def test_nobody_there_is_one_sentence(capsys, monkeypatch):
    code, told = refused(capsys, monkeypatch, "http://127.0.0.1:9")
    assert code == 1
    assert told.startswith("error: Nothing answers at http://127.0.0.1:9/v1: connection refused.")


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_an_interrupt_prints_what_was_measured():
    script = Script(lambda number, body: "hang" if number == 9 else "good")
    with serving(script) as url:
        command = [sys.executable, "-m", "hone", "bench", "serve", url, "--json"]
        process = subprocess.Popen(
            [*command, "--concurrency", "2", "--seconds", "300", "--lengths", "9:3"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            deadline = time.monotonic() + 60
            while len(script.seen) < 15 and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert "Traceback" not in err
    found = json.loads(out)
    assert found["stopped"]
    assert found["whole"] >= 5
    assert found["unfinished"] >= 1
