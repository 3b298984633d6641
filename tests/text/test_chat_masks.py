"""Which characters and tokens of a conversation are the assistant's."""

import json
import re
from pathlib import Path

import pytest
from chat_zoo import MARKED, ZOO, make_chat_tokenizer, oracle_of
from hypothesis import given
from hypothesis import strategies as st

from hone.core.errors import CheckpointError, RequestError
from hone.text.chat import ChatTemplate
from hone.text.conversation import Conversations, default_template
from hone.text.messages import canonical_messages, canonical_tools
from hone.text.offsets import OffsetEncoder
from hone.text.tokenizer import Tokenizer

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "부산"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
PLAIN = [
    {"role": "user", "content": "서울에 사는 고객은 몇 명이야?"},
    {"role": "assistant", "content": "12명 😀."},
    {"role": "user", "content": "How many?\n"},
    {"role": "assistant", "content": "네, 1,234.\n\n  Don't ask."},
]
SYSTEM = [{"role": "system", "content": "You are 서울."}, *PLAIN]
CALLS = [
    {"role": "user", "content": "부산 날씨?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "맑음"},
    {"role": "assistant", "content": "맑아요."},
]


@pytest.fixture(scope="module", params=ZOO)
def zoo(request):
    return request.param, Conversations(make_chat_tokenizer(request.param))


def answers_of(messages):
    return [i for i, item in enumerate(messages) if item["role"] == "assistant"]


def texts_of(found):
    return [item.text[start:end] for item in found for start, end in item.spans]


def test_every_answer_is_found_with_what_ends_its_turn(zoo):
    name, writer = zoo
    end = ZOO[name][5]
    found = texts_of(writer.answers(PLAIN, None, [1, 3]))
    assert len(found) == 2
    for text, message in zip(found, [PLAIN[1], PLAIN[3]], strict=True):
        before = "<think>\n\n</think>\n\n" if name == "qwen" else ""
        assert text.strip() == before + message["content"] + end


def test_the_text_before_an_answer_is_what_serving_asks_with(zoo):
    _, writer = zoo
    for item in writer.answers(PLAIN, None, [1, 3]):
        if item.prompted:
            prompts = [writer.prompt(PLAIN[:1]), writer.prompt(PLAIN[:3])]
            assert all(item.text[:start] in prompts for start, _ in item.spans)


def test_only_what_changes_an_answer_takes_a_text_per_answer(zoo):
    name, writer = zoo
    found = writer.answers(PLAIN, None, [1, 3])
    assert len(found) == (2 if name == "qwen" else 1)
    behind = "<|user|>" if name == "glm" else ""
    assert found[-1].text == writer.text(PLAIN) + behind
    # With one question there is nothing that a later one would change.
    assert len(writer.answers(PLAIN[:2], None, [1])) == 1


def test_the_last_answer_alone(zoo):
    name, writer = zoo
    (found,) = writer.answers(PLAIN, None, [3])
    (text,) = texts_of([found])
    assert text.strip().endswith("Don't ask." + ZOO[name][5])
    assert "12명" not in text


def test_tokens_are_those_of_transformers(zoo):
    _, writer = zoo
    oracle = oracle_of(writer.tokenizer)
    for messages in (PLAIN, PLAIN[:2]):
        expected = oracle.apply_chat_template(messages, return_dict=False)
        assert writer.tokenizer.encode(writer.text(messages)) == expected
        (encoded,) = OffsetEncoder(writer.tokenizer).encode_batch([writer.text(messages)])
        assert encoded.ids == expected
        prompt = oracle.apply_chat_template(
            messages[:1], add_generation_prompt=True, return_dict=False
        )
        assert writer.prompt_ids(messages[:1]) == prompt


@pytest.mark.parametrize("messages", [PLAIN, SYSTEM, PLAIN[:2], CALLS])
def test_marked_answers_are_those_of_transformers(messages):
    writer = Conversations(make_chat_tokenizer("marked"))
    (found,) = writer.answers(messages, None, answers_of(messages))
    (encoded,) = OffsetEncoder(writer.tokenizer).encode_batch([found.text])
    mask = [0] * len(encoded.ids)
    for span in found.spans:
        for token in encoded.tokens_of(span):
            mask[token] = 1
    expected = oracle_of(writer.tokenizer).apply_chat_template(
        messages, return_assistant_tokens_mask=True, return_dict=True
    )
    assert encoded.ids == expected["input_ids"]
    assert mask == expected["assistant_masks"]
    assert sum(mask)


def test_some_of_the_marked_answers():
    writer = Conversations(make_chat_tokenizer("marked"))
    (found,) = writer.answers(PLAIN, None, [3])
    assert texts_of([found]) == [PLAIN[3]["content"] + "<|im_end|>"]


def test_marks_leave_no_trace_and_work_on_them_is_refused():
    template = ChatTemplate(MARKED)
    text, spans = template.render_marked(PLAIN)
    assert text == template.render(PLAIN, add_generation_prompt=False)
    assert [text[a:b] for a, b in spans] == [
        message["content"] + "<|im_end|>" for message in (PLAIN[1], PLAIN[3])
    ]
    worked = "{% set x %}{% generation %}ab{% endgeneration %}{% endset %}{{ x[1:3] }}"
    with pytest.raises(RequestError, match="changes what its generation blocks wrote"):
        ChatTemplate(worked).render_marked(PLAIN)
    # A text with such a character in it cannot pass for a mark.
    with pytest.raises(RequestError, match="cannot"):
        template.render_marked([PLAIN[0], {"role": "assistant", "content": "a\ufdd0b"}])


def test_calls_of_tools_are_the_assistants():
    writer = Conversations(make_chat_tokenizer("qwen"))
    found = texts_of(writer.answers(CALLS, TOOLS, [1, 3]))
    assert any(
        '<tool_call>\n{"name": "weather", "arguments": {"city": "부산"}}\n</tool_call><|im_end|>'
        in text
        for text in found
    )
    assert not any("맑음" in text for text in found)


def test_an_answer_ends_where_the_next_turn_begins_or_with_the_end_token():
    writer = Conversations(make_chat_tokenizer("glm"))
    found = writer.answers(CALLS, TOOLS, [1, 3])
    assert texts_of(found) == ['weather{"city": "부산"}<|observation|>', "맑아요.<|user|>"]
    bare = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    bare += "{% if add_generation_prompt %}assistant:{% endif %}"
    writer = Conversations(make_chat_tokenizer("chatml"), bare)
    found = writer.answers(PLAIN, None, [1, 3])
    assert texts_of(found) == [
        " 12명 😀.<|im_end|>", " 네, 1,234.\n\n  Don't ask.<|im_end|>"
    ]  # fmt: skip
    assert found[1].text.startswith("user: 서울에 사는 고객은 몇 명이야?\nassistant: 12명 😀.\n")
    writer.tokenizer.eos_token = None
    with pytest.raises(RequestError, match="ends no answer with a token of its own"):
        Conversations(writer.tokenizer, bare.replace("user", "")).answers(
            [{"role": "user", "content": "a"}, PLAIN[1]], None, [1]
        )


def test_a_content_that_is_left_out_is_found_out():
    parts = "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{{ p.text }}{% endfor %}"
    parts += "<|im_end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    with pytest.raises(RequestError, match="does not write an answer as it is given"):
        Conversations(make_chat_tokenizer("chatml"), parts).answers(PLAIN, None, [1])


def published_templates(marked):
    """Every third of those that mark answers, or of those that do not: compiling takes long."""
    trl = pytest.importorskip("trl")
    files = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    return [file for file in files if ("endgeneration" in file.read_text()) == marked][::3]


def with_tokens_of(source):
    """A tokenizer that has the special tokens of a template."""
    tokens = set(re.findall(r"<\|[^|\s]+\|>|<｜[^｜]+｜>|<[a-z]+_of_[a-z]+>|<[a-z]*\|>", source))
    tokenizer = make_chat_tokenizer("chatml")
    tokenizer.backend.add_special_tokens(sorted(tokens))
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    return Tokenizer(tokenizer.backend, config, source)


def test_published_templates_mark_what_transformers_marks():
    count = 0
    for file in published_templates(marked=True):
        source = file.read_text()
        assert ChatTemplate(source).marks_answers
        writer = Conversations(with_tokens_of(source))
        oracle = oracle_of(writer.tokenizer)
        for messages, tools in ((PLAIN, None), (CALLS, TOOLS)):
            try:
                (found,) = writer.answers(messages, tools, answers_of(messages))
            except RequestError:
                continue
            (encoded,) = OffsetEncoder(writer.tokenizer).encode_batch([found.text])
            tokens = {token for span in found.spans for token in encoded.tokens_of(span)}
            expected = oracle.apply_chat_template(
                messages, tools=tools, return_assistant_tokens_mask=True, return_dict=True
            )
            assert encoded.ids == expected["input_ids"], file.name
            assert [int(t in tokens) for t in range(len(encoded.ids))] == expected[
                "assistant_masks"
            ], file.name
            count += 1
    assert count > 8


def test_published_templates_are_followed_or_refused():
    followed, refused = 0, []
    for file in published_templates(marked=False):
        source = file.read_text()
        assert not ChatTemplate(source).marks_answers
        writer = Conversations(with_tokens_of(source))
        try:
            found = writer.answers(PLAIN, None, [1, 3])
        except RequestError:
            refused.append(file.name)
            continue
        followed += 1
        for text, message in zip(texts_of(found), (PLAIN[1], PLAIN[3]), strict=True):
            ids = writer.tokenizer.encode(text)
            assert ids[-1] in writer.tokenizer.special_ids, file.name
            assert message["content"] in text, file.name
            assert PLAIN[2]["content"].strip() not in text, file.name
    assert followed > 8
    # Thinking that is asked for and not there, and templates for pictures.
    assert all(re.match("deepseek|nemotron|idefics|llava|smolvlm", name) for name in refused)


def test_a_template_that_leaves_calls_out_is_found_out():
    assert Conversations(make_chat_tokenizer("qwen")).writes_tools
    writer = Conversations(make_chat_tokenizer("chatml"))
    assert not writer.writes_tools
    with pytest.raises(RequestError, match="does not write tool calls"):
        writer.answers(CALLS, TOOLS, [1, 3])


def test_a_system_message_goes_before_the_first_user_where_the_template_knows_none():
    for name in ("gemma", "mistral"):
        writer = Conversations(make_chat_tokenizer(name))
        with pytest.raises(RequestError):
            ChatTemplate(writer.source(), writer.tokenizer.config).render(SYSTEM)
        folded = [{"role": "user", "content": "You are 서울.\n\n" + PLAIN[0]["content"]}]
        assert writer.text(SYSTEM) == writer.text([*folded, *PLAIN[1:]])
        assert writer.prompt(SYSTEM[:2]) == writer.prompt(folded)
        assert texts_of(writer.answers(SYSTEM, None, [2, 4])) == texts_of(
            writer.answers(PLAIN, None, [1, 3])
        )
    assert "<|im_start|>system\n" in Conversations(make_chat_tokenizer("chatml")).text(SYSTEM)


@pytest.mark.smoke
def test_a_template_that_asks_otherwise_than_it_writes_is_refused():
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>{% endif %}"
    )
    tokenizer = make_chat_tokenizer("chatml")
    with pytest.raises(RequestError, match="asks for an answer in another way"):
        Conversations(tokenizer, source).answers(PLAIN, None, [1])
    silent = "{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}"
    with pytest.raises(RequestError, match="writes nothing of an answer"):
        Conversations(tokenizer, silent).answers(PLAIN[:2], None, [1])


