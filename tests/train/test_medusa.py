"""Medusa heads: what they are to guess, and that they learn it on a frozen model."""

import pytest
import torch
from torch.nn import functional

from hone.core.seeds import rng
from hone.data import IGNORED, PackedBatches, Sample, completion_sample, pack
from hone.engine.speculation.medusa import MedusaHeads
from hone.models import CausalLM, ModelConfig
from hone.train import TensorBatch, TrainConfig, train
from hone.train.medusa import MedusaTrainee, head_accuracies, head_labels

VOCABULARY = 24
X = IGNORED


def small_model(seed=0, tied=True):
    config = ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    model = CausalLM(config)
    model.initialise(seed)
    return model


def trainee(count=3, seed=0, trained=False):
    heads = MedusaHeads(count, 32)
    heads.initialise(seed)
    if trained:
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for weight in heads.down.parameters():
                weight.normal_(0, 0.1, generator=generator)
    return MedusaTrainee(small_model(seed), heads)


def answers(count=200, name="answers"):
    """Answers that count in steps of one or two, as the prompt says, from a random start."""
    random, samples = rng(0, name), []
    for _ in range(count):
        step, first = random.randint(1, 2), random.randrange(20)
        text = [4 + (first + step * place) % 20 for place in range(random.randint(5, 10))]
        samples.append(completion_sample([step, text[0]], [*text[1:], 3]))
    return samples


@pytest.mark.smoke
def test_a_head_guesses_what_comes_so_many_places_later_in_the_same_answer():
    labels = torch.tensor([X, 5, 6, X, 7, 8, 9, 4, 5])
    positions = torch.tensor([0, 1, 2, 3, 4, 5, 6, 0, 1])
    assert head_labels(labels, positions, 2).tolist() == [
        [X, 6, X, X, 8, 9, X, 5, X],
        [X, X, X, X, 9, X, X, X, X],
    ]
    assert head_labels(labels[:2], positions[:2], 4).tolist() == [[X, X]] * 4


def test_the_loss_is_that_of_the_paper():
    one = trainee(trained=True)
    samples = answers(5)
    batch = TensorBatch.of(pack(samples))
    expected = 0.0
    for sample in samples:
        ids, labels = torch.tensor(sample.ids), torch.tensor(sample.labels)
        hidden = one.body(ids[None], output_hidden_states=True).hidden_states[-1][0]
        for place in range(len(ids)):
            for head in range(1, 4):
                if place + head < len(ids) and labels[place] != X:
                    last = one.body.embedding(labels[place])
                    state = one.heads(hidden[place][None], last[None])[head - 1]
                    scores = one.body.logits(state)
                    wanted = labels[place + head][None]
                    expected += 0.8**head * functional.cross_entropy(scores, wanted).item()
    assert one.packed_loss(batch).item() == pytest.approx(expected, rel=1e-5)


def test_untrained_heads_say_what_the_model_says():
    one = trainee()
    hidden = torch.randn(4, 32)
    states = one.heads(hidden, torch.randn(4, 32))
    assert torch.equal(states, hidden.expand(3, 4, 32))


def test_heads_learn_and_the_model_stays_as_it_is(tmp_path):
    torch.manual_seed(0)
    body = small_model()
    settings = TrainConfig(steps=60, optimizer="adamw", learning_rate=1e-2, warmup_steps=5)
    train(body, PackedBatches(answers(), 400, 0), settings, tmp_path / "body")
    before = {name: weight.clone() for name, weight in body.state_dict().items()}
    heads = MedusaHeads(2, 32)
    heads.initialise(0)
    one = MedusaTrainee(body, heads)
    held_out = [pack(answers(60, "held out"))]
    first = head_accuracies(one, held_out, 4)
    train(one, PackedBatches(answers(), 400, 1), settings, tmp_path / "heads")
    after = head_accuracies(one, held_out, 4)
    assert all(torch.equal(weight, before[name]) for name, weight in body.state_dict().items())
    letters = [label for s in answers(60, "held out") for label in s.labels if label != X]
    commonest = max(letters.count(letter) for letter in set(letters)) / len(letters)
    for head in range(2):
        assert after[head][0] > 3 * commonest
        assert after[head][0] > first[head][0] + 0.2
        assert after[head][0] > after[head][1]
        assert sum(after[head]) <= 1


def test_accuracies_are_counted_by_guess():
    one = trainee(trained=True).eval()
    samples = [Sample([4, 5, 6, 7, 8], [5, 6, 7, 8, 9]), Sample([9, 8, 7], [8, 7, 6])]
    found = head_accuracies(one, [pack(samples[:1]), pack(samples[1:])], VOCABULARY)
    ranks = [[], [], []]
    for sample in samples:
        ids, labels = torch.tensor(sample.ids), torch.tensor(sample.labels)
        hidden = one.body(ids[None], output_hidden_states=True).hidden_states[-1][0]
        states = one.heads(hidden, one.body.embedding(labels))
        for head in range(3):
            for place in range(len(ids) - head - 1):
                order = one.body.logits(states[head][place][None])[0].argsort(descending=True)
                ranks[head].append(order.tolist().index(labels[place + head + 1].item()))
    for head in range(3):
        share = [ranks[head].count(r) / len(ranks[head]) for r in range(VOCABULARY)]
        assert found[head] == pytest.approx(share)
