"""The losses of heads that read whole texts: transformers' own, summed over a pack."""

import pytest
import torch

from hone.core.errors import DataError
from hone.data import Sample, pack
from hone.models import Classifier, Embedder, ModelConfig, TokenClassifier, load_model
from hone.train import TensorBatch

TEXTS = [[1, 5, 6, 7, 8, 2], [1, 9, 2], [1, 10, 11, 2], [1, 12, 13, 14, 2]]
WIDTH = max(map(len, TEXTS))
LABELS = 3
# Problem, its name in transformers, targets.
PROBLEMS = {
    "one class": ("single_label_classification", LABELS, [2, 0, 1, 2]),
    "several classes": (
        "multi_label_classification",
        LABELS,
        [(1.0, 0.0, 1.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 1.0, 1.0)],
    ),
    "a number": ("regression", 1, [0.5, -1.0, 2.0, 4.0]),
    "numbers": ("regression", 2, [(0.5, 1.0), (-1.0, 0.0), (2.0, 2.0), (4.0, 3.0)]),
}


def bert(head, folder, **options):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **options,
    )
    theirs = getattr(transformers, f"BertFor{head}")(config).eval()
    theirs.save_pretrained(folder)
    return theirs


def padded(values, filler):
    return torch.tensor([[*row, *[filler] * (WIDTH - len(row))] for row in values])


def tensors(samples):
    return TensorBatch.of(pack(samples))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_texts_are_scored_as_transformers_scores_them(problem, tmp_path):
    name, labels, targets = PROBLEMS[problem]
    theirs = bert("SequenceClassification", tmp_path, num_labels=labels, problem_type=name)
    ours = load_model(tmp_path)
    expected = theirs(
        padded(TEXTS, 0),
        attention_mask=padded([[1] * len(text) for text in TEXTS], 0),
        labels=torch.tensor(targets),
    ).loss
    expected.backward()
    batch = tensors(
        [Sample(text, target=target) for text, target in zip(TEXTS, targets, strict=True)]
    )
    loss = ours.packed_loss(batch) / batch.n_trained
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(
        ours.embedding.weight.grad,
        theirs.bert.embeddings.word_embeddings.weight.grad,
        atol=1e-6,
        rtol=1e-4,
    )


def test_tokens_are_scored_as_transformers_scores_them(tmp_path):
    theirs = bert("TokenClassification", tmp_path, num_labels=LABELS)
    ours = load_model(tmp_path)
    classes = [[-100, 0, -100, 2, 1, -100], [-100, 1, -100], [-100] * 4, [-100, 2, 2, 0, -100]]
    expected = theirs(
        padded(TEXTS, 0),
        attention_mask=padded([[1] * len(text) for text in TEXTS], 0),
        labels=padded(classes, -100),
    ).loss
    batch = tensors([Sample(*pair) for pair in zip(TEXTS, classes, strict=True)])
    assert batch.n_trained == 7
    assert (ours.packed_loss(batch) / 7).item() == pytest.approx(expected.item(), rel=1e-5)


def tiny(kind, **options):
    config = ModelConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        causal=options.pop("causal", False),
        **options,
    )
    model = kind(config)
    model.initialise(0)
    return model


@pytest.mark.smoke
def test_the_similarity_of_pairs_is_their_cosine():
    model = tiny(Embedder)
    scores = [1.0, 0.25, -0.5, 0.0]
    pairs = [
        Sample(text, source=[*text[::-1], 3], target=score)
        for text, score in zip(TEXTS, scores, strict=True)
    ]
    batch = tensors(pairs)
    expected = 0.0
    for pair in pairs:
        first, second = (
            model(torch.tensor([list(text)])).logits[0] for text in (pair.ids, pair.source)
        )
        expected += (torch.cosine_similarity(first, second, dim=0).item() - pair.target) ** 2
    assert model.packed_loss(batch).item() == pytest.approx(expected, rel=1e-4)
    parts = [TensorBatch.of(part) for part in pack(pairs).split(3)]
    assert sum(model.packed_loss(part).item() for part in parts) == pytest.approx(
        expected, rel=1e-4
    )


def test_a_causal_body_reads_texts_too():
    model = tiny(Classifier, causal=True, pooling="last")
    samples = [Sample(text, target=number % 2) for number, text in enumerate(TEXTS)]
    alone = sum(model.packed_loss(tensors([sample])).item() for sample in samples)
    assert model.packed_loss(tensors(samples)).item() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    ("problem", "target", "message"),
    [
        ("single_label", None, "without a class or number"),
        ("single_label", 0.5, "one class of several"),
        ("multi_label", 1, "1 numbers as its target, and the model 2 labels"),
        ("regression", (1.0, 2.0, 3.0), "3 numbers as its target, and the model 2 labels"),
    ],
)
def test_targets_that_do_not_fit_are_refused(problem, target, message):
    model = tiny(Classifier, problem=problem)
    with pytest.raises(DataError, match=message):
        model.packed_loss(tensors([Sample(TEXTS[0], target=target)]))


def test_embeddings_need_pairs():
    model = tiny(Embedder)
    with pytest.raises(DataError, match="no second one"):
        model.packed_loss(tensors([Sample(TEXTS[0], target=0.5)]))
    with pytest.raises(DataError, match="no similarity"):
        model.packed_loss(tensors([Sample(TEXTS[0], source=TEXTS[1])]))


def test_no_labelled_token_is_no_loss():
    model = tiny(TokenClassifier)
    loss = model.packed_loss(tensors([Sample(TEXTS[0], [-100] * len(TEXTS[0]))]))
    assert loss.item() == 0.0