def test_a_model_without_a_template_gets_one():
    tokenizer = make_chat_tokenizer("chatml")
    tokenizer.chat_templates = {}
    writer = Conversations(tokenizer)
    assert not writer.own
    assert writer.source() == default_template(tokenizer)
    assert writer.writes_tools
    assert texts_of(writer.answers(PLAIN, None, [1, 3])) == [
        f"{message['content']}<|im_end|>" for message in (PLAIN[1], PLAIN[3])
    ]
    trained = Tokenizer.train(["고객은 몇 명?"], 300)
    plain = Conversations(trained)
    assert plain.writes_tools
    assert not plain.folds_system
    assert plain.text(SYSTEM).startswith("<bos>### System:\nYou are 서울.\n\n### User:\n")
    assert texts_of(plain.answers(SYSTEM, None, [2, 4])) == ["12명 😀.<eos>", *[
        "네, 1,234.\n\n  Don't ask.<eos>"
    ]]  # fmt: skip
    assert '"city": "부산"' in "".join(texts_of(plain.answers(CALLS, TOOLS, [1, 3])))
    for model in (tokenizer, trained):
        rendered = oracle_of(model).apply_chat_template(
            CALLS, tools=TOOLS, chat_template=default_template(model), tokenize=False
        )
        assert rendered == Conversations(model).text(CALLS, TOOLS)
    trained.eos_token, trained.eos_id = None, None
    with pytest.raises(CheckpointError, match="neither a chat template nor an end token"):
        default_template(trained)


