import importlib.util
import struct
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.core.errors import CheckpointError
from hone.engine.cache import RowCache
from hone.models import load_model
from hone.text.tokenizer import Tokenizer

SCRIPT = Path(__file__).parents[2] / "examples" / "convert_llama2c.py"
spec = importlib.util.spec_from_file_location("convert_llama2c", SCRIPT)
script = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = script
spec.loader.exec_module(script)

PIECES = ["he", " t", "ll", " the", "hell", "hello", " ", "h", "e", "l", "o", "t", "é", "lo"]


def write_tokenizer(file: Path, pieces=PIECES) -> Path:
    texts = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    content = struct.pack("<i", 6)
    for index, text in enumerate(texts):
        raw = text.encode()
        content += struct.pack("<fi", min(0.0, 259.0 - index), len(raw)) + raw
    file.write_bytes(content)
    return file


def write_model(file: Path, tied: bool, vocab=259 + len(PIECES)) -> Path:
    dim, hidden, layers, heads, kv_heads, length = 12, 20, 2, 3, 1, 16
    head = dim // heads
    count = vocab * dim + (2 * layers + 1) * dim + length * head
    count += layers * (2 * dim * dim + 2 * dim * head * kv_heads + 3 * dim * hidden)
    count += 0 if tied else vocab * dim
    torch.manual_seed(0)
    header = (dim, hidden, layers, heads, kv_heads, vocab if tied else -vocab, length)
    file.write_bytes(struct.pack("<7i", *header) + torch.randn(count).numpy().tobytes())
    return file


def llama2c_encode(text: str, pieces: list[tuple[str, float]]) -> list[int]:
    """``encode`` of llama2.c's run.c, line for line but for its memory handling."""
    lookup = {piece: index for index, (piece, _) in enumerate(pieces)}
    ids = []
    for character in " " + text if text else "":
        if character in lookup:
            ids.append(lookup[character])
        else:
            ids.extend(byte + 3 for byte in character.encode())
    while True:
        best, place = -1e10, -1
        for i in range(len(ids) - 1):
            found = lookup.get(pieces[ids[i]][0] + pieces[ids[i + 1]][0])
            if found is not None and pieces[found][1] > best:
                best, place, joint = pieces[found][1], i, found
        if place < 0:
            return ids
        ids[place : place + 2] = [joint]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The models are tiny: waiting for a second thread takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def stories(hone_data, tmp_path_factory):
    """The real model, converted by the command."""
    source = hone_data / "stories260k"
    folder = tmp_path_factory.mktemp("stories") / "stories260k"
    arguments = [str(source / "stories260K.bin"), str(source / "tok512.bin"), "-o", str(folder)]
    assert script.main(arguments) == 0
    return source, folder


def test_the_story_word_for_word(stories):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, folder = stories
    story = (source / "STORY.txt").read_text().rstrip("\n")
    model, tokenizer = load_model(folder), Tokenizer.load(folder)
    ids = tokenizer.encode("", add_special_tokens=True)
    cache, fed = RowCache(model.config, 1, torch.float32), torch.tensor([ids])
    with torch.no_grad():
        while len(ids) < 1 + len(tokenizer.encode(story)):
            fed = model(fed, cache=cache, logits_to_keep=1).logits.argmax(-1)
            ids.append(fed.item())
    assert tokenizer.decode(ids).startswith(story)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    their_tokenizer = AutoTokenizer.from_pretrained(folder)
    start = their_tokenizer("", return_tensors="pt")
    out = theirs.generate(**start, max_length=len(ids), do_sample=False, pad_token_id=0)
    assert out[0].tolist() == ids
    assert their_tokenizer.decode(out[0], skip_special_tokens=True).startswith(story)


def test_the_real_tokenizer_gives_the_ids_of_llama2c(stories):
    from transformers import AutoTokenizer

    source, folder = stories
    pieces = script.read_pieces(source / "tok512.bin", 512)
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    story = (source / "STORY.txt").read_text()
    for text in ("", story, " two  spaces ", "한국어 😀\n\t\x00x", "a▁b", "“quoted” café…", "Ünï"):
        ids = llama2c_encode(text, pieces)
        assert ours.encode(text) == ids
        assert theirs(text, add_special_tokens=False).input_ids == ids
        assert ours.decode(ids) == text


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="helot é한\n", max_size=24))
def test_any_text_gets_the_ids_of_llama2c(text, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "small.bin"
    if not file.exists():
        write_tokenizer(file)
    count = 259 + len(PIECES)
    tokenizer = script.read_tokenizer(file, count)
    ids = tokenizer.encode(text)
    assert ids == llama2c_encode(text, script.read_pieces(file, count))
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text, add_special_tokens=True) == [1, *ids]


@pytest.mark.parametrize("tied", [True, False])
def test_a_small_model_with_shared_key_heads(tmp_path, tied):
    model_file = write_model(tmp_path / "model.bin", tied)
    script.convert(model_file, write_tokenizer(tmp_path / "tok.bin"), tmp_path / "out")
    model = load_model(tmp_path / "out")
    flat = torch.frombuffer(bytearray(model_file.read_bytes()), dtype=torch.float32, offset=28)
    vocab = model.config.vocab_size
    embedding = flat[: vocab * 12].view(vocab, 12)
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    output = embedding if tied else flat[-vocab * 12 :].view(vocab, 12)
    assert torch.equal(model.lm_head.weight, output)
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda m, t: m.unlink(), "Cannot read .*model.bin: No such file"),
        (lambda m, t: m.write_bytes(b"abc"), "has 3 bytes"),
        (lambda m, t: m.write_bytes(struct.pack("<7i", 0x616B3432, *[1] * 6)), "newer llama2.c"),
        (lambda m, t: m.write_bytes(b"\xff" * 64), "is no llama2.c model"),
        (
            lambda m, t: m.write_bytes(struct.pack("<7i", 10, 4, 1, 3, 3, 9, 8)),
            "num_attention_heads",
        ),
        (lambda m, t: m.write_bytes(m.read_bytes()[:-4]), "truncated"),
        (lambda m, t: t.unlink(), "Cannot read .*tok.bin"),
        (lambda m, t: t.write_bytes(t.read_bytes()[:-3]), "ends in token 272 of 273"),
        (lambda m, t: t.write_bytes(t.read_bytes() + b"more"), "holds more than the 273 tokens"),
        (lambda m, t: t.write_bytes(bytes(4 + 8 * 273)), "3 to 258 are not the 256 bytes"),
        (lambda m, t: write_tokenizer(t, ["x"] * len(PIECES)), "occurs twice"),
    ],
)
def test_bad_input_gets_a_sentence_and_writes_nothing(tmp_path, capsys, damage, expected):
    model_file = write_model(tmp_path / "model.bin", True)
    tokenizer_file = write_tokenizer(tmp_path / "tok.bin")
    damage(model_file, tokenizer_file)
    with pytest.raises(CheckpointError, match=expected):
        script.convert(model_file, tokenizer_file, tmp_path / "out")
    assert script.main([str(model_file), str(tokenizer_file), "-o", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()
