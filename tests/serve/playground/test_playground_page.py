"""The playground in Chromium, against a server whose answers are scripted."""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra [serve]")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

from playground_server import PAGE, ROWS, Script, scripted_server  # noqa: E402

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
READY = '#state[data-state="ready"]'
ANSWER = ".message.assistant:last-child .answer"
# Messages of the browser about answers that a test asked for.
EXPECTED = re.compile(r"Failed to load resource")

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if shutil.which(CHROMIUM) is None:
        pytest.skip("needs Chromium: install it, and let `chromium` be found")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Script]]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def script(server: tuple[str, Script]) -> Script:
    server[1].reset()
    return server[1]


@pytest.fixture
def visit(browser: Any, server: tuple[str, Script], script: Script) -> Iterator[Open]:
    """Opens the page, ready unless told otherwise; no page may have complained at the end."""
    complaints: list[str] = []
    contexts: list[Any] = []

    def visit(ready: bool = True, width: int = 1200, **options: Any) -> Any:
        size = {"width": width, "height": 760}
        options.setdefault("locale", "en-US")
        contexts.append(browser.new_context(viewport=size, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(5000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                if message.type in ("error", "warning") and not EXPECTED.search(message.text)
                else None
            ),
        )
        page.goto(server[0])
        if ready:
            page.wait_for_selector(READY)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def say(page: Any, text: str) -> None:
    page.fill("#message", text)
    page.press("#message", "Enter")


def finish(page: Any, usage: bool = True) -> str:
    """Wait for the last answer's end, and give its text."""
    page.wait_for_selector(f"{ANSWER}:not(.writing)", state="attached")
    if usage:
        page.wait_for_selector(".message.assistant:last-child .facts >> text=/7 \\+/")
    return page.text_content(ANSWER)


def bodies(script: Script) -> list[dict[str, Any]]:
    return [body for _, body in script.asked]


# ---------------------------------------------------------------------------- files


def _sources() -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in sorted(PAGE.iterdir())}


def _words() -> dict[str, dict[str, str]]:
    found = re.findall(
        r'^  "?([\w.]+)"?: \{\s*en: "((?:[^"\\]|\\.)*)",\s*ko: "((?:[^"\\]|\\.)*)",?\s*\},$',
        (PAGE / "words.js").read_text("utf-8"),
        re.MULTILINE,
    )
    return {key: {"en": en, "ko": ko} for key, en, ko in found}


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for name, text in _sources().items():
        addresses = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[\w./-]*", text)
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, name
        assert "innerHTML" not in text, name
        assert "insertAdjacentHTML" not in text, name
        assert len(text.splitlines()) <= 400, name


def test_every_text_is_there_in_both_languages() -> None:
    words = _words()
    source = (PAGE / "words.js").read_text("utf-8")
    assert len(words) == len(re.findall(r"\ben: ", source)) > 100
    used = set()
    for name, text in _sources().items():
        if name == "words.js":
            continue
        used |= {key for key in words if re.search(rf'["`]{re.escape(key)}["`]', text)}
        for key in re.findall(r'data-(?:text|label|placeholder)="([\w.]+)"', text):
            assert key in words, f"{name}: {key}"
    composed = {key for key in words if key.split(".")[0] in ("parameter", "hint", "wrong")}
    assert set(words) == used | composed
    for key, texts in words.items():
        assert set(re.findall(r"\{\w+\}", texts["en"])) == set(
            re.findall(r"\{\w+\}", texts["ko"])
        ), key
        if key not in ("language", "languageShort", "sql", "version"):
            assert re.search("[가-힣]", texts["ko"]), key


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
    page.wait_for_function("() => !document.querySelector('.writing')")
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


# ---------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("fault", "text", "said"),
    [
        ("broken", "Hello there", "The connection broke before the answer was complete."),
        ("error", "Hello there", "The engine stopped; it is being restarted."),
        ("400", "", "temperature is 9.0; give a number of at most 2."),
    ],
)
def test_what_goes_wrong_is_told_and_can_be_tried_again(
    visit: Open, script: Script, fault: str, text: str, said: str
) -> None:
    script.fault = fault
    page = visit()
    say(page, "hi")
    page.wait_for_selector(".problem:visible")
    assert finish(page, usage=False) == text
    assert page.text_content(".message .problem p") == said
    script.fault = None
    page.click(".message .problem >> text=Try again")
    assert finish(page) == "Hello there!"
    assert page.locator(".message").count() == 2
    assert bodies(script)[1]["messages"] == [{"role": "user", "content": "hi"}]


def test_too_many_requests_wait_as_long_as_the_server_asks(visit: Open, script: Script) -> None:
    script.fault = "429"
    page = visit()
    say(page, "hi")
    again = page.locator(".message .problem button")
    again.wait_for()
    assert again.text_content() == "Try again in 2 s"
    assert again.is_disabled()
    # A question whose answer failed is not sent along with the next.
    script.fault = None
    say(page, "next")
    finish(page)
    assert bodies(script)[1]["messages"] == [{"role": "user", "content": "next"}]


