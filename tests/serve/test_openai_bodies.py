"""Bodies of chat: what is wrong in one is named, what asks for nothing is ignored."""

import pytest
from chat_zoo import make_chat_tokenizer
from scripted import make_app, scripted
from starlette.testclient import TestClient

from hone.text.conversation import Conversations

ASK = [{"role": "user", "content": "서울 날씨 어때?"}]

WRONG = [
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"content": "a"}]}, "messages[0].role"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": True}, "n"),
    ({"stop": ""}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"seed": 1.5}, "seed"),
    ({"seed": 10**30}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"stream_options": 3}, "stream_options"),
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    ({"tools": [{"type": "code"}]}, "tools[0].type"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    # Fields that would change the answer, and are not done.
    ({"audio": {"voice": "alloy", "format": "mp3"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"store": True}, "store"),
    ({"verbosity": "low"}, "verbosity"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"include_stop_str_in_output": True}, "include_stop_str_in_output"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
]


@pytest.fixture(scope="module")
def direct():
    with TestClient(make_app(scripted())) as client:
        yield client


@pytest.mark.parametrize(("fields", "param"), WRONG)
def test_a_wrong_field_is_a_400_that_names_it(direct, fields, param):
    answer = direct.post("/v1/chat/completions", json={"model": "tiny", "messages": ASK} | fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param or error["param"].startswith(f"{param}["), error
    assert error["type"] == "invalid_request_error"
    assert param.split("[")[0].split(".")[0] in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"store": False, "modalities": ["text"], "functions": [], "audio": None},
        {"verbosity": "medium", "use_beam_search": False, "skip_special_tokens": True},
        dict.fromkeys(("temperature", "stop", "n", "seed", "tools", "logit_bias", "stream")),
        {"prediction": {"type": "content", "content": "a"}, "prompt_cache_key": "b"},
        {"top_logprobs": 0},
        {"logprobs": False},
        {"tools": [], "tool_choice": "auto"},
    ],
)
def test_a_field_that_asks_for_nothing_is_ignored(direct, fields):
    answer = direct.post("/v1/chat/completions", json={"model": "tiny", "messages": ASK} | fields)
    assert answer.status_code == 200, answer.text


def test_an_image_is_refused_by_its_place(direct):
    parts = [{"type": "text", "text": "보여?"}, {"type": "image_url", "image_url": {"url": "x"}}]
    body = {"model": "tiny", "messages": [*ASK, {"role": "user", "content": parts}]}
    error = direct.post("/v1/chat/completions", json=body).json()["error"]
    assert error["param"] == "messages[1].content[1]"
    assert "image_url" in error["message"]


def test_a_prompt_that_is_too_long_has_the_code_that_clients_look_for(direct):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "가" * 3000}]}
    answer = direct.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_what_a_template_refuses_is_a_400():
    with TestClient(make_app(scripted(zoo="gemma"))) as client:
        messages = [*ASK, *ASK]
        answer = client.post("/v1/chat/completions", json={"messages": messages})
        assert answer.status_code == 400
        assert "alternate" in answer.json()["error"]["message"]


def test_templates_are_given_their_variables():
    template = "{{ effort }}/{{ reasoning_effort }}/{{ messages[0].content }}"
    client = scripted(template=template)
    with TestClient(make_app(client)) as http:
        body = {
            "messages": ASK,
            "reasoning_effort": "low",
            "chat_template_kwargs": {"effort": "높음"},
        }
        assert http.post("/v1/chat/completions", json=body).status_code == 200
        assert client.tokenizer.decode(client.requests[0].prompt) == "높음/low/서울 날씨 어때?"
        body["chat_template_kwargs"] = {"messages": []}
        assert http.post("/v1/chat/completions", json=body).status_code == 400


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"messages": [{"role": "user", "content": ""}] * 10_001}, 400),
        ({"messages": ASK, "unknown": [[]] * 200_001}, 413),
        ({"messages": ASK, "logit_bias": {str(number): 1 for number in range(200_001)}}, 413),
        ({"messages": [{"role": "user", "content": "[" * 200_001}]}, 413),
    ],
)
def test_what_would_keep_all_others_waiting_is_not_read(direct, body, status):
    assert direct.post("/v1/chat/completions", json=body).status_code == status


def test_a_long_conversation_is_written_beside_the_event_loop(direct):
    """As the same messages are written at once: the way is another, not what comes out."""
    for count in (64, 65, 400):
        messages = [
            {"role": ("user", "assistant")[number % 2], "content": f"{number}"}
            for number in range(count + 1 - count % 2)
        ]
        expected = Conversations(make_chat_tokenizer("qwen")).prompt_ids(messages)
        found = direct.post("/tokenize", json={"messages": messages}).json()
        assert found["tokens"] == expected
