"""Generation with an encoder: against transformers, and against itself in other batches."""

import json
import shutil

import pytest
import torch

import hone
from hone.core.errors import CheckpointError, RequestError
from hone.engine.sources import Alone, answer_tokens
from hone.kernels import AttentionRule
from hone.models import Packed, make_model, read_config, save_checkpoint

T5 = {
    "model_type": "t5",
    "d_model": 48,
    "d_kv": 8,
    "d_ff": 80,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 6,
    "n_positions": 32,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
BART = {
    "model_type": "bart",
    "d_model": 48,
    "encoder_layers": 2,
    "encoder_ffn_dim": 80,
    "encoder_attention_heads": 6,
    "decoder_layers": 2,
    "decoder_ffn_dim": 64,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 48,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
SHORT = hone.SamplingParams(max_tokens=5)
LONG = hone.SamplingParams(max_tokens=16, ignore_eos=True)


@pytest.fixture(scope="module", params=["t5", "bart"])
def folder(request, tokenizer, tmp_path_factory):
    """A small model with random weights, wide enough apart that its output varies."""
    values = {"t5": T5, "bart": BART}[request.param]
    sizes = {"vocab_size": tokenizer.vocab_size, "initializer_range": 0.35, "init_std": 0.2}
    model = make_model(read_config(values | sizes), dtype=torch.float32)
    model.initialise(seed=1)
    if request.param == "bart":  # else the tied head repeats the token that it reads
        with torch.no_grad():
            norm = model.decoder.layers[-1].post_attention_layernorm
            norm.weight.normal_(generator=torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("answers") / request.param
    save_checkpoint(folder, model, tokenizer)
    return folder


@pytest.fixture(scope="module")
def answering(folder):
    return hone.load(folder)


@pytest.fixture(scope="module")
def oracle(folder):
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def sources(prompts):
    return [prompt for prompt in prompts if len(prompt) < 60][:9]


def theirs(oracle, ids, steps, **options):
    """Their answer, without the token that starts it."""
    ids = torch.tensor([ids])
    found = oracle.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=steps,
        do_sample=False,
        **options,
    )
    return found[0, 1:].tolist()


def ids_of(results):
    return [result.token_ids for result in results]


def test_greedy_output_is_that_of_transformers(answering, oracle, sources):
    ends = {}
    for steps in (1, 2, 13):
        params = hone.SamplingParams(max_tokens=steps)
        for source, result in zip(sources, answering.generate(sources, params), strict=True):
            ids = answering.tokenizer.encode(source, add_special_tokens=True)
            assert result.prompt_token_ids == ids
            assert result.token_ids == theirs(oracle, ids, steps)
            ends[result.finish_reason, result.token_ids[-1] == 2] = True
            if len(result.token_ids) < steps:
                assert (result.finish_reason, result.token_ids[-1]) == ("stop", 2)
    forced = answering.answer.last is not None
    assert ("length", forced) in ends
    assert ("length", not forced) not in ends


def test_the_outputs_differ_from_source_to_source(answering, sources):
    found = answering.generate(sources, LONG)
    assert len({tuple(ids) for ids in ids_of(found)}) == len(sources)
    assert sum(len(set(ids)) for ids in ids_of(found)) > 5 * len(sources)


def test_a_padded_batch_of_transformers(answering, oracle, sources):
    ids = [answering.tokenizer.encode(s, add_special_tokens=True) for s in sources]
    width = max(map(len, ids))
    batch = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    options = {"eos_token_id": None, "forced_eos_token_id": None, "do_sample": False}
    oracle.generation_config.eos_token_id = None
    expected = oracle.generate(batch, attention_mask=mask, max_new_tokens=16, **options)
    oracle.generation_config.eos_token_id = 2
    assert ids_of(answering.generate(ids, LONG)) == expected[:, 1:].tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_answer_does_not_depend_on_the_batch(folder, sources, dtype):
    answering, sources = hone.load(folder, dtype=dtype), sources[:6]
    params = hone.SamplingParams(max_tokens=10, ignore_eos=True)
    together = ids_of(answering.generate(sources, params))
    alone = [ids_of(answering.generate(source, params))[0] for source in sources]
    turned = ids_of(answering.generate(sources[::-1], params))[::-1]
    assert together == alone == turned


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_scores_of_an_answer_are_the_same_bits_in_any_batch(folder, sources, dtype):
    answering = hone.load(folder, dtype=dtype, exact=True)
    if answering.row_counts() is None:
        pytest.skip("no count of rows makes this processor's products independent of their rows")

    def scores(batch):
        caught, head = [], answering.model.lm_head
        hook = head.register_forward_hook(lambda _, __, out: caught.append(out.clone()))
        answering.generate(batch, LONG)
        hook.remove()
        return caught

    for source in ([5], sources[5]):  # a source of one token too, whose products are padded
        crowd = scores([source, *([[7, 8] * 20] * 5)])
        for one, many in zip(scores([source]), crowd, strict=True):
            assert one[0].equal(many[0])


def test_the_cache_changes_nothing(answering, sources):
    (result,) = answering.generate(sources[3], LONG)
    source = torch.tensor([result.prompt_token_ids])
    ids = [answering.answer.start]
    for _ in range(LONG.max_tokens):
        with torch.inference_mode():
            scores = answering.model(source, decoder_input_ids=torch.tensor([ids])).logits
        ids.append(int(scores[0, -1].argmax()))
    assert result.token_ids == ids[1:]


def test_rows_leave_the_batch_when_they_are_done(answering, sources):
    whole = ids_of(answering.generate(sources, LONG))
    lengths = [1 + 5 * number % 14 for number in range(len(sources))]
    params = [hone.SamplingParams(max_tokens=n, ignore_eos=True) for n in lengths]
    found = ids_of(answering.generate(sources, params))
    assert found == [ids[:n] for ids, n in zip(whole, lengths, strict=True)]


def test_repetition_penalty_is_that_of_transformers(answering, oracle, sources):
    params = hone.SamplingParams(max_tokens=12, repetition_penalty=1.7)
    for source, result in zip(sources[:4], answering.generate(sources[:4], params), strict=True):
        expected = theirs(oracle, result.prompt_token_ids, 12, repetition_penalty=1.7)
        assert result.token_ids == expected, source


def test_streamed_pieces_are_the_text(answering, sources):
    pieces = dict.fromkeys(range(len(sources)), "")

    def show(index, piece):
        pieces[index] += piece

    for index, result in enumerate(answering.generate(sources, LONG, stream=show)):
        assert pieces[index] == result.text == answering.tokenizer.decode(result.token_ids)


def test_a_seed_repeats_its_answer_in_any_company(answering, sources):
    params = hone.SamplingParams(max_tokens=10, temperature=1.0, top_p=0.95, seed=11)
    (alone,) = answering.generate(sources[4], params)
    together = answering.generate(sources[:5], params)
    assert together[4].token_ids == alone.token_ids


def test_tokens_that_are_forced_come_first_and_last(folder, oracle, tmp_path, sources):
    shutil.copytree(folder, tmp_path / "forced")
    file = tmp_path / "forced" / "generation_config.json"
    forced = {"forced_bos_token_id": 44, "forced_eos_token_id": 2}
    file.write_text(json.dumps(json.loads(file.read_text()) | forced))
    answering = hone.load(tmp_path / "forced")
    for steps in (1, 2, 9):
        for penalty in (1.0, 1.3):
            params = hone.SamplingParams(max_tokens=steps, repetition_penalty=penalty)
            for result in answering.generate(sources[:3], params):
                more = forced | {"repetition_penalty": penalty}
                assert result.token_ids == theirs(oracle, result.prompt_token_ids, steps, **more)
                assert result.token_ids[0] == (2 if steps == 1 else 44)
    params = [hone.SamplingParams(max_tokens=n, min_tokens=n) for n in (3, 9)]
    short, long = answering.generate(sources[:2], params)
    assert (short.token_ids.index(2), long.token_ids.index(2)) == (2, 8)
    assert short.finish_reason == long.finish_reason == "length"


def test_without_a_generation_config_the_model_config_says_what_is_forced(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / "generation_config.json").unlink()
    answering, before = hone.load(tmp_path / "bare"), hone.load(folder)
    assert answering.answer == before.answer
    assert (
        answering.generate(["서울"], SHORT)[0].token_ids
        == before.generate(["서울"], SHORT)[0].token_ids
    )


def test_how_long_a_source_may_be(answering, oracle):
    ids = [3 + n % 90 for n in range(70)]
    if oracle.config.model_type == "bart":
        with pytest.raises(RequestError, match=r"Prompt 2: .* 49 tokens; this model reads 48\."):
            answering.generate([[5], ids[:49]])
        assert len(answering.generate([ids[:48]])[0].prompt_token_ids) == 48
        (result,) = answering.generate([[5]], hone.SamplingParams(max_tokens=None, ignore_eos=True))
        assert len(result.token_ids) == 47
    else:  # distances have no end
        params = hone.SamplingParams(max_tokens=40, ignore_eos=True)
        (result,) = answering.generate([ids], params)
        assert len(result.token_ids) == 40
        (result,) = answering.generate([ids])
        assert result.token_ids == theirs(oracle, ids, 256)


def test_what_answers_start_with_must_be_known():
    with pytest.raises(CheckpointError, match="decoder_start_token_id"):
        answer_tokens(read_config({"model_type": "t5"}), {})
    with pytest.raises(CheckpointError, match="forced_eos_token_id is 'x'"):
        answer_tokens(read_config({"model_type": "bart"}), {"forced_eos_token_id": "x"})
    bart = read_config({"model_type": "bart"})
    assert answer_tokens(bart, None).last == 2
    assert answer_tokens(bart, {}).last is None
    assert answer_tokens(bart, {"decoder_start_token_id": 7}).start == 7
    assert answer_tokens(read_config({"model_type": "t5"}), {"bos_token_id": 3}).start == 3


def test_sequences_that_stand_alone_are_attended_as_packed_ones():
    lengths = [5, 5, 2, 1, 3, 3]
    rule = AttentionRule(6, 2, causal=False)
    qkv = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    expected = Packed.of(lengths).attend(0, qkv[:19], None, rule, None)
    found = Alone(lengths).attend(0, qkv, None, rule, None)
    torch.testing.assert_close(found[:19], expected)
    assert not found[19:].any()
