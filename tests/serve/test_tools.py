"""Calls of functions: read from every form that models write, forced by grammars, in the API."""

import json

import numpy as np
import openai
import pytest
from chat_zoo import QWEN, make_chat_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from scripted import make_app, scripted, serving
from starlette.testclient import TestClient

from hone.serve.openai.calls import CallPart, JsonCalls
from hone.serve.openai.tools import (
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    CallWriter,
    find_format,
)
from hone.text.conversation import Conversations

LLAMA_TEMPLATE = """
{%- for m in messages %}
    {%- if m.tool_calls %}
        {{- 'assistant: {"name": "' + m.tool_calls[0].function.name + '", ' }}
        {{- '"parameters": ' + m.tool_calls[0].function.arguments | tojson + '}' }}
    {%- else %}{{ m.role + ': ' + m.content + '\\n' }}{% endif %}
{%- endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}
"""
MISTRAL_TEMPLATE = """
{%- for m in messages %}
    {%- if m.tool_calls %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in m.tool_calls %}
            {%- if call.id | length != 9 %}{{ raise_exception('ids have 9 signs') }}{% endif %}
            {{- {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
        {%- endfor %}{{ ']' }}
    {%- else %}{{ m.content }}{% endif %}
{%- endfor %}
"""
NAMED_TEMPLATE = """
{%- for m in messages %}
    {%- for call in m.tool_calls or [] %}
        {{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + call.function.arguments | tojson }}
    {%- endfor %}
{%- endfor %}
"""
ARGUMENTS = ['{"도시": "서울"}', "{}", '{"a": [1, {"b": "}]"}], "c": "\\"\\\\"}', '{ "x" :\n1 }']


def read(reader, pieces):
    """The text, and the calls with their arguments joined."""
    text, calls = "", []
    for piece in [*pieces, None]:
        for item in reader.finish() if piece is None else reader.push(piece):
            if isinstance(item, str):
                text += item
            elif item.name is not None:
                assert item.index == len(calls)
                calls.append([item.name, item.arguments])
            else:
                assert item.index == len(calls) - 1
                calls[-1][1] += item.arguments
    return text, calls


def spelled(form, calls, text=""):
    """How a model of this family writes calls."""
    objects = [
        f'{{"name": {json.dumps(name, ensure_ascii=False)}, "KEY": {arguments}}}'
        for name, arguments in calls
    ]
    if form is HERMES:
        return text + "\n".join(
            f"<tool_call>\n{one.replace('KEY', 'arguments')}\n</tool_call>" for one in objects
        )
    if form is MISTRAL:
        return text + "[TOOL_CALLS] [" + ", ".join(objects).replace("KEY", "arguments") + "]"
    if form is MISTRAL_NAMED:
        return text + "".join(f"[TOOL_CALLS]{name}[ARGS]{arguments}" for name, arguments in calls)
    return "; ".join(objects).replace("KEY", "parameters")


@pytest.mark.smoke
@pytest.mark.parametrize("form", [HERMES, MISTRAL, MISTRAL_NAMED, LLAMA], ids=lambda f: f.name)
@given(data=st.data())
def test_calls_are_read_however_they_are_cut(form, data):
    calls = data.draw(
        st.lists(
            st.tuples(st.sampled_from(["날씨", "f", "a_b-c"]), st.sampled_from(ARGUMENTS)),
            min_size=1,
            max_size=3,
        )
    )
    before = "" if form is LLAMA else data.draw(st.sampled_from(["", "잠시만요.", "1 < 2 "]))
    whole = spelled(form, calls, before)
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=12).map(sorted))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    text, found = read(form.read(False), pieces)
    assert text == before.rstrip()
    assert [tuple(call) for call in found] == calls


