"""Requests of different adapters in one pass, against the model with only one of them."""

import sys
from pathlib import Path

import pytest
import torch

from hone.adapters import LoraConfig, add_adapter, load_adapter, save_adapter, set_adapter
from hone.core.errors import CheckpointError, ConfigError, RequestError
from hone.engine import SamplingParams
from hone.engine.adapters import AdapterBank
from hone.engine.engine import Engine, EngineOptions
from hone.engine.invariance import pad_rows, safe_row_counts
from hone.engine.request import Request
from hone.engine.sources import Alone
from hone.models import CausalLM, ModelConfig
from hone.models.context import Packed
from hone.quant import quantize_nf4_model

CONFIGS = {
    "하나": LoraConfig(r=2),
    "two": LoraConfig(r=5, targets=["q_proj", "down_proj", "lm_head"], rslora=True),
    "dora": LoraConfig(r=4, targets=["v_proj", "up_proj"], dora=True),
    "four": LoraConfig(r=16, alpha=9, targets=["k_proj", "o_proj"]),
}
LENGTHS = [5, 1, 9, 3, 4, 1]
NAMES = ["하나", None, "two", "dora", "four", "하나"]


def make_model() -> CausalLM:
    model = CausalLM(ModelConfig(50, 64, 96, 2, 4, 2, max_position_embeddings=64))
    model.initialise(seed=2)
    model.adjoin_weights()
    return model.eval()


@torch.no_grad()
def _perturb(weights, seed):
    generator = torch.Generator().manual_seed(seed)
    for weight in weights:
        weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, config) in enumerate(CONFIGS.items()):
        model = make_model()
        _perturb(add_adapter(model, config, name).weights(), seed)
        save_adapter(model, folder / f"a{seed}")
    return {name: folder / f"a{seed}" for seed, name in enumerate(CONFIGS)}


def _bank(model, folders, exact=False) -> AdapterBank:
    bank = AdapterBank(model, exact)
    for name, folder in folders.items():
        bank.load(name, folder)
    return bank


def _ids(lengths) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(50, (length,), generator=generator) for length in lengths]


@torch.inference_mode()
def _pass(model, bank, names, ids, row_counts=()) -> list[torch.Tensor]:
    """Scores of the last token of each text, in one pass as the engine makes it."""
    lengths = [len(each) for each in ids]
    packed = Alone(lengths)
    bank.use(list(zip(names, lengths, strict=True)))
    hidden_NE = model.decoder(
        pad_rows(torch.cat(ids), row_counts), pad_rows(packed.positions_N(), row_counts), packed
    )
    last = torch.tensor(lengths).cumsum(0) - 1
    bank.use([(name, 1) for name in names])
    return list(model.logits(pad_rows(hidden_NE[last], row_counts))[: len(ids)])


@torch.inference_mode()
def _alone(folders, name, ids, prepare=None) -> torch.Tensor:
    """By the model with this adapter only."""
    model = make_model()
    if prepare is not None:
        prepare(model)
    if name is not None:
        load_adapter(model, folders[name])
    return model(ids[None]).logits[0, -1]


@pytest.mark.parametrize("prepare", [None, quantize_nf4_model])
def test_a_mixed_pass_equals_each_adapter_alone(folders, prepare):
    model = make_model()
    if prepare is not None:
        prepare(model)
    bank = _bank(model, folders)
    assert bank.names == list(CONFIGS)
    ids = _ids(LENGTHS)
    found = _pass(model, bank, NAMES, ids)
    plain = _pass(model, bank, [None] * len(ids), ids)
    for name, each, text, without in zip(NAMES, found, ids, plain, strict=True):
        expected = _alone(folders, name, text, prepare)
        torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-4)
        assert torch.allclose(each, without, atol=1e-3) is (name is None)


@pytest.mark.smoke
def test_without_adapters_in_a_pass_the_model_is_as_it_was(folders):
    model, ids = make_model(), _ids(LENGTHS)
    before = _pass(model, AdapterBank(model), [None] * len(ids), ids)
    bank = _bank(model, folders)
    assert not bank.use([(None, 3)])
    assert bank.use([(None, 3), ("two", 1)])
    after = _pass(model, bank, [None] * len(ids), ids)
    assert all(a.equal(b) for a, b in zip(before, after, strict=True))
    for name in CONFIGS:
        bank.unload(name)
    assert type(model.lm_head) is torch.nn.Linear
    assert {type(each) for each in model.modules()} == {type(x) for x in make_model().modules()}


