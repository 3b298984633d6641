"""Outputs under a grammar: whatever a model chooses among the allowed tokens is what was asked."""

import json
import random
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hone.core.errors import RequestError
from hone.engine import notation
from hone.engine.grammar import Grammars, Matcher
from hone.engine.params import Grammar, SamplingParams
from hone.engine.token_bytes import token_bytes
from hone.text.tokenizer import Tokenizer

sys.path.append(str(Path(__file__).resolve().parents[1] / "text"))

CHOICES = [
    "서울특별시",
    "서울",
    "부산",
    "yes",
    "yes, please",
    'a "quoted" one\n',
    "예/아니요 (1+1)*",
]
SCHEMA = {
    "type": "object",
    "properties": {
        "이름": {"type": "string", "maxLength": 6},
        "나이": {"type": "integer", "minimum": 0, "maximum": 150},
        "도시": {"enum": ["서울", "부산", None]},
        "태그": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 3},
        "주소": {"type": "object", "properties": {"동": {"const": "역삼동"}}, "required": ["동"]},
    },
    "required": ["이름", "도시", "태그"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, [tokenizer.eos_id], tokenizer.vocab_size + 40)


def allowed(grammars: Grammars, matcher: Matcher) -> set[int]:
    mask_W = np.full(grammars.words, -1, np.int32)
    matcher.fill(mask_W)
    return set(np.flatnonzero(np.unpackbits(mask_W.view(np.uint8), bitorder="little")).tolist())


def walk(
    grammars: Grammars, tokenizer: Tokenizer, grammar: Grammar, seed: int, most: int = 3000
) -> tuple[str, bool]:
    """What a model writes that chooses among the allowed tokens at random, and whether it ended."""
    draw, matcher, ids = random.Random(seed), grammars.matcher(grammar), []
    while not matcher.ended and len(ids) < most:
        tokens = allowed(grammars, matcher)
        assert (tokenizer.eos_id in tokens) == matcher.may_end
        assert tokens.isdisjoint(tokenizer.special_ids - {tokenizer.eos_id})
        assert all(token < tokenizer.vocab_size for token in tokens)
        token = draw.choice(sorted(tokens))
        assert matcher.accept(token)
        ids.append(token)
    return tokenizer.decode(ids), matcher.ended


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15)
def test_every_walk_is_json_of_the_schema(grammars, tokenizer, seed) -> None:
    jsonschema = pytest.importorskip("jsonschema_rs")
    text, ended = walk(grammars, tokenizer, Grammar("json", json.dumps(SCHEMA)), seed)
    assert ended
    assert jsonschema.is_valid(SCHEMA, json.loads(text)), text


def test_any_object(grammars, tokenizer) -> None:
    ends = 0
    for seed in range(30):
        text, ended = walk(grammars, tokenizer, Grammar("json", '{"type": "object"}'), seed, 60)
        ends += ended
        assert not ended or isinstance(json.loads(text), dict)
    assert ends


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15)
def test_every_walk_matches_the_expression(grammars, tokenizer, seed) -> None:
    expression = "(서울|부산)-[가-힣]{2}( [a-c]+[0-9]{1,3}){0,2}"
    text, ended = walk(grammars, tokenizer, Grammar("regex", expression), seed)
    assert not ended or re.fullmatch(expression, text), text


def test_every_walk_is_one_of_the_choices(grammars, tokenizer) -> None:
    grammar = Grammar("choice", json.dumps(CHOICES))
    found = {walk(grammars, tokenizer, grammar, seed) for seed in range(60)}
    assert {text for text, ended in found if ended} == set(CHOICES)
    assert all(ended for _, ended in found)


def test_a_language(grammars, tokenizer) -> None:
    grammar = Grammar("lark", 'start: pair{2,3}\npair: "(" ("가" | pair) ")"')
    text, _ = walk(grammars, tokenizer, grammar, 1)
    assert text.count("(") == text.count(")") >= 2