@pytest.mark.parametrize("form", [HERMES, MISTRAL, MISTRAL_NAMED, LLAMA], ids=lambda f: f.name)
@given(st.text(alphabet='<tool_calTOLCALLSARG>[]{}"name\\: ,1가 \n/|', max_size=60), st.data())
def test_whatever_a_model_writes_nothing_is_lost_or_raised(form, written, data):
    cut = data.draw(st.integers(0, len(written)))
    text, calls = read(form.read(False), [written[:cut], written[cut:]])
    whole = read(form.read(False), [written])
    assert (text, calls) == whole  # however it is cut
    if not calls:
        assert text.rstrip() == written.rstrip()


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("<tool_call>\nnot json\n</tool_call>", "<tool_call>\nnot json\n</tool_call>"),
        ('<tool_call>\n{"nome": "f"}</tool_call>', '<tool_call>\n{"nome": "f"}</tool_call>'),
        ('<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>'),
        ("a <tool", "a <tool"),
        ("a\n\nb", "a\n\nb"),
        ('<tool_call>\n{"na', '<tool_call>\n{"na'),
    ],
)
def test_what_only_looks_like_a_call_is_text(written, text):
    assert read(HERMES.read(False), list(written)) == (text, [])


@pytest.mark.parametrize(
    ("written", "calls"),
    [
        ('{"arguments": {"a": 1}, "name": "f"}', [["f", '{"a": 1}']]),
        ('{"name": "f"}', [["f", "{}"]]),
        ('{"name": "f", "arguments": "{\\"a\\": \\"가\\"}"}', [["f", '{"a": "가"}']]),
        ('{"name": "f", "arguments": null}', [["f", "{}"]]),
        ('{"type": "function", "id": 3, "name": "f", "arguments": {}}', [["f", "{}"]]),
        ('{"name": "f", "arguments": {"a": 1', [["f", '{"a": 1']]),  # cut off at max_tokens
    ],
)
def test_calls_that_are_written_otherwise(written, calls):
    assert read(JsonCalls("<tool_call>", "</tool_call>", opened=True), [written])[1] == calls


