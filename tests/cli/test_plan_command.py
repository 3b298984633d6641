import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from hone.cli.app import app

LLAMA_1B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA_1B), encoding="utf-8")
    return file


def run(*words, code=0):
    result = CliRunner().invoke(app, ["plan", *map(str, words)])
    if code == 0:
        assert result.exception is None, result.output
    return result


def refused(capsys, monkeypatch, *words):
    from hone.cli.app import main

    monkeypatch.setattr(sys, "argv", ["hone", "plan", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code, " ".join(capsys.readouterr().err.split())


@pytest.mark.smoke
def test_json_of_a_training_job(config):
    result = run(config, "--device", "l4", "--batch", 2, "--length", 1024, "--json")
    found = json.loads(result.stdout)
    assert found["parameters"] == 1_235_814_400
    assert found["peak"] == sum(found["parts"].values())
    assert found["fits"] is False
    assert 1 <= len(found["changes"]) <= 3
    assert all(change["peak"] <= found["device"]["usable"] for change in found["changes"])
    assert found["job"]["precision"] == "bf16"


def test_a_directory_a_file_and_a_run_are_the_same(config, tmp_path):
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    config.rename(tmp_path / "run" / "checkpoint" / "config.json")
    peaks = {
        json.loads(run(path, "--mode", "serve", "--json").stdout)["peak"]
        for path in (
            tmp_path / "run",
            tmp_path / "run" / "checkpoint",
            tmp_path / "run" / "checkpoint" / "config.json",
        )
    }
    assert len(peaks) == 1


def test_the_table_says_what_matters(config):
    words = ("--device", "h100", "--method", "lora", "--tokens", "1G", "--price-per-hour", 3)
    text = run(config, *words).stdout
    for part in ("weights", "activations", "peak", "It fits", "tokens per second", "cost"):
        assert part in text
    text = run(config, "--mode", "serve", "--device", "l4", "--requests", 500).stdout
    for part in (
        "keys and values",
        "does not fit",
        "most requests",
        "compute-bound",
        "make it fit",
    ):
        assert part in text


def test_own_figures_of_a_device(config):
    words = ("--memory", "6GiB", "--bandwidth", "40GB/s", "--flops", "300G", "--json")
    found = json.loads(run(config, *words).stdout)
    assert found["device"]["memory"] == 6 * 2**30
    assert found["device"]["bandwidth"] == 40e9
    assert found["device"]["flops_32"] == 300e9


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_picture_is_written_whole(config, tmp_path, suffix):
    file = tmp_path / f"plan{suffix}"
    run(config, "--device", "t4", "--picture", file)
    content = file.read_bytes()
    assert content.startswith(b"<?xml" if suffix == ".svg" else b"\x89PNG")
    assert len(content) > 5000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", file.name]


@pytest.mark.parametrize(
    ("memory", "drawn"), [("100GB", False), ("42GB", True), ("36GB", True), ("1GB", True)]
)
def test_the_picture_is_scaled_to_the_peak(config, memory, drawn, monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    figures = []

    def kept(figure, file, **_):
        figures.append(figure)
        file.touch()

    monkeypatch.setattr(Figure, "savefig", kept)
    words = ("--batch", 4, "--device", "l4", "--memory", memory)
    peak = json.loads(run(config, *words, "--json").stdout)["peak"] / 1e9
    run(config, *words, "--picture", tmp_path / "plan.svg")
    (axes,) = figures[0].axes
    assert axes.get_xlabel() == "GB"
    assert peak < axes.get_xlim()[1] < 1.3 * peak
    assert len(axes.lines) == drawn
    limit = next(text for text in axes.texts if "NVIDIA L4" in text.get_text())
    assert limit.get_text().endswith("→") != drawn
    shares = [text.get_text() for text in axes.texts if text.get_text().endswith("%")]
    assert "29%" in shares
    assert not {"0%", "1%", "2%"} & set(shares)


def test_what_is_slow_to_load_is_not_loaded(config):
    script = (
        "import sys; sys.argv = ['hone', 'plan', "
        f"{str(config)!r}, '--device', 'l4']\n"
        "from hone.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print({'torch', 'numpy', 'matplotlib', 'safetensors'} & set(sys.modules) or 'nothing')"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "nothing"


def test_what_is_wrong_is_said_in_a_sentence(config, tmp_path, capsys, monkeypatch):
    cases = {
        ("--device", "h10"): (2, 'Did you mean "h100"'),
        ("--memory", "lots"): (2, '--memory is "lots"; expected a size such as 24GB'),
        ("--memory", "-3GB"): (2, "expected a size"),
        ("--tokens", "2X"): (2, '--tokens is "2X"; expected a number such as 500M or 2G'),
        ("--tensor", "3"): (2, "over 3 devices cannot share out 32 heads of attention with 8 of"),
        ("--optimizer", "adamw8"): (2, "optimizer is 'adamw8'"),
        ("--batch", "0"): (2, "number of sequences is 0"),
        ("--trained-share", "2"): (2, "--trained-share is 2"),
        ("--efficiency", "7"): (2, "--efficiency is 7"),
        ("--picture", str(tmp_path / "plan.gif")): (2, "end it in one of .svg, .png"),
        ("--method", "lora", "--targets", "q_prj"): (2, "matches the targets q_prj"),
    }
    for words, (code, message) in cases.items():
        found = refused(capsys, monkeypatch, config, *words)
        assert found[0] == code, words
        assert message in found[1], found
        assert "Traceback" not in found[1]


@pytest.fixture
def gpt2(tmp_path):
    file = tmp_path / "gpt2.json"
    values = {"model_type": "gpt2", "vocab_size": 500, "n_embd": 64, "n_layer": 2, "n_head": 4}
    file.write_text(json.dumps(values | {"n_positions": 256}), encoding="utf-8")
    return file


def test_lengths_are_no_more_than_the_positions_that_were_learned(gpt2, capsys, monkeypatch):
    for words in (("--length", 300), ("--mode", "serve", "--context", 300)):
        code, text = refused(capsys, monkeypatch, gpt2, *words)
        assert code == 2
        assert "300 tokens and the model has learned 256 positions" in text
    assert json.loads(run(gpt2, "--json").stdout)["job"]["lengths"] == [256] * 8
    assert json.loads(run(gpt2, "--mode", "serve", "--json").stdout)["job"]["context"] == 256


def test_lengths_beyond_the_context_are_a_warning(config):
    words = (config, "--mode", "serve", "--context", 200_000)
    (warning,) = json.loads(run(*words, "--json").stdout)["warnings"]
    assert "200,000 tokens and the model was made for 131,072" in warning
    assert warning in run(*words).stdout
    found = json.loads(run(config, "--json").stdout)
    assert found["warnings"] == []
    assert found["job"]["lengths"] == [1024] * 8


def test_what_does_not_fit_is_an_answer(config):
    result = run(config, "--memory", "1MB")
    assert result.exit_code == 0
    assert "No change that hone knows" in result.stdout


def test_no_model_there(tmp_path, capsys, monkeypatch):
    (tmp_path / "list.json").write_text("[]", encoding="utf-8")
    (tmp_path / "chats.jsonl").write_text("{}", encoding="utf-8")
    (tmp_path / "other.json").write_text('{"model_type": "lama"}', encoding="utf-8")
    for path, message in {
        tmp_path: "no config.json",
        tmp_path / "chats.jsonl": "is a file; give the directory of a checkpoint or a run.",
        tmp_path / "list.json": "expected a JSON object",
        tmp_path / "other.json": "an architecture that hone does not read",
    }.items():
        code, text = refused(capsys, monkeypatch, path)
        assert code == 1
        assert message in text, text
