"""The contrastive objective: one huge batch, however it is cut."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hone.core.errors import ConfigError
from hone.core.seeds import rng
from hone.data import Sample, pack
from hone.models import Embedder, ModelConfig
from hone.parallel import Processes
from hone.train import Contrastive, TensorBatch
from hone.train.contrastive import info_nce

TEMPERATURE = 0.1
COUNT = 16


def embedder(seed=0):
    config = ModelConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        causal=False,
        embedding_pooling="mean",
    )
    model = Embedder(config)
    model.initialise(seed)
    return model


def pairs(count=COUNT):
    """Very unequal texts; a pair shares its words."""
    random = rng(0, "pairs")
    found = []
    for _ in range(count):
        words = [random.randrange(3, 40) for _ in range(random.randint(1, 20))]
        found.append(Sample(words, source=[*words[::-1], 3, 4]))
    return found


def gradients_of(parts, both=False, divisor=COUNT, model=None):
    model = model or embedder()
    after = []
    objective = Contrastive(TEMPERATURE, both_directions=both)
    loss = objective.backward(model, parts, divisor, lambda: after.append(1), Processes())
    assert len(after) == len(parts)
    return loss, {name: weight.grad for name, weight in model.named_parameters()}


def in_parts(count):
    return [TensorBatch.of(part) for part in pack(pairs()).split(count)]


def by_the_book(both):
    """The loss of one batch with a graph over all of it."""
    model = embedder()
    first, second = (
        torch.stack([model(torch.tensor([list(text)])).logits[0] for text in texts])
        for texts in zip(*[(pair.ids, pair.source) for pair in pairs()], strict=True)
    )
    scores = torch.stack([torch.cosine_similarity(x, second, dim=-1) / TEMPERATURE for x in first])
    loss = -scores.log_softmax(1).diagonal().sum()
    if both:
        loss = (loss - scores.log_softmax(0).diagonal().sum()) / 2
    (loss / COUNT).backward()
    return loss.item(), {name: weight.grad for name, weight in model.named_parameters()}


def close(found, expected):
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 4, 8, 16])
def test_parts_change_nothing(parts, both):
    expected_loss, expected = by_the_book(both)
    loss, found = gradients_of(in_parts(parts), both)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    close(found, expected)


@pytest.mark.smoke
def test_the_loss_is_that_of_a_classification_among_all():
    torch.manual_seed(0)
    first, second = torch.randn(2, 5, 7)
    losses = info_nce(first, second, 0.05)
    for row in range(5):
        scores = [torch.cosine_similarity(first[row], x, dim=0).item() / 0.05 for x in second]
        expected = math.log(sum(math.exp(s - scores[row]) for s in scores))
        assert losses[row].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_divisor_scales_the_gradients_and_not_the_loss():
    loss, whole = gradients_of(in_parts(2))
    same, halved = gradients_of(in_parts(2), divisor=2 * COUNT)
    assert same == loss
    close({name: 2 * g for name, g in halved.items()}, whole)


def test_the_second_pass_has_the_dropout_of_the_first():
    class Noisy(Embedder):
        seen: list

        def embed_pairs(self, batch):
            first, second = super().embed_pairs(batch)
            noise = torch.rand(first.shape)
            self.seen.append(noise)
            return first * noise, second

    def noisy():
        model = Noisy(embedder().config)
        model.initialise(0)
        model.seen = []
        torch.manual_seed(7)
        return model

    model = noisy()
    gradients_of(in_parts(3), model=model)
    first, again = model.seen[:3], model.seen[3:]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][:1], first[1][:1])
    # The stream goes on after the first passes, wherever the second ones went.
    after = torch.rand(3)
    model = noisy()
    for part in in_parts(3):
        model.embed_pairs(part)
    assert torch.equal(after, torch.rand(3))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_is_a_positive_number(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        Contrastive(temperature)


class Peers(Processes):
    """Processes that are threads, which start at once; gathering is all that is needed here."""

    meeting, brought = threading.Barrier(2), [None, None]

    def gather(self, tensor):
        self.brought[self.rank] = tensor
        self.meeting.wait(30)
        found = list(self.brought)
        self.meeting.wait(30)
        return found


@pytest.mark.parametrize("cut", [5, 1, COUNT])
def test_two_processes_are_one_batch(cut):
    """Uneven shares; in the last case the second process has nothing to embed."""

    def work(rank):
        mine = pairs()[:cut] if rank == 0 else pairs()[cut:]
        parts = [TensorBatch.of(part) for part in pack(mine).split(3)] if mine else []
        model = embedder()
        objective = Contrastive(TEMPERATURE, True)
        loss = objective.backward(model, parts, COUNT, lambda: None, Peers(rank, 2))
        return loss, {
            name: torch.zeros_like(weight) if weight.grad is None else weight.grad
            for name, weight in model.named_parameters()
        }

    with ThreadPoolExecutor(2) as pool:
        (loss, gradients), (other_loss, others) = pool.map(work, range(2))
    expected_loss, expected = by_the_book(True)
    assert loss + other_loss == pytest.approx(expected_loss, rel=1e-5)
    close({name: gradients[name] + others[name] for name in expected}, expected)


def test_one_process_alone_needs_no_group():
    assert Processes().count == 1
    assert Contrastive().backward(embedder(), [], 1.0, lambda: None, Processes()) == 0.0