def test_arguments_come_while_they_are_written():
    reader = HERMES.read(False)
    assert reader.push('<tool_call>\n{"name": "날') == []
    assert reader.push('씨", "argu') == [CallPart(0, "날씨")]
    assert reader.push('ments": {"도') == [CallPart(0, None, '{"도')]
    assert reader.push('시": "서') == [CallPart(0, None, '시": "서')]
    assert reader.push('울"}}\n</tool_') == [CallPart(0, None, '울"}')]
    assert reader.push("call>") == []
    assert reader.calls == 1


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (QWEN, HERMES),
        (LLAMA_TEMPLATE, LLAMA),
        (MISTRAL_TEMPLATE, MISTRAL),
        (NAMED_TEMPLATE, MISTRAL_NAMED),
        (None, HERMES),  # hone's own
        ("{{ messages[0].content }}", None),
        ("{{ raise_exception('no') }}", None),
    ],
)
def test_the_form_is_told_by_the_template(template, form):
    tokenizer = make_chat_tokenizer("qwen")
    tokenizer.chat_templates = {} if template is None else {"default": template}
    assert find_format(Conversations(tokenizer)) is form


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "날씨",
            "description": "도시의 날씨",
            "parameters": {
                "type": "object",
                "properties": {"도시": {"$ref": "#/$defs/city"}},
                "required": ["도시"],
                "additionalProperties": False,
                "$defs": {"city": {"enum": ["서울", "부산"]}},
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
ASK = [{"role": "user", "content": "서울 날씨 어때?"}]


def accepts(grammar, text):
    """Whether a grammar takes a text whole."""
    from hone.engine.grammar import Grammars

    tokenizer = make_chat_tokenizer("qwen")
    matcher = Grammars(tokenizer, [tokenizer.eos_id]).matcher(grammar)
    return all(matcher.accept(token) for token in tokenizer.encode(text)) and matcher.may_end


@pytest.mark.parametrize("form", [HERMES, MISTRAL, LLAMA], ids=lambda f: f.name)
def test_a_forced_call_is_what_the_reader_reads(form):
    writer = CallWriter(form, make_chat_tokenizer("qwen"))
    one = form.first + form.before.replace("NAME", '"날씨"') + '{"도시": "부산"}' + form.after
    two = one + form.between + form.before.replace("NAME", '"now"') + "{}" + form.after
    wrong = one.replace("부산", "대구")
    several, single = writer.forced(TOOLS, True), writer.forced(TOOLS, False)
    assert accepts(several, one + form.last)
    assert accepts(several, two + form.last)
    assert accepts(single, one + form.last)
    assert not accepts(single, two + form.last)
    assert not accepts(several, wrong + form.last)
    assert not accepts(several, "안녕하세요")
    assert read(form.read(False), list(two + form.last)) == (
        "",
        [["날씨", '{"도시": "부산"}'], ["now", "{}"]],
    )


def test_an_answer_of_a_schema_or_a_call():
    from hone.engine.params import Grammar

    writer = CallWriter(HERMES, make_chat_tokenizer("qwen"))
    schema = Grammar("json", '{"type": "object", "properties": {"a": {"type": "integer"}}}')
    both = writer.answer_or(schema, TOOLS, True)
    assert accepts(both, '{"a": 3}')
    assert accepts(both, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')
    assert not accepts(both, '{"a": "3"}')


def test_an_opener_that_is_a_special_token_goes_behind_the_prompt():
    client = scripted(zoo="mistral", template=MISTRAL_TEMPLATE)
    backend = client.tokenizer.backend
    backend.add_special_tokens(["[TOOL_CALLS]"])
    opener = backend.token_to_id("[TOOL_CALLS]")
    client.tokenizer.special_ids |= {opener}
    client.info = None
    client.__post_init__()
    body = {"messages": ASK, "tools": TOOLS, "tool_choice": "required"}
    with TestClient(make_app(client)) as http:
        client.answer = '[{"name": "날씨", "arguments": {"도시": "서울"}}]'
        (choice,) = http.post("/v1/chat/completions", json=body).json()["choices"]
        assert client.requests[-1].prompt[-1] == opener
        call = choice["message"]["tool_calls"][0]
        assert call["function"] == {"name": "날씨", "arguments": '{"도시": "서울"}'}
        assert len(call["id"]) == 9
        # When the model is free it writes the token itself, which the decoder drops.
        body["tool_choice"] = "auto"
        client.answer = [opener, *client.tokenizer.encode('[{"name": "now", "arguments": {}}]')]
        (choice,) = http.post("/v1/chat/completions", json=body).json()["choices"]
        assert client.requests[-1].prompt[-1] != opener
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}
        assert choice["message"]["content"] is None


@pytest.fixture(scope="module")
def server():
    client = scripted()
    with (
        serving(make_app(client)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api,
    ):
        yield client, api


CALLS = spelled(HERMES, [("날씨", '{"도시": "서울"}'), ("now", "{}")], "확인할게요.\n")


def test_calls_of_an_answer(server):
    client, api = server
    client.answer = CALLS
    answer = api.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "확인할게요."
    first, second = choice.message.tool_calls
    assert first.function.name == "날씨"
    assert json.loads(first.function.arguments) == {"도시": "서울"}
    assert second.function.arguments == "{}"
    assert first.id.startswith("call_")
    assert first.id != second.id
    assert first.type == "function"
    prompt = client.tokenizer.decode(client.requests[-1].prompt)
    assert '"도시의 날씨"' in prompt


@pytest.mark.parametrize("together", [1, 5])
def test_calls_of_a_stream(server, together):
    client, api = server
    client.answer, client.together = CALLS, together
    stream = api.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, stream=True)
    chunks = [chunk.choices[0] for chunk in stream]
    client.together = 1
    assert "".join(chunk.delta.content or "" for chunk in chunks) == "확인할게요."
    parts = [part for chunk in chunks for part in chunk.delta.tool_calls or ()]
    for index, (name, arguments) in enumerate([("날씨", '{"도시": "서울"}'), ("now", "{}")]):
        first, *rest = [part for part in parts if part.index == index]
        assert (first.type, first.function.name) == ("function", name)
        assert first.id.startswith("call_")
        assert all(part.id is None and part.function.name is None for part in rest)
        joined = "".join(part.function.arguments for part in [first, *rest])
        assert joined == arguments
    if together == 1:
        first = parts[0]
        assert first.function.arguments == ""
        assert len(parts) > 4
    assert chunks[-1].finish_reason == "tool_calls"


def test_the_clients_own_helper_reads_the_stream(server):
    client, api = server
    client.answer = CALLS
    with api.chat.completions.stream(model="tiny", messages=ASK, tools=TOOLS) as stream:
        final = stream.get_final_completion()
    names = [call.function.name for call in final.choices[0].message.tool_calls]
    assert names == ["날씨", "now"]


def test_a_pydantic_tool_is_parsed(server):
    import pydantic

    class Weather(pydantic.BaseModel):
        city: str

    client, api = server
    client.answer = spelled(HERMES, [("Weather", '{"city": "서울"}')])
    answer = api.chat.completions.parse(
        model="tiny",
        messages=ASK,
        tools=[openai.pydantic_function_tool(Weather)],
        tool_choice={"type": "function", "function": {"name": "Weather"}},
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.parsed_arguments == Weather(city="서울")
    grammar = client.requests[-1].params.grammar
    assert grammar.kind == "lark"
    assert accepts(grammar, client.answer)


def test_none_offers_no_tool_and_reads_no_call(server):
    client, api = server
    client.answer = CALLS
    answer = api.chat.completions.create(
        model="tiny", messages=ASK, tools=TOOLS, tool_choice="none"
    )
    assert answer.choices[0].message.content == CALLS
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"
    assert "now" not in client.tokenizer.decode(client.requests[-1].prompt)


def test_one_call_at_a_time_ends_with_the_first(server):
    client, api = server
    client.answer = CALLS
    answer = api.chat.completions.create(
        model="tiny", messages=ASK, tools=TOOLS, parallel_tool_calls=False
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "날씨"
    assert answer.choices[0].finish_reason == "tool_calls"
    assert client.taken_back[-1] == client.requests[-1].id


def test_a_call_that_is_cut_off_says_length(server):
    client, api = server
    client.answer = spelled(HERMES, [("날씨", '{"도시": "서울"}')])
    count = len(client.tokenizer.encode(client.answer)) - 14
    answer = api.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, max_tokens=count)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.tool_calls[0].function.name == "날씨"


def test_required_and_schema_exclude_each_other(server):
    _, api = server
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(
            model="tiny",
            messages=ASK,
            tools=TOOLS,
            tool_choice="required",
            response_format={"type": "json_object"},
        )
    assert caught.value.param == "response_format"


def test_tools_that_a_template_does_not_write_are_refused():
    with TestClient(make_app(scripted(zoo="llama3"))) as http:
        body = {"messages": ASK, "tools": TOOLS}
        error = http.post("/v1/chat/completions", json=body).json()["error"]
        assert error["param"] == "tools"


def test_the_masks_of_a_forced_call_leave_a_way_to_the_end():
    """A model that takes any allowed token at random still ends with calls."""
    from hone.engine.grammar import Grammars

    tokenizer = make_chat_tokenizer("qwen")
    grammars = Grammars(tokenizer, [tokenizer.eos_id])
    matcher = grammars.matcher(CallWriter(HERMES, tokenizer).forced(TOOLS[:1], False))
    mask, ids, draw = np.zeros(grammars.words, np.int32), [], np.random.default_rng(0)
    while not matcher.ended:
        matcher.fill(mask)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        token = int(draw.choice(allowed))
        assert matcher.accept(token)
        ids.append(token)
        assert len(ids) < 500
    (call,) = read(HERMES.read(False), [tokenizer.decode(ids)])[1]
    assert call[0] == "날씨"
    assert json.loads(call[1])["도시"] in ("서울", "부산")
