"""`hone generate`, `hone chat` and `hone quantize`, through the entry of the command line."""

import io
import json
import sys

import pytest
import torch

import hone
from hone.cli import chat as chat_command
from hone.cli import generate as generate_command
from hone.cli.app import app, main
from hone.models import CausalLM, ModelConfig, save_checkpoint
from hone.text.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant: "
)


@pytest.fixture(autouse=True)
def _one_thread():
    """Two threads gain nothing at these sizes, and wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = Tokenizer.train(["안녕 hello 😀"] * 3, 300, chat_template=TEMPLATE)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=96,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    llama = CausalLM(config, torch.float32)
    llama.initialise(seed=1)
    folder = tmp_path_factory.mktemp("cli") / "model"
    save_checkpoint(folder, llama, tokenizer)
    return folder


@pytest.fixture
def hone_command(monkeypatch, capsysbinary):
    """Run `hone ...`: (exit code, standard output, standard error)."""

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["hone", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsysbinary.readouterr()
        try:
            main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capsysbinary.readouterr()
        return code, out.decode(), err.decode()

    return run


@pytest.mark.smoke
def test_one_prompt_is_streamed_as_text(hone_command, model):
    (expected,) = hone.load(model).generate("안녕", hone.SamplingParams(max_tokens=9))
    code, out, err = hone_command("generate", model, "안녕", "--max-tokens", 9)
    assert (code, out) == (0, expected.text + "\n")
    assert "tokens/s" in err
    assert hone_command("generate", model, "-", "--max-tokens", 9, stdin="안녕".encode())[1] == out


def test_many_prompts_keep_their_order_and_fields(hone_command, model, tmp_path):
    lines = [
        {"id": 7, "prompt": "hello 안녕 안녕"},
        {"messages": [{"role": "user", "content": "안녕"}]},
        {"prompt": "a\u2028b", "note": "💡"},
    ]
    file = tmp_path / "prompts.jsonl"
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n"
    file.write_text(text, encoding="utf-8")
    options = ("--max-tokens", 6, "--stop", "x", "--stop", "y")
    out = tmp_path / "out" / "answers.jsonl"
    assert hone_command("generate", model, "--file", file, "-o", out, *options)[0] == 0
    written = out.read_text(encoding="utf-8")
    found = [json.loads(line) for line in written.split("\n")[:-1]]
    added = {"text", "finish_reason", "tokens"}
    assert [{k: line[k] for k in line.keys() - added} for line in found] == lines
    lm = hone.load(model)
    params = hone.SamplingParams(max_tokens=6, stop=["x", "y"])
    prompts = [lines[0]["prompt"], lm.chat_prompt(lines[1]["messages"]), lines[2]["prompt"]]
    assert [line["text"] for line in found] == [r.text for r in lm.generate(prompts, params)]
    assert all(line["finish_reason"] in ("stop", "length") for line in found)
    printed = hone_command(
        "generate", model, "--file", "-", "--json", *options, stdin=text.encode()
    )
    assert printed[1] == written


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": ', "line 2: not valid JSON"),
        ('["a"]', "line 2: expected an object"),
        ('{"text": "a"}', "line 2: expected one of `prompt` and `messages`, found 'text'"),
        ('{"prompt": 5}', "line 2: `prompt` is 5"),
        ('{"messages": "a"}', "line 2: `messages` is 'a'"),
        ('{"messages": [{"content": "a"}]}', "line 2: Message 1"),
        ('{"prompt": "a", "messages": []}', "found both"),
    ],
)
def test_a_bad_line_is_named(hone_command, model, tmp_path, line, said):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n' + line + "\n", encoding="utf-8")
    out = tmp_path / "out.jsonl"
    code, _, err = hone_command("generate", model, "--file", file, "-o", out)
    assert code in (1, 2)
    assert said in err
    assert "Traceback" not in err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "Nothing to continue"),
        (("a", "--file", "b"), 2, "not both"),
        (("--file", "no-such-file"), 1, "no-such-file"),
        (("a", "--temperature", "-1"), 2, "temperature"),
        (("a", "--dtype", "int9"), 1, "int9"),
        (("a " * 200,), 2, "this model reads 96"),
    ],
)
def test_a_wrong_request_is_one_sentence(hone_command, model, arguments, code, said):
    found, _, err = hone_command("generate", model, *arguments)
    assert found == code
    assert said in err.replace("\n", " ")
    assert "Traceback" not in err


def test_a_model_that_is_not_there(hone_command, tmp_path):
    code, _, err = hone_command("generate", tmp_path / "nothing", "a")
    assert code == 1
    assert "does not exist" in err


@pytest.mark.smoke
def test_a_chat_goes_on_until_its_end(hone_command, model):
    lines = "안녕\n/help\n/reset\n안녕\n\n안녕\n/exit\nnever read\n"
    options = ("--max-tokens", 7, "--system", "hello", "--stop", "\n")
    code, out, err = hone_command("chat", model, *options, stdin=lines.encode())
    assert code == 0
    assert "no command /help" in err
    assert "forgotten" in err
    lm, params = hone.load(model), hone.SamplingParams(max_tokens=7, stop="\n")
    history = [{"role": "system", "content": "hello"}, {"role": "user", "content": "안녕"}]
    (first,) = lm.generate(lm.chat_prompt(history), params)
    history += [{"role": "assistant", "content": first.text}, history[1]]
    (second,) = lm.generate(lm.chat_prompt(history), params)
    assert out.split("\n") == [first.text, first.text, second.text, ""]


def test_a_conversation_that_is_too_long_can_be_reset(hone_command, model):
    lines = "a " * 200 + "\n안녕\n"
    code, out, err = hone_command("chat", model, "--max-tokens", 5, stdin=lines.encode())
    assert code == 0
    assert "/reset starts over" in err
    assert out.strip()


def test_ctrl_c_keeps_what_was_said(model, monkeypatch, capsys):
    lm = hone.load(model)
    calls = []

    def interrupted(self, ids, params, stream):
        calls.append(ids)
        stream(0, "half an ")
        raise KeyboardInterrupt

    monkeypatch.setattr(hone.LM, "generate", interrupted)
    history = [{"role": "user", "content": "안녕"}]
    assert chat_command._answer(lm, history, hone.SamplingParams()) == "half an "
    assert capsys.readouterr().out == "half an \n"
    assert len(calls) == 1


def test_a_model_without_a_template_cannot_chat(hone_command, model, tmp_path):
    import shutil

    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    code, _, err = hone_command("chat", tmp_path / "model", stdin=b"hello\n")
    assert code == 1
    assert "no chat template" in err.replace("\n", " ")


@pytest.mark.parametrize("method", ["int8", "nf4"])
def test_quantize_writes_a_smaller_model_that_generates(hone_command, model, tmp_path, method):
    out = tmp_path / method
    code, text, _ = hone_command("quantize", model, "--method", method, "-o", out, "--json")
    assert code == 0
    record = json.loads(text)
    assert record["bytes"] == (out / "model.safetensors").stat().st_size < record["bytes_before"]
    assert hone_command("generate", out, "안녕", "--max-tokens", 3)[0] == 0
    assert hone_command("quantize", out, "-o", tmp_path / "again")[0] == 1


def test_the_commands_explain_themselves():
    from typer.testing import CliRunner

    for command in ("generate", "chat", "quantize"):
        shown = CliRunner().invoke(app, [command, "--help"])
        assert shown.exit_code == 0
        assert "help" in shown.output
    assert generate_command.generate.__doc__
