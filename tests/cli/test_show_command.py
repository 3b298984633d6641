"""`hone show`: figures from config.json alone."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from hone.cli.app import app
from hone.core.errors import CheckpointError
from hone.models import CausalLM, ModelConfig, load_model, save_checkpoint


@pytest.fixture
def folder(tmp_path):
    model = CausalLM(ModelConfig(300, 32, 48, 2, 4, 2, max_position_embeddings=128))
    model.initialise(seed=0)
    save_checkpoint(tmp_path / "m", model)
    return tmp_path / "m"


def test_the_figures_are_those_of_the_model(folder):
    weights = load_model(folder)
    (folder / "model.safetensors").unlink()
    shown = CliRunner().invoke(app, ["show", str(folder), "--json"])
    assert shown.exit_code == 0, shown.output
    record = json.loads(shown.output)
    assert record["parameters"]["total"] == sum(p.numel() for p in weights.parameters())
    assert (
        sum(v for k, v in record["parameters"].items() if k not in ("total", "active"))
        == (record["parameters"]["total"])
    )
    assert record["weight_bytes"]["bfloat16"] == 2 * record["parameters"]["total"]
    # Keys and values: 2 tensors, 2 layers, 2 heads of 8 numbers.
    assert record["kv_bytes_per_token"] == {"float32": 256, "bfloat16": 128}
    assert "grouped-query attention" in record["features"]
    table = CliRunner().invoke(app, ["show", str(folder)]).output
    assert "4 query, 2 key/value of 8" in table
    assert "LlamaForCausalLM" in table


def test_int8_is_what_quantizing_writes(folder, tmp_path):
    from hone.quant import quantize_checkpoint

    record = json.loads(CliRunner().invoke(app, ["show", str(folder), "--json"]).output)
    quantize_checkpoint(folder, tmp_path / "q")
    file = tmp_path / "q" / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert record["weight_bytes"]["int8"] == file.stat().st_size - header


def test_what_cannot_be_read_is_one_sentence(folder, tmp_path):
    (folder / "config.json").write_text('{"model_type": "lama"}')
    result = CliRunner().invoke(app, ["show", str(folder)])
    assert isinstance(result.exception, CheckpointError)
    assert 'Did you mean "llama"' in str(result.exception)
    shutil.rmtree(folder)
    result = CliRunner().invoke(app, ["show", str(folder)])
    assert isinstance(result.exception, CheckpointError)


def test_a_model_of_any_size_is_shown_without_its_memory_or_torchs_compiler(folder):
    import subprocess
    import sys

    values = json.loads((folder / "config.json").read_text())
    values |= {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64}
    (folder / "config.json").write_text(json.dumps(values | {"head_dim": 128}))
    code = (
        "import sys; from hone.models import load_config\n"
        "from hone.models.summary import summarise\n"
        f"print(summarise(load_config({str(folder)!r})).total, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    total, compiler = done.stdout.split()
    assert int(total) > 10**10
    assert compiler == "False"
