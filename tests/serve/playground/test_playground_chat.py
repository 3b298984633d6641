"""The playground's conversations, tokens and parameters, in Chromium."""

import math
import re

import pytest
from playground_server import ANSWER, READY, Open, Script, bodies, finish, say

# ---------------------------------------------------------------------------- chat


@pytest.mark.smoke
def test_an_answer_streams_and_its_cost_is_told(visit: Open, script: Script) -> None:
    script.pieces = [
        "안".encode(),
        b"\xeb",
        b"\x85\x95",
        b" **big** ",
        b"<img src=x onerror=alert(1)>",
    ]
    page = visit()
    say(page, "<b>인사해 줘</b>")
    assert finish(page) == "안녕 big <img src=x onerror=alert(1)>"
    assert page.text_content(".asked") == "<b>인사해 줘</b>"
    assert page.locator("#thread img, .asked b").count() == 0
    assert page.text_content(f"{ANSWER} strong") == "big"
    facts = page.locator(".facts span").all_text_contents()
    assert re.fullmatch(r"first token [\d,]+ ms", facts[0])
    assert re.fullmatch(r"[\d,.]+ tokens/s", facts[1])
    assert facts[2] == "7 + 5 tokens"
    path, body = script.asked[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "<b>인사해 줘</b>"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 5,
        "max_tokens": 256,
    }
    assert page.text_content("#announcer") == "안녕 **big** <img src=x onerror=alert(1)>"


def test_the_conversation_is_sent_edited_regenerated_cleared(visit: Open, script: Script) -> None:
    page = visit()
    page.click("#system-box summary")
    page.fill("#system", "짧게 답해.")
    say(page, "one")
    finish(page)
    say(page, "two")
    finish(page)
    system, one, answer = (
        {"role": "system", "content": "짧게 답해."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "Hello there!"},
    )
    assert bodies(script)[1]["messages"] == [
        system,
        one,
        answer,
        {"role": "user", "content": "two"},
    ]
    page.click(".message.assistant >> nth=1 >> text=Regenerate")
    finish(page)
    assert bodies(script)[2] == bodies(script)[1]
    page.click(".message.user >> nth=0 >> text=Edit")
    page.fill(".edit textarea", "하나")
    page.press(".edit textarea", "Enter")
    finish(page)
    assert bodies(script)[3]["messages"] == [system, {"role": "user", "content": "하나"}]
    assert page.locator(".message").count() == 2
    page.click("#clear")
    assert page.locator(".message").count() == 0
    page.click("#toast >> text=Undo")
    assert page.locator(".message").count() == 2


def test_escape_stops_an_answer_and_the_server_notices(visit: Open, script: Script) -> None:
    script.pieces, script.pause = [b"word "] * 400, 0.02
    page = visit()
    say(page, "go")
    page.wait_for_selector(f"{ANSWER} .token")
    assert page.is_visible("#stop")
    assert not page.is_visible("#send")
    page.keyboard.press("Escape")
    page.wait_for_selector(".facts >> text=stopped")
    assert page.text_content(ANSWER).startswith("word ")
    page.wait_for_selector(".writing", state="detached")
    assert page.is_visible("#send")
    for _ in range(50):
        if script.cut_off:
            break
        page.wait_for_timeout(20)
    assert script.cut_off == 1


def test_enter_sends_but_not_while_a_syllable_is_composed(visit: Open, script: Script) -> None:
    page = visit()
    page.fill("#message", "한")
    for composing in ("isComposing: true", "keyCode: 229"):
        page.evaluate(
            "document.querySelector('#message').dispatchEvent(new KeyboardEvent('keydown', "
            f"{{key: 'Enter', bubbles: true, cancelable: true, {composing}}}))"
        )
    page.press("#message", "Shift+Enter")
    assert page.input_value("#message") == "한\n"
    assert script.asked == []
    page.press("#message", "Enter")
    finish(page)
    assert bodies(script)[0]["messages"][0]["content"] == "한"


# ---------------------------------------------------------------------------- tokens


def test_tokens_show_what_else_was_likely(visit: Open, script: Script) -> None:
    script.pieces = ["서울".encode(), b"\xec\x9d", b"\xb4", b" fine", b"\n"]
    script.logprobs = [math.log(0.5), 0.0, math.log(0.25), 0.0, 0.0]
    page = visit()
    say(page, "?")
    finish(page)
    tokens = page.locator(f"{ANSWER} .token")
    assert tokens.all_text_contents() == ["서울", "이", " fine"]
    doubts = tokens.evaluate_all("nodes => nodes.map(n => n.style.getPropertyValue('--doubt'))")
    assert doubts == ["50%", "75%", "0%"]
    tokens.nth(0).hover()
    rows = page.locator("#popover li")
    assert rows.nth(0).inner_text().split("\n") == ["서울", "50%", "chosen"]
    assert rows.nth(1).locator("code").text_content() == "␣nothing"
    assert rows.nth(4).locator("code").text_content() == "⟨EB 9D⟩"
    tokens.nth(1).hover()
    assert page.locator("#popover ol").count() == 2  # two tokens make this syllable
    page.mouse.move(5, 5)
    page.wait_for_selector("#popover", state="hidden")
    # By keyboard: one stop for the whole answer, arrows within.
    page.focus(".message.user .actions button:last-child")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "서울"
    assert page.get_attribute(".token:focus", "aria-describedby") == "popover"
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.textContent") == " fine"
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.textContent") == "이"
    page.keyboard.press("Escape")
    assert page.is_hidden("#popover")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Copy"


