"""The playground's page in Chromium: faults, keys, the database, and whoever uses it."""

import json
import re

import pytest
from playground_server import ANSWER, READY, ROWS, Open, Script, bodies, finish, say

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
    page.wait_for_selector("#sql-colours >> text=SELECT city,")
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
    thread = "document.querySelector('#thread')"
    assert page.evaluate(f"{thread}.scrollWidth <= {thread}.clientWidth")
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


def test_a_model_that_only_embeds_says_so(visit: Open, script: Script) -> None:
    script.info = {"chat": False, "generates": False}
    page = visit()
    page.wait_for_selector("#waiting >> text=tiny computes embeddings and writes no text")
    page.click("#language")
    page.wait_for_selector("#waiting >> text=임베딩만 계산하고")
    assert page.locator("[role=tab]:visible").count() == 0