@given(seed=st.integers(0, 10_000), back=st.integers(0, 12))
@settings(max_examples=15)
def test_what_is_taken_back_leaves_no_trace(grammars, tokenizer, seed, back) -> None:
    draw, matcher = random.Random(seed), grammars.matcher(Grammar("json", json.dumps(SCHEMA)))
    masks: list[set[int]] = []
    while not matcher.ended and len(masks) < 25:
        masks.append(allowed(grammars, matcher))
        assert matcher.accept(draw.choice(sorted(masks[-1])))
    back = min(back, len(masks))
    other = matcher.copy()
    matcher.rollback(back)
    masks.append(allowed(grammars, other))
    assert allowed(grammars, matcher) == masks[len(masks) - 1 - back]


def test_a_token_that_may_not_come_changes_nothing(grammars, tokenizer) -> None:
    matcher = grammars.matcher(Grammar("choice", json.dumps(CHOICES)))
    before = allowed(grammars, matcher)
    for token in set(range(tokenizer.vocab_size)) - before:
        assert not matcher.accept(token)
    assert allowed(grammars, matcher) == before


def test_a_request_may_name_tokens_that_end_it(grammars, tokenizer) -> None:
    (stop,) = tokenizer.encode(",")
    grammar = Grammar("choice", json.dumps(["yes", "yes, please"]))
    matcher = grammars.matcher(grammar, [stop])
    assert stop not in allowed(grammars, matcher)
    for token in tokenizer.encode("yes"):
        assert matcher.accept(token)
    assert {stop, tokenizer.eos_id} <= allowed(grammars, matcher)
    assert matcher.accept(stop)
    assert matcher.ended
    matcher.rollback(1)
    assert not matcher.ended


def test_many_at_once(grammars) -> None:
    one, two = (grammars.matcher(Grammar("choice", json.dumps([text]))) for text in ("가", "b"))
    mask_RW = np.zeros((3, grammars.words), np.int32)
    grammars.fill([one, None, two], mask_RW)
    assert (mask_RW[1] == -1).all()
    assert (mask_RW[0] != mask_RW[2]).any()