@pytest.mark.smoke
def test_adapters_come_and_go(folders):
    model, ids = make_model(), _ids([6, 4])
    bank = _bank(model, folders)
    bank.unload("하나")
    assert bank.names == ["two", "dora", "four"]
    bank.load("again", folders["하나"])
    found = _pass(model, bank, ["again", "four"], ids)
    for each, name, text in zip(found, ("하나", "four"), ids, strict=True):
        torch.testing.assert_close(each, _alone(folders, name, text), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="'하나'"):
        bank.use([("하나", 2)])
    with pytest.raises(ConfigError, match="already"):
        bank.load("again", folders["two"])
    with pytest.raises(ConfigError, match="'three'"):
        bank.unload("three")


def test_bits_do_not_depend_on_the_batch_when_exact(folders):
    model = make_model()
    bank = _bank(model, folders, exact=True)
    row_counts = bank.row_counts
    assert row_counts
    ids, names = _ids(LENGTHS), NAMES
    together = _pass(model, bank, names, ids, row_counts)
    for order in ([5, 4, 3, 2, 1, 0], [2, 0], [3], [1], [4, 1]):
        found = _pass(model, bank, [names[i] for i in order], [ids[i] for i in order], row_counts)
        assert all(each.equal(together[i]) for each, i in zip(found, order, strict=True))


@pytest.mark.smoke
@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, targets=["q_proj", "embed_tokens"]),
        LoraConfig(r=2, targets=["q_proj"], modules_to_save=["lm_head"]),
        LoraConfig(r=2, targets=["q_proj"], token_ids=[3, 4]),
    ],
)
def test_what_cannot_be_batched_is_refused_and_nothing_is_left(config, folders, tmp_path):
    trained = make_model()
    _perturb(add_adapter(trained, config).weights(), 1)
    save_adapter(trained, tmp_path / "other")
    model, ids = make_model(), _ids([4])
    bank = AdapterBank(model)
    bank.load("two", folders["two"])
    before = _pass(model, bank, ["two"], ids)
    with pytest.raises(CheckpointError, match=r"other: the adapter changes .*; merge it"):
        bank.load("other", tmp_path / "other")
    assert bank.names == ["two"]
    assert _pass(model, bank, ["two"], ids)[0].equal(before[0])
    # The name is still free.
    bank.load("other", folders["four"])


def test_a_damaged_or_missing_adapter_is_refused(folders, tmp_path):
    trained = make_model()
    adapter = add_adapter(trained, CONFIGS["four"])
    with torch.no_grad():
        next(adapter.weights())[0, 0] = torch.nan
    save_adapter(trained, tmp_path / "nan")
    bank = AdapterBank(make_model())
    with pytest.raises(CheckpointError, match="damaged"):
        bank.load("nan", tmp_path / "nan")
    with pytest.raises(CheckpointError, match="nothing"):
        bank.load("nothing", tmp_path / "nothing")
    assert bank.names == []


