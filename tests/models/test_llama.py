import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_llama import make_model, make_pack
from transformers import LlamaForCausalLM as TheirModel

from hone.kernels import PackedLayout, packed_attention
from hone.models import ContiguousCache, RopeScaling, save_checkpoint


def in_transformers(model, folder) -> TheirModel:
    save_checkpoint(folder, model)
    return TheirModel.from_pretrained(folder, dtype="float32", attn_implementation="eager").eval()


def greedy(model, ids, mask, count, cached):
    """Continue left-padded rows, with the cache or by computing everything again."""
    cache = ContiguousCache(model.config, len(ids), ids.shape[1] + count) if cached else None
    start = 0
    for _ in range(count):
        fed = ids[:, start:] if cached else ids
        logits = model(fed, mask, cache, logits_to_keep=1).logits
        start = ids.shape[1]
        ids = torch.cat((ids, logits.argmax(-1)), dim=1)
        mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
    return ids


@pytest.mark.smoke
def test_logits_equal_those_of_transformers(model, tmp_path):
    theirs = in_transformers(model, tmp_path / "m")
    ids = torch.arange(30).view(2, 15) % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)
        ours, expected = model(ids, mask).logits, theirs(ids, attention_mask=mask).logits
    torch.testing.assert_close(ours[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)
    assert ours.isfinite().all()


def test_stretched_frequencies_of_llama_3(tmp_path):
    model = make_model(rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16), rope_theta=100.0, head_dim=16)
    theirs = in_transformers(model, tmp_path / "m")
    ids = torch.arange(50)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_loss_and_gradients_equal_those_of_transformers(model, tmp_path):
    theirs = in_transformers(model, tmp_path / "m")
    sequences = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7]]
    labels = sum(len(sequence) - 1 for sequence in sequences)
    loss = model.train().packed_loss(make_pack(sequences))
    loss.backward()
    expected = sum(
        theirs(torch.tensor([s]), labels=torch.tensor([s])).loss * (len(s) - 1) for s in sequences
    )
    expected.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name], atol=1e-5 * labels, rtol=1e-3, msg=name
        )


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


def test_greedy_with_cache_without_and_in_transformers(model, tmp_path):
    theirs = in_transformers(model, tmp_path / "m")
    ids = torch.tensor([[0, 0, 0, 7, 8], [0, 11, 12, 13, 14], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        cached = greedy(model, ids, mask, 12, cached=True)
        assert torch.equal(cached, greedy(model, ids, mask, 12, cached=False))
        alone = greedy(model, ids[:1, 3:], mask[:1, 3:], 12, cached=True)
    assert torch.equal(cached[0, 3:], alone[0])
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(
        ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert torch.equal(cached, expected)


def test_the_prompt_may_enter_the_cache_in_pieces(model):
    ids = torch.arange(24).view(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    cache = ContiguousCache(model.config, 2, 12)
    with torch.no_grad():
        whole = model(ids, mask).logits
        pieces = [
            model(ids[:, a:b], mask[:, :b], cache).logits for a, b in ((0, 5), (5, 6), (6, 12))
        ]
    torch.testing.assert_close(
        torch.cat(pieces, 1)[mask.bool()], whole[mask.bool()], atol=1e-4, rtol=1e-4
    )
    assert cache.length == 12


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
    def attend(layer, qkv, rotary):
        return packed_attention(qkv, rotary, layout, heads, kv_heads)

    pack = make_pack([[1, 2, 3, 4, 5, 6], [7, 8, 9]])
    layout = PackedLayout(pack.cu_seqlens)
    heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    keep = torch.tensor([8, 2, 3])
    with torch.no_grad():
        every = model.model(pack.input_ids_N, pack.position_ids_N, attend)
        some = model.model(pack.input_ids_N, pack.position_ids_N, attend, keep)
    torch.testing.assert_close(some, every[keep])