def test_a_key_is_asked_for_and_forgotten_unless_told_otherwise(
    visit: Open, script: Script
) -> None:
    script.key = "열쇠 아님"
    page = visit(ready=False)
    page.fill("#key", "열쇠")
    page.press("#key", "Enter")
    page.wait_for_selector("text=An API key is made of Latin letters")
    page.fill("#key", "wrong")
    page.press("#key", "Enter")
    page.wait_for_selector("text=The server does not accept this key.")
    script.key = "right"
    page.fill("#key", "right")
    page.press("#key", "Enter")
    page.wait_for_selector(READY)
    assert page.is_hidden("#access")
    say(page, "hi")
    finish(page)
    assert "right" not in page.evaluate("JSON.stringify(localStorage)")
    page.reload()
    page.wait_for_selector("#access:visible")
    page.fill("#key", "right")
    page.check("#key-remember")
    page.press("#key", "Enter")
    page.wait_for_selector(READY)
    page.reload()
    page.wait_for_selector(READY)
    page.click("#key-forget")
    page.wait_for_selector("#access:visible")
    assert "right" not in page.evaluate("JSON.stringify(localStorage)")


def test_the_page_waits_for_the_server_and_finds_it_again(visit: Open, script: Script) -> None:
    script.state = "loading"
    page = visit(ready=False)
    page.wait_for_selector("#waiting >> text=Loading the model")
    script.state = "ready"
    page.wait_for_selector(READY)
    script.state = "stopping"
    say(page, "hi")
    page.wait_for_selector("#state >> text=Shutting down")
    assert page.text_content(".message .problem p") == "The model is being loaded."
    assert page.is_disabled("#send")
    page.context.set_offline(True)
    page.wait_for_selector("#state >> text=Not reachable")
    page.context.set_offline(False)
    script.state = "ready"
    page.wait_for_selector(READY)


# ---------------------------------------------------------------------------- models, database


def test_an_adapter_can_be_chosen(visit: Open, script: Script) -> None:
    script.models, script.info = ["tiny", "법률"], {"adapters": ["법률"]}
    page = visit()
    assert page.locator("#model option").all_text_contents() == ["tiny", "법률 (adapter)"]
    page.select_option("#model", "법률")
    say(page, "hi")
    finish(page)
    assert bodies(script)[0]["model"] == "법률"