@pytest.mark.parametrize(
    ("kind", "source", "why"),
    [
        ("json", "[" * 100_000, "nested too deeply"),
        ("json", '{"a":' * 30_000 + "1" + "}" * 30_000, "nested too deeply"),
        ("json", '{"not": [' * 40 + "]}" * 40, "at most 60 levels"),
        ("json", '{"a": "' + "x" * 300_000 + '"}', "at most 200,000"),
        ("json", "{", "not JSON"),
        ("json", '"\\ud800"', "not JSON"),
        ("json", "[]", "must be an object"),
        ("json", '{"$ref": "https://example.com/schema.json"}', "not read from elsewhere"),
        ("json", '{"$ref": "#/$defs/none"}', "does not exist"),
        ("json", '{"$ref": "#"}', "nothing can match"),
        ("json", '{"type": "integer", "minimum": 3, "maximum": 2}', "Unsatisfiable"),
        ("json", '{"not": {"type": "string"}}', "Unimplemented"),
        ("json", '{"type": "string", "pattern": "(?=a)b"}', "look-around"),
        ("regex", "(", "unclosed"),
        ("regex", "a" * 30_000, "at most 20,000"),
        ("choice", "[]", "one text or more"),
        ("choice", '["a", 1]', "one text or more"),
        ("choice", '"a"', "one text or more"),
        ("lark", "start: nobody", "grammar"),
        ("lark", "start: " + "(" * 50_000 + '"a"' + ")" * 50_000, "grammar"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_sentence(grammars, kind, source, why) -> None:
    with pytest.raises(RequestError) as caught:
        grammars.compile(Grammar(kind, source))
    message = str(caught.value)
    assert why in message
    assert "\n" not in message
    assert len(message) < 500


def test_a_recursive_schema_and_unknown_words_are_fine(grammars, tokenizer) -> None:
    tree = {"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}, "외": 1}}}
    text, ended = walk(
        grammars, tokenizer, Grammar("json", json.dumps(tree | {"$ref": "#/$defs/t"})), 3
    )
    assert not ended or isinstance(json.loads(text), list)


def test_what_would_compile_for_ever_is_stopped(grammars, monkeypatch) -> None:
    monkeypatch.setattr(notation, "_SECONDS", 0.8)
    patterns = [{"type": "string", "pattern": f"a{number}.*b"} for number in range(40)]
    with pytest.raises(RequestError, match="too complex to be compiled"):
        grammars.compile(Grammar("json", json.dumps({"allOf": patterns})))
    monkeypatch.undo()
    grammars.compile(Grammar("regex", "[0-9]{2}-again"))  # the helper is there again


def test_openings_are_found_out_once_and_stay_right(tokenizer) -> None:
    grammar = Grammar("choice", json.dumps(CHOICES))
    used, fresh = Grammars(tokenizer, [tokenizer.eos_id]), Grammars(tokenizer, [tokenizer.eos_id])
    for seed in range(40):
        walk(used, tokenizer, grammar, seed)
    for seed in range(10):
        assert walk(used, tokenizer, grammar, seed) == walk(fresh, tokenizer, grammar, seed)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gpt2", "t5", "bert"])
def test_any_kind_of_tokenizer(family, tmp_path) -> None:
    pytest.importorskip("transformers")
    import tokenizer_zoo

    tokenizer_zoo.make(family, tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    spelt = token_bytes(tokenizer)
    text = "Seoul customers price"
    joined = b"".join(spelt[index] for index in tokenizer.encode(text)).decode()
    assert joined.strip().casefold() == text.casefold()
    end = tokenizer.eos_id if tokenizer.eos_id is not None else tokenizer.sep_id
    grammars = Grammars(tokenizer, [end])
    grammar = Grammar("regex", " ?(seoul|customers|price){1,2}")
    for seed in range(5):
        draw, matcher, ids = random.Random(seed), grammars.matcher(grammar), []
        while not matcher.ended:
            token = draw.choice(sorted(allowed(grammars, matcher)))
            assert matcher.accept(token)
            ids += [] if token == end else [token]
        before = tokenizer.encode("price")
        text = tokenizer.decode([*before, *ids]).removeprefix(tokenizer.decode(before))
        assert re.fullmatch(grammar.source, text), text


@pytest.mark.smoke
def test_the_engine_honours_it_whatever_the_limits_say(lm) -> None:
    choice = Grammar("choice", json.dumps(["서울", "부산"]))
    params = [
        SamplingParams(max_tokens=40, grammar=choice, min_tokens=30),
        SamplingParams(max_tokens=40, grammar=choice, ignore_eos=True, temperature=1.5, seed=1),
        SamplingParams(
            max_tokens=40, grammar=Grammar("regex", "[0-9]{3}"), temperature=1.0, seed=2
        ),
    ]
    results = lm.generate(["어디?"] * 3, params)
    assert [result.finish_reason for result in results] == ["stop"] * 3
    assert results[0].text in ("서울", "부산")
    assert results[1].text in ("서울", "부산")
    assert re.fullmatch("[0-9]{3}", results[2].text)


def test_a_grammar_that_is_being_compiled_delays_no_step(tokenizer, grammars):
    names = [f"k{number}" for number in range(600)]
    schema = {"type": "object", "properties": {name: {"type": "integer"} for name in names}}
    grammar = Grammar("json", json.dumps(schema | {"required": names}))
    gaps, done = [0.0], threading.Event()
    compiling = threading.Thread(target=lambda: (grammars.compile(grammar), done.set()))
    start = before = time.perf_counter()
    compiling.start()
    while not done.wait(0.001):
        now = time.perf_counter()
        gaps.append(now - before)
        before = now
    compiling.join()
    assert max(gaps) < (time.perf_counter() - start) / 2
    assert grammar in grammars
    # The first mask was found out with it.
    assert grammars.matcher(grammar)._known() is not None
