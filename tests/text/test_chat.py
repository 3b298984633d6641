import datetime
import json
import time

import pytest

from hone.core.errors import CheckpointError, RequestError
from hone.text.chat import ChatTemplate
from hone.text.tokenizer import Tokenizer

CONVERSATION = [
    {"role": "system", "content": "짧게 답하세요."},
    {"role": "user", "content": '1 < 2 & "3"?\n 😀 '},
    {"role": "assistant", "content": "네."},
    {"role": "user", "content": "Why?"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "날씨 <b>",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "부산"}}}
TOOL_CONVERSATION = [
    {"role": "user", "content": "부산 날씨?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "name": None},
    {"role": "tool", "name": "weather", "content": [{"type": "text", "text": "맑음"}]},
    {"role": "assistant", "content": "맑아요.", "reasoning": "도구가 그랬다"},
    {"role": "user", "content": ("a", 1, 2.5, True, None), "extra": {"k": [None]}},
]
TEMPLATES = {
    "loops": "{% for m in messages %}{% if loop.index == 3 %}{% break %}{% endif %}"
    "{{ m.role }}: {{ m.content | trim }}\n{% endfor %}",
    "blocks": "{{ bos_token }}\n    {% if tools %}\n{{ tools | tojson(indent=2) }}\n"
    "    {% endif %}\n"
    "{% for m in messages %}\n  <{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}\n"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}",
    # What published templates are made of: tests of types, slices, macros, calls, JSON.
    "tools": """
{%- macro show(content) -%}
    {%- if content is string %}{{ content | trim }}
    {%- elif content is mapping or content is sequence -%}
        {%- for part in content if part is mapping %}{{ part['text'] }}{% endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set head = messages[0]['content'] %}{% set rest = messages[1:] -%}
{%- else -%}{% set head = none %}{% set rest = messages -%}{%- endif -%}
{{- bos_token -}}
{%- if tools is defined and tools -%}
    <tools>{% for tool in tools %}{{ tool | tojson }}{% if not loop.last %},{% endif %}{% endfor %}
{%- endif -%}
{%- for m in rest %}
    {%- if m.role == 'assistant' and m.tool_calls is defined -%}
        {%- for call in m.tool_calls -%}
            <call>{{ {'name': call.function.name, 'with': call['function']['arguments']} | tojson }}
        {%- endfor -%}
    {%- elif 'content' in m -%}
        {{ '<' ~ m.role ~ '>' + show(m.content) }}
        {%- if m.reasoning_content is defined and loop.index0 > rest | length - 3 -%}
            <think>{{ m.reasoning_content.split('가')[-1] }}</think>
        {%- endif -%}
    {%- endif -%}
    {{- eos_token if loop.cycle(true, false) -}}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{{ '%s-%d' % (head or 'x', 2 * 3) }}{% endif -%}
{{- messages | map(attribute='role') | join(',') | upper }}{{ messages[-1].get('content') }}
{{- messages | selectattr('role', 'equalto', 'user') | list | length -}}
""",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}{{ strftime_now('%Y') }}{{ extra }}{{ dict(a=1) | tojson }}",
}


@pytest.fixture(scope="module")
def oracle():
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"<s>": 0, "</s>": 1}, merges=[]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [None, [], TOOLS])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", [CONVERSATION, TOOL_CONVERSATION])
def test_renders_as_transformers_does(oracle, name, tools, add_generation_prompt, messages):
    if messages is TOOL_CONVERSATION and name in ("loops", "blocks", "generation"):
        messages = [message for message in messages if isinstance(message["content"], str)]
    template = ChatTemplate(
        TEMPLATES[name], {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
    )
    expected = oracle.apply_chat_template(
        messages,
        tools=tools,
        chat_template=TEMPLATES[name],
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        extra="<x>",
    )
    found = template.render(
        messages, tools, add_generation_prompt=add_generation_prompt, extra="<x>"
    )
    assert found == expected


def test_a_published_template_renders_as_transformers_does(hone_data):
    from transformers import AutoTokenizer

    folder = hone_data / "tokenizers" / "chatml-49k"
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    rendered = ChatTemplate(ours.chat_template, ours.config).render(CONVERSATION)
    ids = theirs.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_dict=False)
    assert ours.encode(rendered) == ids
    assert rendered == theirs.apply_chat_template(
        CONVERSATION, add_generation_prompt=True, tokenize=False
    )


def test_reasoning_is_found_under_its_other_names(oracle):
    source = "{% for m in messages %}{{ m.reasoning_content }}/{{ m.thinking }};{% endfor %}"
    messages = [
        {"role": "assistant", "content": "a", key: "why"}
        for key in ("reasoning_content", "thinking", "reasoning")
    ]
    expected = oracle.apply_chat_template(messages, chat_template=source, tokenize=False)
    assert ChatTemplate(source).render(messages) == expected == "why/why;" * 3


