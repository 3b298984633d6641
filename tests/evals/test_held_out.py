"""Scores of heads against figures computed by hand, over several batches of unequal samples."""

import math
from types import MethodType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hone.data import IGNORED, Batch, Sample, pack
from hone.evals import held_out
from hone.evals.held_out import RISING, held_out_loss, held_out_scores
from hone.models import ModelConfig
from hone.models.heads import make_model


def model_of(head, **changes):
    config = ModelConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        head=head,
        **changes,
    )
    model = make_model(config, head, torch.float32)
    model.initialise(seed=0)
    return model


def batches_of(samples, each=3):
    return [pack(samples[first : first + each]) for first in range(0, len(samples), each)]


def first_ids(batch):
    """Sample i of a test begins with the token i."""
    return batch.input_ids_N[batch.cu_seqlens[:-1].long()]


def scoring(model, rows):
    """``model``, with the rows of a table for what it computes, in the order of the samples."""
    table = torch.tensor(rows, dtype=torch.float32)
    model.packed_logits = MethodType(lambda _, batch: table[first_ids(batch)], model)
    return model


def texts(targets):
    # Of many lengths, so that a pack has another order.
    return [Sample([n] * (1 + (n * 5) % 7), target=target) for n, target in enumerate(targets)]


def one_hot(classes, count):
    return [[4.0 * (n == chosen) for n in range(count)] for chosen in classes]


@pytest.mark.smoke
def test_classes():
    told, truth = [0, 0, 1, 1, 3, 0, 1], [0, 0, 0, 1, 1, 1, 1]
    model = scoring(model_of("classification", labels=tuple("abcde")), one_hot(told, 5))
    scores = held_out_scores(model, batches_of(texts(truth)))
    assert scores["accuracy"] == pytest.approx(4 / 7)
    # Class 0: 2 of 3 told, 2 of 3 true. Class 1: 2 of 3 and 2 of 4. Class 3: told once, never true.
    # No text is of class 2 or 4, and none is told to be.
    assert scores["F1"] == pytest.approx((2 / 3 + 4 / 7 + 0) / 3)
    right = -math.log(math.exp(4) / (math.exp(4) + 4))
    assert scores["loss"] == pytest.approx((4 * right + 3 * (right + 4)) / 7, rel=1e-5)
    assert set(scores) == {"loss", "accuracy", "F1"} <= set(RISING)


def test_several_classes():
    logits = [[1.0, -1, 1], [-1, -1, -1], [2, 1, -3], [-1, 1, 1]]
    truth = [(1.0, 0.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)]
    model = model_of("classification", labels=tuple("abc"), problem="multi_label")
    scores = held_out_scores(scoring(model, logits), batches_of(texts(truth)))
    assert scores["accuracy"] == pytest.approx(2 / 4)
    assert scores["F1"] == pytest.approx(2 * 4 / (6 + 4))


def test_numbers():
    told, truth = [1.0, 3.0, 2.0, 4.0, 8.0], [1.0, 2.0, 2.0, 5.0, 6.0]
    model = model_of("classification", labels=("score",), problem="regression")
    scores = held_out_scores(scoring(model, [[x] for x in told]), batches_of(texts(truth)))
    assert scores["error"] == pytest.approx(math.sqrt((0 + 1 + 0 + 1 + 4) / 5))
    assert scores["loss"] == pytest.approx(scores["error"] ** 2)
    # Ranks 1 3 2 4 5 and 1 2.5 2.5 4 5.
    assert scores["rank correlation"] == pytest.approx(9.5 / math.sqrt(10 * 9.5))


def test_numbers_that_have_no_order():
    for told in ([1.0, 1.0, 1.0], [1.0, math.nan, 2.0]):
        model = model_of("classification", labels=("score",), problem="regression")
        scores = held_out_scores(
            scoring(model, [[x] for x in told]), batches_of(texts([1.0, 2, 3]))
        )
        assert "rank correlation" not in scores
    model = model_of("classification", labels=("score",), problem="regression")
    assert "rank correlation" not in held_out_scores(scoring(model, [[1.0]]), [pack(texts([2.0]))])


def test_tags():
    labels = ("B", "O", "I")
    tags = [[IGNORED, 0, 2, 1], [1, IGNORED], [0, 1, 1, IGNORED, IGNORED], [1], [2, 0, IGNORED]]
    told = [[0, 0, 1, 1], [0, 0], [2, 1, 1, 0, 0], [1], [2, 0, 1]]
    # The token of a place is what is told there.
    samples = [Sample(t, wanted) for t, wanted in zip(told, tags, strict=True)]
    model = model_of("token-classification", labels=labels)
    table = torch.eye(3)
    model.packed_logits = MethodType(lambda _, batch: table[batch.input_ids_N], model)
    scores = held_out_scores(model, batches_of(samples, each=2))
    assert scores["accuracy"] == pytest.approx(7 / 10)
    # Tagged: 5 words, and 5 are told to be; 3 of them rightly.
    assert scores["F1"] == pytest.approx(2 * 3 / (5 + 5))


def embedding(first, second):
    """An embedder that knows the vector of every text of every pair."""
    model = model_of("embedding")
    one, two = torch.tensor(first), torch.tensor(second)

    def embed_pairs(_, batch):
        return one[first_ids(batch)], two[first_ids(batch)]

    model.embed_pairs = MethodType(embed_pairs, model)
    return model


def pairs(count, scores=()):
    return [
        Sample([n] * (1 + (n * 5) % 7), source=[n], target=scores[n] if scores else None)
        for n in range(count)
    ]