def test_markdown_keeps_the_tokens(visit: Open, script: Script) -> None:
    text = (
        "# Title\nA `x` **b**\n\n1. one\n2. two\n\n- 가\n  - 나\n\n```sql\nSELECT 1\n\n```\nend **"
    )
    script.pieces = [text[i : i + 3].encode() for i in range(0, len(text), 3)]
    page = visit()
    say(page, "?")
    finish(page)
    shape = page.evaluate(
        f"[...document.querySelector('{ANSWER}').children].map(n => [n.tagName, n.textContent])"
    )
    assert shape == [
        ["P", "Title"], ["P", "A x b"], ["OL", "onetwo"], ["UL", "가나"],
        ["PRE", "SELECT 1\n"], ["P", "end **"],
    ]  # fmt: skip
    assert page.text_content(f"{ANSWER} pre .token") == "SEL"


def test_completions_show_their_tokens_too(visit: Open, script: Script) -> None:
    script.info = {"chat": False}
    script.pieces = [b" lived", b" \xed", b"\x98", b"\xb8", "랑이".encode()]
    page = visit()
    assert page.locator('[role="tab"]:visible').all_text_contents() == ["Completion"]
    page.fill("#prompt", "옛날에")
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector("#continuation .facts >> text=/7 \\+/")
    assert page.text_content("#continuation .answer") == " lived 호랑이"
    tokens = page.locator("#continuation .token").all_text_contents()
    assert tokens == [" lived", " ", "호", "랑이"]
    path, body = script.asked[0]
    assert (path, body["prompt"], body["logprobs"]) == ("/v1/completions", "옛날에", 5)
    page.click("#completion-take")
    assert page.input_value("#prompt") == "옛날에 lived 호랑이"


# ---------------------------------------------------------------------------- parameters


def test_parameters_are_sent_and_remembered_but_no_conversation(
    visit: Open, script: Script
) -> None:
    page = visit()
    values = {
        "temperature": "0", "top_p": "0.9", "top_k": "40", "min_p": "0.05", "max_tokens": "9999",
        "repetition_penalty": "1.1", "presence_penalty": "-0.5", "frequency_penalty": "0.3",
        "seed": "7", "stop": "끝\n\\n\\n", "schema": '{"type": "object"}',
    }  # fmt: skip
    for name, value in values.items():
        page.fill(f"#parameter-{name}", value)
    page.uncheck("#show-tokens")
    say(page, "secret words")
    finish(page)
    for again in (False, True):
        sent = {key: bodies(script)[-1].get(key) for key in [*values, "response_format"]}
        assert sent == {
            "temperature": 0, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 2048,
            "repetition_penalty": 1.1, "presence_penalty": -0.5, "frequency_penalty": 0.3,
            "seed": 7, "stop": ["끝", "\n\n"], "schema": None,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
            },
        }  # fmt: skip
        assert "logprobs" not in bodies(script)[-1]
        if not again:
            page.reload()
            page.wait_for_selector(READY)
            assert page.locator(".message").count() == 0
            say(page, "again")
            finish(page)
    assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
    page.click("#reset")
    assert page.input_value("#parameter-temperature") == "1"
    assert page.input_value("#parameter-schema") == ""


def test_the_defaults_are_the_servers(visit: Open, script: Script) -> None:
    script.info = {"context": 100, "defaults": {"temperature": 0.3, "top_p": 0.9}}
    page = visit()
    assert page.input_value("#parameter-temperature") == "0.3"
    assert page.input_value("#parameter-max_tokens") == "100"
    page.fill("#parameter-top_p", "1")
    say(page, "hi")
    finish(page)
    sent = bodies(script)[0]
    assert (sent.get("temperature"), sent["top_p"], sent["max_tokens"]) == (None, 1, 100)


def test_a_parameter_that_cannot_be_read_is_told_and_nothing_is_sent(
    visit: Open, script: Script
) -> None:
    page = visit()
    page.fill("#parameter-schema", "{")
    assert page.get_attribute("#parameter-schema", "aria-invalid") == "true"
    say(page, "hi")
    assert "This is no JSON object." in page.text_content(".message .problem")
    assert script.asked == []
