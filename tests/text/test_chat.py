import datetime
import json

import pytest

from hone.core.errors import CheckpointError, RequestError
from hone.text.chat import ChatTemplate

pytestmark = pytest.mark.smoke

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
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_renders_as_transformers_does(oracle, name, tools, add_generation_prompt):
    template = ChatTemplate(
        TEMPLATES[name], {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
    )
    expected = oracle.apply_chat_template(
        CONVERSATION,
        tools=tools,
        chat_template=TEMPLATES[name],
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        extra="<x>",
    )
    found = template.render(
        CONVERSATION, tools, add_generation_prompt=add_generation_prompt, extra="<x>"
    )
    assert found == expected


def test_a_published_template_renders_as_transformers_does(hone_data):
    from transformers import AutoTokenizer

    from hone.text.tokenizer import Tokenizer

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


def test_the_templates_own_refusal_is_passed_on():
    template = ChatTemplate("{{ raise_exception('Roles must alternate.') }}")
    with pytest.raises(RequestError, match=r"Roles must alternate\."):
        template.render(CONVERSATION)


def test_a_broken_template_names_its_line():
    with pytest.raises(CheckpointError, match="line 2"):
        ChatTemplate("{{ bos_token }}\n{% if %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ strftime_now.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
    ],
)
def test_a_template_cannot_reach_python_or_change_the_messages(source):
    messages = [dict(message) for message in CONVERSATION]
    try:
        rendered = ChatTemplate(source).render(messages)
    except RequestError:
        rendered = ""
    assert "object" not in rendered
    assert "os" not in rendered
    assert messages == CONVERSATION


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


def test_json_is_written_without_escapes_and_today_is_known():
    found = ChatTemplate("{{ messages | tojson }}|{{ strftime_now('%Y') }}").render(CONVERSATION)
    text, year = found.split("|")
    assert "짧게" in text
    assert json.loads(text) == CONVERSATION
    assert int(year) >= datetime.date.today().year - 1
