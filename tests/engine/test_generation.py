"""Generation against transformers, and against itself in other batches."""

from dataclasses import replace

import pytest
import torch

import hone
from hone.core.errors import CheckpointError, RequestError
from hone.engine.invariance import safe_row_counts
from hone.models import CausalLM, ModelConfig, Rotary, save_checkpoint
from hone.models.positions import LongScaling

GREEDY = hone.SamplingParams(max_tokens=24, ignore_eos=True)
# Nothing is remembered from one call for the next, which is to compute all by itself.
FORGETFUL = hone.EngineOptions(prefix_sharing=False)


@pytest.fixture(scope="module")
def oracle(checkpoint):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def greedy(lm, prompts):
    return lm.generate(prompts, GREEDY)


def ids_of(results):
    return [result.token_ids for result in results]


def test_greedy_output_is_that_of_transformers(lm, oracle, prompts):
    params = hone.SamplingParams(max_tokens=20)
    for prompt, result in zip(prompts, lm.generate(prompts, params), strict=True):
        ids = torch.tensor([lm.tokenizer.encode(prompt, add_special_tokens=True)])
        expected = oracle.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False
        )
        assert result.prompt_token_ids == ids[0].tolist()
        assert result.token_ids == expected[0, ids.shape[1] :].tolist()
        assert result.finish_reason == ("stop" if result.token_ids[-1] == 2 else "length")


def test_repetition_penalty_is_that_of_transformers(lm, oracle, prompts):
    params = hone.SamplingParams(max_tokens=12, repetition_penalty=1.7)
    for prompt, result in zip(prompts[:4], lm.generate(prompts[:4], params), strict=True):
        ids = torch.tensor([lm.tokenizer.encode(prompt, add_special_tokens=True)])
        expected = oracle.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            repetition_penalty=1.7,
        )
        assert result.token_ids == expected[0, ids.shape[1] :].tolist()


