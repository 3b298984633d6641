"""Every objective trains its architecture, on real text, through the whole loop."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from hone.core.seeds import rng
from hone.data import IGNORED, PackedBatches, Sample
from hone.data.corpus import Corpus, encode_texts
from hone.data.denoising import Infilling, SpanCorruption
from hone.data.masking import Masked
from hone.data.pretraining import Causal, text_batches
from hone.data.words import TokenTexts
from hone.models import make_model, read_config
from hone.text.tokenizer import Tokenizer
from hone.train import Contrastive, TrainConfig, train

BYTES = 256
END, MASK, START = 256, 257, 258  # behind the bytes
SENTINELS = tuple(range(299, 259, -1))
VOCABULARY = 300
WIDTH = 32
TEXT_ENTROPY = 3.31  # nats of a letter of tinyshakespeare told from nothing

KOREAN = """\
우리 마을에는 작은 강이 흐릅니다. 아이들은 여름마다 강에서 물고기를 잡습니다.
할머니는 아침 일찍 시장에 가십니다. 시장에는 싱싱한 채소와 과일이 많습니다.
비가 오는 날에는 창가에 앉아 책을 읽습니다. 따뜻한 차를 마시면 마음이 편안해집니다.
겨울이 되면 산에 눈이 하얗게 쌓입니다. 우리는 눈사람을 만들고 썰매를 탑니다.
아버지는 매일 저녁 신문을 읽으십니다. 어머니는 정원에서 꽃을 가꾸십니다.
동생은 학교에서 피아노를 배웁니다. 나는 도서관에서 역사를 공부합니다.
"""
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SEQ2SEQ = {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": START}
FAMILIES = {
    "llama": SIZES,
    "mamba": {"hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 8},
    "bert": SIZES,
    "t5": {"d_model": WIDTH, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2} | SEQ2SEQ,
    "bart": {
        "d_model": WIDTH,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 128,
    }
    | SEQ2SEQ,
}


@pytest.fixture(scope="module")
def shakespeare(hone_data):
    """Its letters, every line of speech a document."""
    text = (hone_data / "tinyshakespeare" / "input.txt").read_bytes()[:200_000]
    speeches = [np.frombuffer(speech, np.uint8) for speech in text.split(b"\n\n")]
    return Corpus.of(speeches, END)


@pytest.fixture(scope="module")
def letters():
    spelled = [bytes([byte]) for byte in range(BYTES)] + [b""] * (VOCABULARY - BYTES)
    return TokenTexts(spelled, range(BYTES, VOCABULARY))


def tiny(family, vocabulary=VOCABULARY, **changes):
    config = read_config({"model_type": family, "vocab_size": vocabulary} | FAMILIES[family])
    model = make_model(replace(config, **changes))
    model.initialise(0)
    return model


def losses(model, batches, folder, steps=60, objective=None, **options):
    config = TrainConfig(
        **{
            "steps": steps,
            "warmup_steps": 5,
            "log_every": 10,
            "checkpoint_every": steps,
            "precision": "fp32",
            "learning_rate": 0.01,
            "micro_batches": 2,
        }
        | options
    )
    result = train(model, batches, config, folder, objective=objective)
    assert result.skipped_bad == 0
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize(
    ("family", "cut"), [("llama", "windows"), ("llama", "documents"), ("mamba", "random")]
)
def test_causal(family, cut, shakespeare, tmp_path):
    batches = text_batches(shakespeare, Causal(), 32, 512, 0, cut=cut)
    found = losses(tiny(family), batches, tmp_path, 30)
    assert found[-1] < TEXT_ENTROPY - 0.1


def test_masked(shakespeare, tmp_path):
    batches = text_batches(shakespeare, Masked(MASK, BYTES), 64, 768, 0)
    found = losses(tiny("bert"), batches, tmp_path, 30)
    assert found[-1] < 0.75 * found[0]


def test_masked_korean_words(tmp_path):
    tokenizer = Tokenizer.train([KOREAN], 400)
    mask = tokenizer.vocab_size
    task = Masked(
        mask,
        mask,
        tuple(tokenizer.special_ids),
        (tokenizer.bos_id,),
        (tokenizer.eos_id,),
        words=TokenTexts.of(tokenizer),
    )
    corpus = Corpus.of(encode_texts(KOREAN.splitlines(), tokenizer))
    batches = text_batches(corpus, task, 64, 400, 0, cut="documents")
    found = losses(tiny("bert", mask + 1), batches, tmp_path, 40)
    assert found[-1] < 0.65 * found[0]


def test_span_corruption(shakespeare, tmp_path):
    task = SpanCorruption(SENTINELS, END, START)
    batches = text_batches(shakespeare, task, 64, 640, 0)
    found = losses(tiny("t5"), batches, tmp_path, 30)
    assert found[-1] < 0.85 * found[0]


def test_infilling(letters, shakespeare, tmp_path):
    task = Infilling(MASK, START, suffix=(END,), sentences=letters)
    batches = text_batches(shakespeare, task, 64, 640, 0, cut="documents")
    found = losses(tiny("bart"), batches, tmp_path, 30)
    assert found[-1] < TEXT_ENTROPY


def korean_lines(tokenizer):
    return tokenizer.encode_batch(KOREAN.replace(". ", ".\n").splitlines())


def test_classification(tmp_path):
    """Who acts: the family, or nature and the village; told from half of the words."""
    tokenizer = Tokenizer.train([KOREAN], 400)
    sentences = korean_lines(tokenizer)
    labels = [0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1]
    random = rng(0, "classes")
    samples = [
        Sample([token for token in sentence if random.random() < 0.5] or [0], target=label)
        for sentence, label in zip(sentences * 20, labels * 20, strict=True)
    ]
    model = tiny("bert", 400, head="classification", labels=("마을", "가족"))
    found = losses(model, PackedBatches(samples, 400, 0), tmp_path, 40)
    assert found[0] > 0.3
    assert found[-1] < 0.5 * found[0]


def test_token_classification(tmp_path):
    """Which tokens begin an 어절."""
    tokenizer = Tokenizer.train([KOREAN], 300)
    texts = TokenTexts.of(tokenizer)
    samples = []
    for ids in korean_lines(tokenizer) * 5:
        labels = texts.word_starts(np.array(ids)).astype(int)
        labels[0] = IGNORED
        samples.append(Sample(ids, labels))
    model = tiny("bert", 300, head="token-classification", labels=("안", "처음"))
    found = losses(model, PackedBatches(samples, 600, 0), tmp_path, 20)
    assert found[-1] < 0.25 * found[0]


@pytest.mark.parametrize("both", [False, True])
def test_contrastive(both, tmp_path):
    """Pairs are one sentence, of which each side lost other tokens, anew in every epoch."""
    tokenizer = Tokenizer.train([KOREAN], 500)
    sentences = korean_lines(tokenizer)

    def encode(index, epoch):
        random = rng(0, "pair", index, epoch)
        first, second = (
            [token for token in sentences[index] if random.random() < 0.5] or [0] for _ in range(2)
        )
        return Sample(first, source=second)

    samples = [Sample(ids, source=ids) for ids in sentences]
    batches = PackedBatches(samples, 10_000, 0, encode=encode)
    model = tiny("bert", 500, head="embedding", embedding_pooling="mean")
    found = losses(model, batches, tmp_path, 20, Contrastive(both_directions=both))
    assert found[0] > 0.5
    assert found[-1] < 0.4 * found[0]


def test_similarities(tmp_path):
    tokenizer = Tokenizer.train([KOREAN], 500)
    sentences = korean_lines(tokenizer)
    random = rng(0, "scores")
    samples = [
        Sample(sentences[a], source=sentences[b], target=1.0 if a // 2 == b // 2 else 0.0)
        for a in range(12)
        for b in [*range(12), a // 2 * 2, a // 2 * 2 + 1]
    ]
    random.shuffle(samples)
    model = tiny("bert", 500, head="embedding", embedding_pooling="mean")
    found = losses(model, PackedBatches(samples, 800, 0), tmp_path, 30)
    assert found[-1] < 0.3 * found[0]


@pytest.mark.parametrize("objective", ["masked", "contrastive"])
def test_what_is_drawn_anew_is_drawn_alike_after_a_stop(objective, tmp_path):
    """Over several epochs, so that other masks or other negatives would show in the weights."""
    tokenizer = Tokenizer.train([KOREAN], 400)
    sentences = korean_lines(tokenizer)
    if objective == "masked":
        corpus = Corpus.of(sentences)
        batches = text_batches(corpus, Masked(399, 399), 32, 150, 0, cut="documents")
    else:
        batches = PackedBatches([Sample(ids[:4], source=ids[4:]) for ids in sentences], 100, 0)
    assert batches.batches_per_epoch < 5

    class Stop(Exception):
        pass

    def run(folder, stop=None):
        def on_step(counters):
            if counters.step == stop:
                raise Stop

        head = "embedding" if objective == "contrastive" else "masked"
        model = tiny("bert", 400, head=head)
        config = TrainConfig(steps=12, checkpoint_every=4, micro_batches=2, precision="fp32")
        contrastive = Contrastive() if objective == "contrastive" else None
        train(model, batches, config, tmp_path / folder, objective=contrastive, on_step=on_step)
        return model

    whole = run("whole")
    with pytest.raises(Stop):
        run("parts", stop=7)
    for a, b in zip(whole.parameters(), run("parts").parameters(), strict=True):
        assert torch.equal(a, b)
