"""The playground in Chromium, against a server whose answers are scripted."""

import re
import shutil
from collections.abc import Iterator
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


@pytest.fixture
def visit(browser: Any, server: tuple[str, Script], script: Script) -> Iterator[Open]:
    """Opens the page, ready unless told otherwise; no page may have complained at the end."""
    complaints: list[str] = []
    contexts: list[Any] = []

    def visit(ready: bool = True, width: int = 1200, url: str = server[0], **options: Any) -> Any:
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
        page.goto(url)
        if ready:
            page.wait_for_selector(READY)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