words = st.text(
    st.sampled_from("ab서울. \n😀<'1é") | st.characters(codec="utf-8", exclude_categories=["Cs"]),
    max_size=12,
)


@given(st.sampled_from(list(ZOO)), words, words)
def test_places_leave_no_character_out(name, first, second):
    tokenizer = _TOKENIZERS.setdefault(name, make_chat_tokenizer(name))
    encoder = OffsetEncoder(tokenizer)
    text = f"{first}{tokenizer.eos_token}{second}"
    (encoded,) = encoder.encode_batch([text])
    assert encoded.ids == tokenizer.encode(text)
    assert encoded.starts == sorted(encoded.starts)
    assert encoded.ends == sorted(encoded.ends)
    covered = {at for a, b in zip(encoded.starts, encoded.ends, strict=True) for at in range(a, b)}
    assert covered == set(range(len(text)))
    middle = len(first)
    assert not encoded.cuts(middle)
    inside = encoded.tokens_of((middle, len(text)))
    assert [encoded.ids[token] for token in inside][:1] == [tokenizer.eos_id]
    assert inside.stop == len(encoded.ids)


@given(st.sampled_from(["llama3", "mistral"]), words)
def test_a_continuation_has_no_beginning(name, text):
    tokenizer = _TOKENIZERS.setdefault(name, make_chat_tokenizer(name))
    ids = OffsetEncoder(tokenizer).encode_continuation(text)
    start = tokenizer.encode("서울.")
    assert tokenizer.decode(start + ids, False) == "서울." + text