def test_a_database_is_asked_and_its_query_is_edited(visit: Open, script: Script) -> None:
    script.info = {"database": True, "chat": False}
    page = visit(locale="ko-KR")
    tree = page.inner_text("#schema")
    for words in ("매장", "판매일", "PK", "→ store.id", "48,211행"):
        assert words in tree
    page.click("#examples button")
    page.wait_for_selector("#rows td")
    assert script.asked == [
        ("/api/database/ask", {"question": "도시별 매출 합계는?", "model": "tiny", "stream": True})
    ]
    assert page.input_value("#sql") == ROWS["sql"]
    assert page.text_content("#sql-colours .sql-string") == "'제주'"
    assert page.text_content("#sql-colours .sql-function") == "SUM"
    assert page.text_content("#sql-colours .sql-comment") == "-- 섬은 빼고"
    cells = page.locator("#rows tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert cells == [["서울", "1234567.5"], ["부산", "890123"], ["NULL", "12"]]
    assert page.text_content("#database-state").startswith("3행 · 쿼리 4.2ms")
    script.result = ROWS | {"columns": ["<i>x"], "rows": [["<img src=x onerror=alert(1)>"]]}
    page.fill("#sql", 'SELECT 1 AS "<i>x"')
    page.press("#sql", "Control+Enter")
    page.wait_for_selector("#rows >> text=onerror")
    assert page.locator("#rows img, #rows i").count() == 0
    assert script.asked[-1] == ("/api/database/run", {"sql": 'SELECT 1 AS "<i>x"'})
    script.result = ROWS | {"columns": [], "rows": [], "error": "no such column: amont"}
    page.click("#run-sql")
    page.wait_for_selector("#trouble >> text=no such column: amont")
    assert page.locator("#rows table").count() == 0


def test_a_query_is_shown_while_it_is_written_and_can_be_stopped(
    visit: Open, script: Script
) -> None:
    script.info, script.pause = {"database": True}, 0.03
    page = visit()
    page.fill("#question", "매출?")
    page.press("#question", "Enter")
    page.wait_for_function("document.querySelector('#sql').value.startsWith('SELECT city,')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#database-state >> text=stopped")
    assert page.input_value("#sql") != ROWS["sql"]
    assert page.locator("#rows table").count() == 0
    script.fault = "400"
    page.click("#ask-send")
    page.wait_for_selector("#trouble >> text=temperature is 9.0")


# ---------------------------------------------------------------------------- for everybody


def test_korean_and_english_at_any_time(visit: Open, script: Script) -> None:
    script.info = {"database": True}
    page = visit(locale="ko-KR")
    page.click("#tab-chat")
    say(page, "안녕")
    finish(page, usage=False)
    page.wait_for_selector(".facts >> text=/입력 7 \\+ 출력 3토큰/")
    assert page.get_attribute("html", "lang") == "ko"
    page.click("#language")
    assert page.get_attribute("html", "lang") == "en"
    page.wait_for_selector(".facts >> text=/7 \\+ 3 tokens/")
    # Nothing Korean is left but what people and the database wrote.
    left = re.findall("[가-힣]+", page.inner_text("body"))
    assert set(left) <= {"안녕", "한국어"}
    page.reload()
    page.wait_for_selector(READY)
    assert page.get_attribute("html", "lang") == "en"
    page.click("#tab-database")
    assert "매장" not in page.inner_text("#schema")
    page.click("#language")
    assert "매장" in page.inner_text("#schema")


def test_nothing_is_wider_than_a_phone(visit: Open, script: Script) -> None:
    script.pieces = [b"long" * 100, b"\n```\n", b"x" * 500, b"\n```"]
    script.result = ROWS | {"columns": ["긴이름" * 9] * 6, "rows": [["값" * 80] * 6]}
    script.info = {"database": True}
    script.models = ["tiny", "a-very-long-name-of-an-adapter-" * 3]
    page = visit(width=360, locale="ko-KR", has_touch=True, is_mobile=True)
    wide = (
        "document.documentElement.scrollWidth > 360 || [...document.querySelectorAll("
        "'button, input, textarea, select')].filter(n => n.checkVisibility() && "
        "(n.getBoundingClientRect().right > 361 || n.getBoundingClientRect().left < -1)).length"
    )
    page.click("#examples button")
    page.wait_for_selector("#rows td")
    assert not page.evaluate(wide)
    page.click("#tab-chat")
    say(page, "w" * 300)
    finish(page, usage=False)
    assert not page.evaluate(wide)
    page.tap(f"{ANSWER} .token >> nth=0")
    box = page.locator("#popover").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    page.tap("#settings-open")
    assert not page.evaluate(wide)
    page.keyboard.press("Escape")
    assert page.is_hidden("#settings")


def test_everything_has_a_name_and_shows_its_focus(visit: Open, script: Script) -> None:
    script.info = {"database": True}
    page = visit()
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input, textarea, select')].filter(n => "
        "!n.hasAttribute('aria-hidden') && !n.getAttribute('aria-label') && "
        "!n.textContent.trim() && !n.labels?.[0]?.textContent.trim()).map(n => n.outerHTML)"
    )
    assert nameless == []
    page.click("#tab-chat")
    page.focus("#tab-chat")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-completion"
    page.click("#tab-chat")
    seen, hidden = set(), []
    page.focus(".skip")
    for _ in range(40):
        page.keyboard.press("Tab")
        name, outline = json.loads(
            page.evaluate(
                "(n => JSON.stringify([n.id || n.tagName, getComputedStyle(n).outlineStyle]))"
                "(document.activeElement)"
            )
        )
        if name == "BODY":
            break
        seen.add(name)
        if outline == "none":
            hidden.append(name)
    assert hidden == []
    assert {"tab-chat", "language", "settings-open", "message", "send", "parameter-seed"} <= seen


def test_motion_stops_where_it_is_not_wanted(visit: Open, script: Script) -> None:
    script.state = "loading"
    page = visit(ready=False, reduced_motion="reduce")
    style = "getComputedStyle(document.querySelector('#state'), '::before').animationName"
    assert page.evaluate(style) == "none"
    script.state = "ready"
    page.wait_for_selector(READY)


def test_texts_stand_out_from_their_ground() -> None:
    style = (PAGE / "playground.css").read_text("utf-8")
    light = dict(re.findall(r"--([\w-]+): #([0-9a-f]{6});", style.split("@media")[0]))
    dark = dict(re.findall(r"--([\w-]+): #([0-9a-f]{6});", style.split("@media")[1]))
    assert len(light) > 10
    assert set(light) == set(dark)
    pairs = [(ink, ground) for ink in ("text", "muted") for ground in ("page", "panel", "sunk")]
    pairs += [("on-accent", "accent"), ("accent", "page"), ("bad", "bad-page"), ("bad", "page")]
    pairs += [(f"sql-{kind}", "panel") for kind in ("keyword", "function", "string", "number")]

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colours in (light, dark):
        for ink, ground in pairs:
            low, high = sorted([luminance(colours[ink]), luminance(colours[ground])])
            # WCAG 2.2, success criterion 1.4.3.
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
