import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_llama import make_model, make_pack

from hone.models import Packed


def test_batched_forward_trains_like_the_pack(model):
    sequences = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]
    model.packed_loss(make_pack(sequences)).backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    ids = torch.tensor(sequences)
    logits = model(ids).logits[:, :-1]
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
    ).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, packed[name], atol=1e-4, rtol=1e-3, msg=name)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(2, 20), min_size=1, max_size=8), st.randoms())
def test_nothing_leaks_between_sequences_of_a_pack(lengths, random):
    model = make_model(tie_word_embeddings=True)
    sequences = [[random.randrange(61) for _ in range(length)] for length in lengths]
    alone = [model.packed_loss(make_pack([sequence])).item() for sequence in sequences]
    together = model.packed_loss(make_pack(sequences)).item()
    assert together == pytest.approx(sum(alone), rel=1e-5, abs=1e-4)
    # Another neighbour changes nothing at all.
    other = [[60 - token for token in sequence] for sequence in sequences[1:]]
    pack = make_pack([sequences[0], *other])
    pack.labels_N[lengths[0] :] = -100
    assert model.packed_loss(pack).item() == pytest.approx(alone[0], rel=1e-5, abs=1e-4)


def test_prompt_without_labels_costs_nothing_and_counts_nothing(model):
    pack = make_pack([[1, 2, 3, 4, 5, 6]])
    pack.labels_N[:3] = -100
    part = model.packed_loss(pack).item()
    with torch.no_grad():
        logp = model(pack.input_ids_N[None]).logits[0].log_softmax(-1)
    assert part == pytest.approx(-(logp[3, 5] + logp[4, 6]).item(), abs=1e-4)
    pack.labels_N[:] = -100
    loss = model.packed_loss(pack)
    loss.backward()
    assert loss == 0


def test_initial_weights_depend_on_the_seed_only():
    first, again = make_model(), make_model()
    for ours, same in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, same)
    first.initialise(seed=2)
    assert not torch.equal(first.lm_head.weight, again.lm_head.weight)
    std = first.model.embed_tokens.weight.std().item()
    assert std == pytest.approx(0.2, rel=0.05)
    assert first.model.layers[0].mlp.down_proj.weight.std().item() == pytest.approx(
        0.2 / 6**0.5, rel=0.05
    )


def test_bfloat16_trains_within_its_precision():
    model = make_model(tie_word_embeddings=True, initializer_range=0.05)
    pack = make_pack([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8, 9, 7, 9]])
    exact = model.packed_loss(pack)
    exact.backward()
    expected = model.model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    model.to(torch.bfloat16)
    loss = model.packed_loss(pack)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    found = model.model.embed_tokens.weight.grad
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.03 * expected.norm()


def test_adjoined_weights_train_alike():
    pack = make_pack([[3, 1, 4, 1, 5], [9, 2, 6]])
    apart, together = make_model(), make_model()
    together.adjoin_weights()
    for model in (apart, together):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        for _ in range(3):
            model.packed_loss(pack).backward()
            optimizer.step()
            optimizer.zero_grad()
    for (name, ours), theirs in zip(together.named_parameters(), apart.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_rows_that_nobody_asks_for_change_nothing_and_leave_early(model):
    pack = make_pack([[1, 2, 3, 4, 5, 6], [7, 8, 9]])
    context = Packed.of([6, 3])
    keep = torch.tensor([8, 2, 3])
    with torch.no_grad():
        every = model.decoder(pack.input_ids_N, pack.position_ids_N, context)
        some = model.decoder(pack.input_ids_N, pack.position_ids_N, context, keep)
    torch.testing.assert_close(some, every[keep])