_TOKENIZERS: dict = {}


@pytest.mark.smoke
def test_messages_of_other_spellings():
    found = canonical_messages(
        [
            {"role": "human", "content": [{"type": "text", "text": "부산"}, " 날씨?"]},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "1", "type": "function",
                 "function": {"name": "weather", "arguments": '{"city": "부산"}'}}]},
            {"role": "observation", "content": [{"type": "text", "value": "맑음"}]},
            {"role": "gpt", "content": "", "function_call": {"name": "f", "arguments": ""}},
        ]
    )  # fmt: skip
    call = CALL | {"id": "1"}
    assert found == [
        {"role": "user", "content": "부산 날씨?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "맑음"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
        },
    ]
    assert canonical_messages(found) == found
    bare = {"name": "f", "parameters": {}}
    assert canonical_tools(json.dumps([bare])) == [{"type": "function", "function": bare}]
    assert canonical_tools(TOOLS) == TOOLS
    assert canonical_tools("") is canonical_tools([]) is canonical_tools(None) is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("hi", "Message 1 is 'hi'"),
        ({"content": "x"}, 'no "role"; its keys are content'),
        ({"role": "user"}, 'Message 1 .user. has no "content"'),
        ({"role": "user", "content": 7}, '"content" must be a text, found 7'),
        ({"role": "user", "content": [{"type": "image"}]}, "of the type 'image'; only text"),
        ({"role": "assistant", "tool_calls": [{}]}, "write .*name"),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]},
            "arguments of 'f' are not valid JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]},
            "must be an object",
        ),
    ],
)
def test_bad_messages_are_named(message, reason):
    with pytest.raises(RequestError, match=reason):
        canonical_messages([message])
    with pytest.raises(RequestError, match="tools"):
        canonical_tools("{")