@pytest.mark.parametrize("at_once", [2, 1000])
def test_partners_are_looked_for_among_those_of_all_batches(monkeypatch, at_once):
    monkeypatch.setattr(held_out, "_AT_ONCE", at_once)
    angles = torch.arange(7) * 0.3
    first = torch.stack((angles.cos(), angles.sin()), dim=1) * 3
    turned = angles + torch.tensor([0.1, 0, -0.1, 0.2, 0, 0.16, 0])
    second = torch.stack((turned.cos(), turned.sin()), dim=1)
    model = embedding(first.tolist(), second.tolist())
    scores = held_out_scores(model, batches_of(pairs(7)))
    distance = (angles[:, None] - turned[None, :]).abs()
    assert scores["retrieval"] == pytest.approx(
        float((distance.argmin(1) == torch.arange(7)).float().mean())
    )
    swapped = embedding(first.tolist(), second[[1, 0, 2, 3, 4, 5, 6]].tolist())
    assert held_out_scores(swapped, batches_of(pairs(7)))["retrieval"] == pytest.approx(5 / 7)


def test_the_loss_of_pairs_is_that_of_their_batch():
    first, second = [[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    samples = pairs(3)
    batches = [pack(samples[:2]), pack(samples[2:])]
    # Among two, each finds its own at 1 and the other at 0; one alone has none to be told from.
    expected = (2 * math.log(1 + math.exp(-1 / 0.05)) + 0) / 3
    loss = held_out_loss(embedding(first, second), batches)
    assert loss == pytest.approx(expected, abs=1e-7)
    together = held_out_loss(embedding(first, second), [pack(samples)])
    root = math.sqrt(0.5)

    def lost(own, *others):
        return math.log(sum(math.exp((x - own) / 0.05) for x in (own, *others)))

    assert together == pytest.approx(
        (lost(1, 0, root) + lost(1, 0, root) + lost(root, 1, 0)) / 3, rel=1e-4
    )


def test_similarities():
    scores = [0.0, 0.2, 0.2, 0.9, 1.0]
    cosines = [-0.5, 0.3, 0.1, 0.2, 0.8]
    second = [[c, math.sqrt(1 - c * c)] for c in cosines]
    model = embedding([[2.0, 0.0]] * 5, second)
    found = held_out_scores(model, batches_of(pairs(5, scores), each=2))
    # Ranks 1 4 2 3 5 and 1 2.5 2.5 4 5.
    assert found["rank correlation"] == pytest.approx(8.0 / math.sqrt(10 * 9.5))
    squared = sum((c - s) ** 2 for c, s in zip(cosines, scores, strict=True))
    assert found["loss"] == pytest.approx(squared / 5, rel=1e-5)


def test_perplexity_counts_every_trained_token_alike():
    model = model_of("causal", bos_token_id=1, eos_token_id=2)
    samples = [
        Sample([3, 4, 5, 6], [4, 5, 6, 7]),
        Sample([8, 9], [IGNORED, 3]),
        Sample([10, 11, 12], [11, IGNORED, 5]),
    ]
    losses = []
    for sample in samples:
        logits = model(torch.tensor([sample.ids])).logits[0].detach().log_softmax(-1)
        losses += [-float(logits[i, t]) for i, t in enumerate(sample.labels) if t != IGNORED]
    nothing = pack([Sample([1, 2], [IGNORED, IGNORED])])
    model.train()
    scores = held_out_scores(model, [*batches_of(samples, each=2), nothing])
    assert scores["loss"] == pytest.approx(sum(losses) / 7, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(sum(losses) / 7), rel=1e-4)
    assert model.training
    assert math.isnan(held_out_loss(model, [nothing]))


def test_a_diverged_model_has_a_perplexity():
    model = model_of("causal", bos_token_id=1, eos_token_id=2)
    batch = pack([Sample([3, 4], [4, 5])])
    for loss in (1e9, math.inf):
        model.packed_loss = MethodType(lambda _, batch, loss=loss: torch.tensor(loss), model)
        assert held_out_scores(model, [batch])["perplexity"] == math.exp(700)
    model.packed_loss = MethodType(lambda _, batch: torch.tensor(math.nan), model)
    assert math.isnan(held_out_scores(model, [batch])["perplexity"])


def spearman(a, b):
    """By its definition: the correlation of the ranks, and equal values share theirs."""

    def ranks(values):
        return [
            sum(x < value for x in values) + (sum(x == value for x in values) + 1) / 2
            for value in values
        ]

    one, two = ranks(a), ranks(b)
    middle = (len(a) + 1) / 2
    product = sum((x - middle) * (y - middle) for x, y in zip(one, two, strict=True))
    squares = [sum((x - middle) ** 2 for x in side) for side in (one, two)]
    return product / math.sqrt(squares[0] * squares[1]) if all(squares) else None


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=40))
def test_rank_correlation_with_ties(values):
    a, b = zip(*values, strict=True)
    found = held_out._correlation(torch.tensor(a).float(), torch.tensor(b).float())
    expected = spearman(a, b)
    assert found.get("rank correlation") == (
        None if expected is None else pytest.approx(expected, abs=1e-12)
    )


def test_rank_correlation_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    random = torch.Generator().manual_seed(0)
    a = torch.randint(50, (3000,), generator=random).float()
    b = a + torch.randint(80, (3000,), generator=random)
    expected = stats.spearmanr(a, b).statistic
    assert held_out._correlation(a, b)["rank correlation"] == pytest.approx(expected, abs=1e-12)


def test_batches_are_not_changed():
    batch = pack(texts([0, 1]))
    assert isinstance(batch, Batch)
    before = batch.targets_B.copy()
    held_out_scores(
        scoring(model_of("classification", labels=("a", "b")), one_hot([0, 0], 2)), [batch]
    )
    assert (batch.targets_B == before).all()
