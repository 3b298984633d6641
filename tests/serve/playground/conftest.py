"""The playground in Chromium, against a server whose answers are scripted."""

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playground_server import READY, Open, Script, scripted_server

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
# Messages of the browser about answers that a test asked for.
EXPECTED = re.compile(r"Failed to load resource")


# Not for the whole session: while it lives, no other test can run an event loop of its own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if shutil.which(CHROMIUM) is None:
        pytest.skip("needs Chromium: install it, and let `chromium` be found")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
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


@pytest.fixture(scope="module")
def pages(browser: Any) -> Iterator[Callable[..., Any]]:
    """Gives one page for each set of options: a new one costs three times as much as its reuse."""
    made: dict[str, Any] = {}

    def page(**options: Any) -> Any:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = browser.new_context(**options).new_page()
            made[key].set_default_timeout(5000)
        return made[key]

    yield page
    for page in made.values():
        page.context.close()


@pytest.fixture
def visit(pages: Callable[..., Any], server: tuple[str, Script], script: Script) -> Iterator[Open]:
    """Opens the page, ready unless told otherwise; it may not have complained at the end."""
    complaints: list[str] = []
    opened: list[Any] = []

    def fail(error: Any) -> None:
        complaints.append(str(error))

    def listen(message: Any) -> None:
        if message.type in ("error", "warning") and not EXPECTED.search(message.text):
            complaints.append(message.text)

    def visit(ready: bool = True, width: int = 1200, url: str = server[0], **options: Any) -> Any:
        options = {"viewport": {"width": width, "height": 760}, "locale": "en-US"} | options
        page = pages(**options)
        opened.append(page)
        page.on("pageerror", fail)
        page.on("console", listen)
        page.goto(url)
        if ready:
            page.wait_for_selector(READY)
        return page

    yield visit
    for page in opened:
        page.evaluate("localStorage.clear()")
        page.remove_listener("pageerror", fail)
        page.remove_listener("console", listen)
        page.goto("about:blank")
    assert complaints == []