@pytest.mark.smoke
def test_the_templates_own_refusal_is_passed_on():
    template = ChatTemplate("{{ raise_exception('Roles must alternate.') }}")
    with pytest.raises(RequestError, match=r"Roles must alternate\."):
        template.render(CONVERSATION)


@pytest.mark.smoke
def test_a_broken_template_names_its_line():
    with pytest.raises(CheckpointError, match="line 2"):
        ChatTemplate("{{ bos_token }}\n{% if %}")


HOSTILE = [
    "{{ messages.__class__.__mro__ }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{x.__class__}'.format_map({'x': ''}) }}",
    "{% set f = ''.format %}{{ f.__self__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ range.__init__.__globals__ }}",
    "{{ range._left }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ dict.__class__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ loop.__class__ }}",
    "{% set ns = namespace(__class__='object') %}{{ ns.__class__ }}object",
    "{% set ns = namespace() %}{% set ns.__init__ = 'object' %}object",
    "{% set ns = namespace({'_x': 1}) %}object",
    "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    "{{ joiner.__init__.__globals__ }}{{ lipsum.__globals__['os'] }}",
    "{% include '/etc/passwd' %}object",
    "{% import 'os' as os %}object",
    "{% extends 'x' %}object",
    "{{ messages.append(1) }}object",
    "{{ messages.clear() }}object",
    "{{ messages[0].update(role='x') }}object",
    "{{ messages[0].pop('role') }}object",
    "{{ messages[0].setdefault('x', 1) }}object",
    "{{ messages.sort() }}object",
]


@pytest.mark.smoke
@pytest.mark.parametrize("source", HOSTILE)
def test_a_template_cannot_reach_python_or_change_the_messages(source):
    messages = [dict(message) for message in CONVERSATION]
    try:
        rendered = ChatTemplate(source).render(messages)
    except RequestError:
        rendered = ""
    for trace in ("object", "os", "<class", "function", "module", "built-in", "10000000"):
        assert trace not in rendered
    assert messages == CONVERSATION


@pytest.mark.smoke
@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'x' * 10 ** 12 }}",
        "{{ 10 ** 9 * 'x' }}",
        "{{ [1] * 10 ** 12 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ 2 ** -(10 ** 10) }}",
        "{{ 'x' * -5 + 'x' * (1.5 * 2) }}",
        "{{ 1 / 0 }}",
        "{{ '%d' % 'x' }}",
        "{{ messages[0].nothing.more }}",
        "{{ none + 1 }}",
        "{{ undefined_function() }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    ],
)
def test_a_template_that_never_ends_or_breaks_is_refused_at_once(source):
    started = time.perf_counter()
    with pytest.raises(RequestError, match="The chat template"):
        ChatTemplate(source).render(CONVERSATION)
    assert time.perf_counter() - started < 5


@pytest.mark.smoke
def test_each_rendering_has_its_own_allowance(monkeypatch):
    monkeypatch.setattr("hone.text.chat._MOST_STEPS", 100)
    template = ChatTemplate("{% for i in range(90) %}{% endfor %}{{ 3 * 'ab' }}{{ 2 ** 10 }}")
    assert {template.render(CONVERSATION) for _ in range(3)} == {"ababab1024"}


@pytest.mark.smoke
def test_a_template_nested_without_end_is_refused():
    with pytest.raises(CheckpointError, match="nested too deeply"):
        ChatTemplate("{{ " + "(" * 5000 + ")" * 5000 + " }}")


@pytest.mark.smoke
def test_bos_is_what_the_template_writes_and_no_more():
    tokenizer = Tokenizer.train(["hello"], 300, "{{ bos_token }}{{ messages[0].content }}")
    rendered = ChatTemplate(tokenizer.chat_template, tokenizer.config).render(CONVERSATION[1:])
    assert tokenizer.encode(rendered)[:1] == [tokenizer.bos_id]
    assert tokenizer.encode(rendered, True) == tokenizer.encode(rendered)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (["hello"], "Message 1"),
        ([{"content": "a"}], "Message 1"),
        ([{"role": "user", "content": "a"}, {"role": "user"}], r"Message 2 \(user\) has no"),
        ([{"role": "user", "content": object()}], "only JSON values"),
        ([{"role": "user", "content": None}], r"Message 1 \(user\) has no"),
        ([{"role": "user", "content": ["a"]}], "field missing"),
        ([], "at least one message"),
    ],
)
def test_a_malformed_message_is_refused(messages, said):
    with pytest.raises(RequestError, match=said):
        ChatTemplate("{% for m in messages %}{{ 'x' + m.content }}{% endfor %}").render(messages)


@pytest.mark.smoke
def test_json_is_written_without_escapes_and_today_is_known():
    found = ChatTemplate("{{ messages | tojson }}|{{ strftime_now('%Y') }}").render(CONVERSATION)
    text, year = found.split("|")
    assert "짧게" in text
    assert json.loads(text) == CONVERSATION
    assert int(year) >= datetime.date.today().year - 1