def test_the_cache_changes_nothing(lm, prompts, greedy):
    for prompt, result in zip(prompts[:3], greedy, strict=False):
        ids = lm.tokenizer.encode(prompt, add_special_tokens=True)
        for _ in range(GREEDY.max_tokens):
            with torch.inference_mode():
                ids.append(int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert result.token_ids == ids[-GREEDY.max_tokens :]


@pytest.mark.parametrize(
    ("dtype", "threads"),
    [
        pytest.param("float32", 1, marks=pytest.mark.smoke),
        pytest.param("bfloat16", 1, marks=pytest.mark.smoke),
        ("float32", 2),
    ],
)
def test_greedy_output_does_not_depend_on_the_batch(checkpoint, prompts, dtype, threads):
    torch.set_num_threads(threads)
    lm = hone.load(checkpoint, dtype=dtype, options=FORGETFUL)
    prompts, params = (
        prompts[: 7 if threads == 1 else 4],
        hone.SamplingParams(max_tokens=7, ignore_eos=True),
    )
    together = ids_of(lm.generate(prompts, params))
    alone = [ids_of(lm.generate(prompt, params))[0] for prompt in prompts]
    threes = []
    for at in range(0, len(prompts), 3):
        threes += ids_of(lm.generate(prompts[at : at + 3], params))
    turned = ids_of(lm.generate(prompts[::-1], params))[::-1]
    assert together == alone == threes == turned


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_scores_of_a_row_are_the_same_bits_in_any_batch(checkpoint, prompts, dtype):
    lm = hone.load(checkpoint, dtype=dtype, exact=True, options=FORGETFUL)
    if lm.row_counts() is None:
        pytest.skip("no count of rows makes this processor's products independent of their rows")

    def scores(batch):
        caught = []
        hook = lm.model.lm_head.register_forward_hook(lambda _, __, out: caught.append(out.clone()))
        lm.generate(batch, GREEDY)
        hook.remove()
        return caught

    alone = scores([prompts[5]])
    crowd = scores([prompts[5], *(["x " * 50] * 6)])
    for one, many in zip(alone, crowd, strict=True):
        assert one[0].equal(many[0])


def test_safe_row_counts_lead_to_a_count_that_leads_to_itself(lm):
    counts = safe_row_counts(lm.model)
    if counts is not None:
        assert all(padded >= rows for rows, padded in enumerate(counts))
        assert all(counts[padded] == padded for padded in counts)


def test_inexact_generation_gives_the_same_text_here(checkpoint, prompts, greedy):
    lm = hone.load(checkpoint, exact=False)
    assert not lm.exact
    assert ids_of(lm.generate(prompts[:6], GREEDY)) == ids_of(greedy[:6])


def test_rows_leave_the_batch_when_they_are_done(lm, prompts, greedy):
    lengths = [1 + 3 * number % 23 for number in range(len(prompts))]
    params = [hone.SamplingParams(max_tokens=n, ignore_eos=True) for n in lengths]
    finished = []
    results = lm.generate(prompts, params, finished=lambda index, _: finished.append(index))
    assert ids_of(results) == [r.token_ids[:n] for r, n in zip(greedy, lengths, strict=True)]
    assert sorted(finished) == list(range(len(prompts)))
    assert [lengths[index] for index in finished] == sorted(lengths)


def test_the_cache_grows_when_the_output_is_long(lm):
    params = hone.SamplingParams(max_tokens=None, ignore_eos=True)
    short, long = lm.generate(["서울", "a " * 20], params)
    context = lm.config.max_position_embeddings
    assert len(short.token_ids) + len(short.prompt_token_ids) == context
    assert len(long.token_ids) + len(long.prompt_token_ids) == context
    assert {short.finish_reason, long.finish_reason} == {"length"}


@pytest.mark.smoke
def test_streamed_pieces_are_the_text(lm, prompts, greedy):
    pieces = {index: [] for index in range(len(prompts))}
    results = lm.generate(prompts, GREEDY, stream=lambda index, piece: pieces[index].append(piece))
    for index, result in enumerate(results):
        assert "".join(pieces[index]) == result.text == greedy[index].text
        assert lm.tokenizer.decode(result.token_ids) == result.text


@pytest.mark.smoke
def test_a_stop_string_ends_the_output_before_it(lm, prompts, greedy):
    for prompt, whole in zip(prompts, greedy, strict=True):
        stop = whole.text[3:6]
        if len(stop) < 3 or "\N{REPLACEMENT CHARACTER}" in whole.text:
            continue
        params = hone.SamplingParams(max_tokens=24, ignore_eos=True, stop=["never there", stop])
        shown = []
        (result,) = lm.generate(prompt, params, stream=lambda _, piece, to=shown: to.append(piece))
        assert result.finish_reason == "stop"
        assert result.text == "".join(shown) == whole.text[: whole.text.index(stop)]
        assert result.token_ids == whole.token_ids[: len(result.token_ids)]


def test_a_stop_token_ends_the_output_and_is_no_part_of_the_text(lm, prompts, greedy):
    token = greedy[0].token_ids[5]
    first = greedy[0].token_ids.index(token)
    params = hone.SamplingParams(max_tokens=24, ignore_eos=True, stop_token_ids=[token])
    (result,) = lm.generate(prompts[0], params)
    assert result.finish_reason == "stop"
    assert result.token_ids == greedy[0].token_ids[: first + 1]
    assert result.text == lm.tokenizer.decode(result.token_ids[:-1])
    later = hone.SamplingParams(
        max_tokens=24, ignore_eos=True, stop_token_ids=[token], min_tokens=first + 3
    )
    (result,) = lm.generate(prompts[0], later)
    assert len(result.token_ids) >= first + 3
    assert token not in result.token_ids[: first + 3]


@pytest.mark.smoke
def test_a_seed_repeats_its_output_in_any_company(lm, prompts):
    params = hone.SamplingParams(max_tokens=10, temperature=1.0, top_p=0.95, seed=11)
    (alone,) = lm.generate(prompts[4], params)
    others = [hone.SamplingParams(max_tokens=9, temperature=1.5) for _ in prompts]
    together = lm.generate(prompts, [*others[:4], params, *others[5:]])
    assert together[4].token_ids == alone.token_ids
    unseeded = hone.SamplingParams(max_tokens=10, temperature=1.0)
    drawn = {tuple(lm.generate(prompts[4], unseeded)[0].token_ids) for _ in range(4)}
    assert len(drawn) > 1


def test_prompts_may_be_ids_and_one_text_gives_a_list_of_one(lm, prompts, greedy):
    ids = lm.tokenizer.encode(prompts[0], add_special_tokens=True)
    assert ids_of(lm.generate(ids, GREEDY)) == ids_of(greedy[:1])
    assert ids_of(lm.generate([ids, torch.tensor(ids)], GREEDY)) == ids_of(greedy[:1]) * 2
    assert ids_of(lm.generate(prompts[0], GREEDY)) == ids_of(greedy[:1])
    assert lm.generate([], GREEDY) == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "The prompt is empty"),
        ([5000], "outside 0"),
        ([-1], "outside 0"),
        ([1] * 128, "128 tokens; this model reads 128"),
        (3, "prompts is 3"),
        ([2.5], "Prompt 1 is 2.5"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused(lm, prompt, message):
    with pytest.raises(RequestError, match=message):
        lm.generate([prompt] if prompt == [] else prompt, GREEDY)


def test_as_many_params_as_prompts(lm):
    with pytest.raises(RequestError, match="2 prompts and 1 params"):
        lm.generate(["a", "b"], [GREEDY])


def test_scores_that_are_no_numbers_are_reported(checkpoint):
    lm = hone.load(checkpoint)
    with torch.no_grad():
        lm.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not numbers"):
        lm.generate("a", GREEDY)


@pytest.mark.parametrize("exact", [False, True])
def test_rows_that_outgrow_their_rotary_positions_are_read_again(tokenizer, tmp_path, exact):
    from transformers import AutoModelForCausalLM

    long = LongScaling((1.0, 1.1, 1.3, 1.6), (1.0, 1.5, 2.5, 4.0), 9)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        model_type="phi3",
        positions=Rotary(500.0, scaling=long),
        initializer_range=0.3,
    )
    model = CausalLM(config, dtype=torch.float32)
    model.initialise(seed=2)
    save_checkpoint(tmp_path / "phi", model, tokenizer)
    lm = hone.load(tmp_path / "phi", exact=exact)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "phi", attn_implementation="eager")
    theirs.generation_config.eos_token_id = None
    prompts = [list(range(20, 20 + length)) for length in (2, 7, 8, 9, 10, 14)]
    params = [hone.SamplingParams(max_tokens=n, ignore_eos=True) for n in (12, 20, 3, 9, 6, 1)]
    found = lm.generate(prompts, params)
    for prompt, p, result in zip(prompts, params, found, strict=True):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=p.max_tokens,
            do_sample=False,
        )
        assert result.token_ids == expected[0, len(prompt) :].tolist()


def test_each_of_several_outputs_stops_for_itself(lm):
    drawn = hone.SamplingParams(
        max_tokens=24, ignore_eos=True, n=4, temperature=1.0, seed=5, logprobs=2
    )
    whole = lm.generate("서울에 사는", drawn)
    stop = next(r.text[4:6] for r in whole if "\N{REPLACEMENT CHARACTER}" not in r.text[:8])
    pieces = dict.fromkeys(range(4), "")

    def stream(index, piece):
        pieces[index] += piece

    found = lm.generate("서울에 사는", replace(drawn, stop=[stop]), stream)
    assert {result.finish_reason for result in found} >= {"stop"}
    for index, (one, all_of_it) in enumerate(zip(found, whole, strict=True)):
        assert one.text == pieces[index] == all_of_it.text.split(stop)[0]
        count = len(one.token_ids)
        assert one.token_ids == all_of_it.token_ids[:count]
        assert one.logprobs == all_of_it.logprobs[:count]
        assert (one.finish_reason == "stop") == (stop in all_of_it.text)
    ((_, engine),) = lm._kept
    assert engine.stats().free_blocks == engine.stats().blocks
    assert not engine.stats().running + engine.stats().waiting
