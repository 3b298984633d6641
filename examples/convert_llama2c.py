"""Turn a llama2.c model and its tokenizer into a checkpoint directory.

    python examples/convert_llama2c.py stories260K.bin tok512.bin -o stories260k

The result opens in hone (``hone generate stories260k``) and in transformers. The format is the
"legacy" one of https://github.com/karpathy/llama2.c (``export.py``, version 0): seven int32, then
float32 weights in a fixed order, query and key rows ordered for interleaved rotary positions.
"""

import argparse
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, processors

from hone.core.errors import CheckpointError, HoneError
from hone.models import CausalLM, ModelConfig, save_checkpoint
from hone.text.tokenizer import Tokenizer

_MAGIC = 0x616B3432  # "ak42": the newer, versioned formats begin with it
_UNKNOWN, _BOS, _EOS = "<unk>", "<s>", "</s>"
_FIRST_BYTE = 3  # ids 3 to 258 stand for the bytes 0 to 255


def read_bytes(path: Path) -> bytes:
    """The file's content, or a sentence why there is none."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error


def read_config(path: Path, data: bytes) -> ModelConfig:
    """The sizes in the first 28 bytes."""
    if len(data) < 28:
        raise CheckpointError(f"{path} has {len(data)} bytes; a llama2.c model begins with 28.")
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack_from("<7i", data)
    if dim == _MAGIC:
        raise CheckpointError(
            f"{path} is of a newer llama2.c format (it begins with 'ak42'); export it again with "
            "`--version 0`."
        )
    sizes = (dim, hidden, layers, heads, kv_heads, abs(vocab), length)
    if min(sizes) < 1 or max(sizes) > 1 << 24:
        raise CheckpointError(f"{path} is no llama2.c model: its first seven numbers are {sizes}.")
    try:
        return ModelConfig(
            vocab_size=abs(vocab),
            hidden_size=dim,
            intermediate_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=length,
            norm_eps=1e-5,
            # A negative vocabulary size marks an output layer of its own.
            tie_word_embeddings=vocab > 0,
            bos_token_id=1,
            eos_token_id=2,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path} is no llama2.c model: {error}") from error


def half_split(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of each head from pairs (2i, 2i + 1) to pairs (i, i + D/2)."""
    rows, inputs = weight.shape
    pairs = weight.view(heads, rows // heads // 2, 2, inputs)
    return pairs.transpose(1, 2).reshape(rows, inputs)


def read_model(path: Path) -> CausalLM:
    """The model of a llama2.c file.

    Raises:
        CheckpointError: not such a file, or one of another length than its sizes ask for.
    """
    data = read_bytes(path)
    config = read_config(path, data)
    e, f, d = config.hidden_size, config.intermediate_size, config.head_dim
    n, q, kv = config.num_hidden_layers, e, config.num_key_value_heads * d
    # In the order of the file; the two tables of rotary angles are computed here, not read.
    shapes = {
        "embed_tokens": (config.vocab_size, e),
        "input_layernorm": (n, e),
        "self_attn.q_proj": (n, q, e),
        "self_attn.k_proj": (n, kv, e),
        "self_attn.v_proj": (n, kv, e),
        "self_attn.o_proj": (n, e, q),
        "post_attention_layernorm": (n, e),
        "mlp.gate_proj": (n, f, e),
        "mlp.down_proj": (n, e, f),
        "mlp.up_proj": (n, f, e),
        "norm": (e,),
        "cosines": (config.max_position_embeddings, d // 2),
        "sines": (config.max_position_embeddings, d // 2),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head"] = (config.vocab_size, e)
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    if len(data) != 28 + 4 * sum(sizes):
        raise CheckpointError(
            f"{path} has {len(data)} bytes and its sizes ask for {28 + 4 * sum(sizes)}; it is "
            "truncated, or no llama2.c model."
        )
    flat = torch.frombuffer(bytearray(data), dtype=torch.float32, offset=28)
    parts = flat.split(sizes)
    stored = {
        name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
    model = CausalLM(config, dtype=torch.float32)
    weights = {
        "model.embed_tokens.weight": stored["embed_tokens"],
        "model.norm.weight": stored["norm"],
        "lm_head.weight": stored.get("lm_head", stored["embed_tokens"]),
    }
    for name in (name for name in shapes if "." in name or name.endswith("layernorm")):
        for layer, weight in enumerate(stored[name]):
            if name.endswith("q_proj"):
                weight = half_split(weight, config.num_attention_heads)
            elif name.endswith("k_proj"):
                weight = half_split(weight, config.num_key_value_heads)
            weights[f"model.layers.{layer}.{name}.weight"] = weight
    model.load_state_dict(weights)
    return model.eval()


def read_pieces(path: Path, count: int) -> list[tuple[str, float]]:
    """The ``count`` texts and scores of a llama2.c tokenizer file."""
    data = read_bytes(path)
    pieces: list[tuple[str, float]] = []
    place = 4  # after the length of the longest piece
    for index in range(count):
        start = place + 8
        score, length = struct.unpack_from("<fi", data, place) if start <= len(data) else (0.0, -1)
        place = start + length
        if length < 0 or place > len(data):
            raise CheckpointError(
                f"{path} ends in token {index} of {count}; it is truncated, or belongs to a "
                "smaller model."
            )
        try:
            pieces.append((data[start:place].decode("utf-8"), score))
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: token {index} is not UTF-8 text.") from error
    if place != len(data):
        raise CheckpointError(
            f"{path} holds more than the {count} tokens of the model; take the model's own "
            "tokenizer file."
        )
    expected = [f"<0x{byte:02X}>" for byte in range(256)]
    if [text for text, _ in pieces[_FIRST_BYTE : _FIRST_BYTE + 256]] != expected:
        raise CheckpointError(f"{path}: the tokens 3 to 258 are not the 256 bytes.")
    return pieces


def read_tokenizer(path: Path, count: int) -> Tokenizer:
    """The tokenizer of a llama2.c file, with the same ids for the same text.

    llama2.c puts a space before the text, looks up each character (or its bytes), and joins the
    two neighbours whose union has the best score until none has any: byte-pair encoding whose
    merges are all ways to cut a piece in two, best piece first.

    Raises:
        CheckpointError: not such a file, or not ``count`` tokens.
    """
    pieces = read_pieces(path, count)
    names = [_UNKNOWN, _BOS, _EOS, *(text for text, _ in pieces[3:])]
    vocabulary = {name: index for index, name in enumerate(names)}
    if len(vocabulary) != count:
        raise CheckpointError(f"{path}: a token occurs twice.")
    words = dict(pieces[_FIRST_BYTE + 256 :])
    merges = [
        (text[:cut], text[cut:])
        for text in sorted(words, key=words.__getitem__, reverse=True)
        for cut in range(1, len(text))
        if text[:cut] in words and text[cut:] in words
    ]
    backend = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token=_UNKNOWN, fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Prepend(" ")
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([_UNKNOWN, _BOS, _EOS])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", special_tokens=[(_BOS, vocabulary[_BOS])]
    )
    return Tokenizer(
        backend,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": _UNKNOWN,
            "bos_token": _BOS,
            "eos_token": _EOS,
            "clean_up_tokenization_spaces": False,
        },
    )


def convert(model_file: Path, tokenizer_file: Path, directory: Path) -> CausalLM:
    """Write ``directory``, a whole checkpoint or nothing; returns the model."""
    model = read_model(model_file)
    tokenizer = read_tokenizer(tokenizer_file, model.config.vocab_size)
    # Stories are delimited by <s>, so it ends one as well as </s> does.
    save_checkpoint(directory, model, tokenizer, generation={"eos_token_id": [2, 1]})
    return model


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", type=Path, help="e.g. stories260K.bin")
    parser.add_argument("tokenizer", type=Path, help="e.g. tok512.bin")
    parser.add_argument("-o", "--output", type=Path, required=True, help="directory to write")
    options = parser.parse_args(arguments)
    try:
        model = convert(options.model, options.tokenizer, options.output)
    except HoneError as error:
        print(error, file=sys.stderr)
        return 1
    count = model.config.parameter_count
    print(f"{options.output}: {count:,} weights. Next: hone generate {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
