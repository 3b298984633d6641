"""A recipe that goes through every stage in seconds, for tests."""

from pathlib import Path

TEXT = """
name = "tiny"
[data]
questions = 400
held_out = 12
[tokenizer]
vocab_size = 400
[model]
hidden = 32
layers = 1
heads = 2
kv_heads = 1
ffn = 64
context = 256
[train]
steps = 24
tokens_per_step = 512
warmup_steps = 2
checkpoint_every = 4
precision = "fp32"
[eval]
max_tokens = 12
[quantize]
method = "int8"
"""


def write_recipe(folder: Path, more: str = "") -> Path:
    path = folder / "tiny.toml"
    path.write_text(TEXT + more)
    return path