@pytest.fixture
def pairs():
    """The small models of peft's that the tests of adapters go by."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
    try:
        import peft_pairs
    finally:
        sys.path.pop(0)
    return peft_pairs


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"r": 4, "target_modules": "all-linear", "use_dora": True}),
        ("gpt2", {"r": 4, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        ("mamba", {"r": 4, "target_modules": ["in_proj", "x_proj"]}),
    ],
)
def test_adapters_of_peft_side_by_side(family, settings, pairs, tmp_path):
    kind = "AutoModelForCausalLM"
    expected = {}
    for seed, name in enumerate(("one", "두번째")):
        theirs = pairs.make_theirs(family, kind, tmp_path / "base")
        adapted = pairs.peft_adapter(theirs, kind, **settings)
        pairs.perturb(pairs.trained(adapted), seed=seed)
        adapted.save_pretrained(tmp_path / name)
        expected[name] = pairs.scores(adapted, kind)[:, -1]
    model = pairs.make_ours(kind, tmp_path / "base")
    bank = _bank(model, {name: tmp_path / name for name in expected})
    texts = list(pairs.IDS)
    found = _pass(model, bank, ["one", "두번째"], texts)
    torch.testing.assert_close(found[0], expected["one"][0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[1], expected["두번째"][1], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(expected["one"], expected["두번째"], atol=1e-2)


@pytest.mark.parametrize("family", ["t5", "bart"])
@torch.inference_mode()
def test_an_encoder_decoder_takes_adapters_in_both_halves(family, pairs, tmp_path):
    kind = "AutoModelForSeq2SeqLM"
    pairs.make_theirs(family, kind, tmp_path / "base")
    with torch.inference_mode(False):
        for seed, name in enumerate(("a", "b")):
            trained = pairs.make_ours(kind, tmp_path / "base")
            _perturb(add_adapter(trained, LoraConfig(r=3)).weights(), seed)
            save_adapter(trained, tmp_path / name)
    model = pairs.make_ours(kind, tmp_path / "base")
    bank = _bank(model, {name: tmp_path / name for name in "ab"})
    sources, answers = [7, 4, 2], [2, 1, 3]
    names = ["a", "b", None]
    source_ids, answer_ids = _ids(sources), _ids(answers)
    source = Packed.of(sources)
    bank.use(
        list(zip(names, answers, strict=True)),
        list(zip(names, sources, strict=True)),
    )
    source_ME = model.encoder(torch.cat(source_ids), source.positions_N(), source)
    packed = Packed.of(answers, sources)
    hidden_NE = model.decoder(
        torch.cat(answer_ids), packed.positions_N(), packed, source_ME=source_ME
    )
    found = model.logits(hidden_NE).split(answers)
    for name, text, answer, each in zip(names, source_ids, answer_ids, found, strict=True):
        alone = pairs.make_ours(kind, tmp_path / "base")
        if name is not None:
            load_adapter(alone, tmp_path / name)
        expected = alone(input_ids=text[None], decoder_input_ids=answer[None]).logits[0]
        torch.testing.assert_close(each, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.smoke
def test_the_models_own_adapters_are_left_alone(folders):
    model = make_model()
    load_adapter(model, folders["two"], "own")
    set_adapter(model, None)
    bank = AdapterBank(model)
    with pytest.raises(ConfigError, match="'own'"):
        bank.load("own", folders["four"])
    set_adapter(model, "own")
    with pytest.raises(ConfigError, match="in use"):
        bank.load("other", folders["four"])
    assert bank.names == []


def _answers(engine, requests) -> dict[str, list[int]]:
    for request in requests:
        engine.add(request)
    found: dict[str, list[int]] = {request.id: [] for request in requests}
    while engine.busy:
        for delta in engine.step():
            found[delta.request] += delta.tokens
    return found


def test_the_engine_answers_each_request_with_its_adapter(folders, tokenizer):
    ids = _ids([9, 9, 24, 3, 24, 7, 1])
    names = ["하나", None, "two", "dora", "four", "하나", "two"]
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    requests = [
        Request(str(number), tuple(each.tolist()), params, adapter=name)
        for number, (name, each) in enumerate(zip(names, ids, strict=True))
    ]

    def engine(exact, **options) -> Engine:
        model = make_model()
        with torch.no_grad():
            for weight in model.parameters():
                weight *= 4  # so that scores lie apart
        model.requires_grad_(False)
        row_counts = (safe_row_counts(model) or ()) if exact else ()
        made = Engine(model, tokenizer, row_counts=row_counts, options=EngineOptions(**options))
        for name, folder in folders.items():
            made.adapters.load(name, folder)
        return made

    alone = {}
    one = engine(exact=True)
    for request in requests:
        alone |= _answers(one, [request])
    assert len({tuple(tokens) for tokens in alone.values()}) == len(requests)
    # Chunks of a prompt, other companions, another order.
    assert _answers(engine(exact=True), requests) == alone
    assert _answers(engine(exact=True, max_batch_tokens=16), requests[::-1]) == alone
    assert _answers(engine(exact=False), requests) == alone
    for request, name in zip(requests, names, strict=True):
        reference = make_model()
        with torch.no_grad():
            for weight in reference.parameters():
                weight *= 4
        if name is not None:
            load_adapter(reference, folders[name])
        written = list(request.prompt)
        for _ in range(12):
            with torch.inference_mode():
                scores = reference(torch.tensor([written])).logits[0, -1]
            written.append(int(scores.argmax()))
        assert written[len(request.prompt) :] == alone[request.id]
    with pytest.raises(RequestError, match="'five'"):
        one.add(Request("x", (1, 2), params, adapter="five"))


def test_nothing_is_left_of_an_adapter_whose_name_another_gets(folders, tokenizer):
    engine = Engine(make_model(), tokenizer)
    prompt, params = tuple(range(3, 43)), SamplingParams(max_tokens=4, ignore_eos=True, logprobs=0)

    def answer(name):
        engine.add(Request("r", prompt, params, adapter=name))
        found = []
        while engine.busy:
            found += [(told.token, told.logprob) for d in engine.step() for told in d.logprobs]
        return found

    engine.adapters.load("one", folders["하나"])
    engine.adapters.load("other", folders["four"])
    first, expected = answer("one"), answer("other")
    engine.add(Request("r", prompt, params, adapter="one"))
    with pytest.raises(ConfigError, match="still has the adapter 'one'"):
        engine.adapters.unload("one")
    engine.abort("r")
    engine.adapters.unload("one")
    engine.adapters.unload("other")
    engine.adapters.load("one", folders["four"])
    found = answer("one")
    assert [token for token, _ in found] == [token for token, _ in expected]
    logs = [torch.tensor([log for _, log in each]) for each in (first, expected, found)]
    torch.testing.assert_close(logs[2], logs[1])
    assert not torch.allclose(logs[2], logs[0])
