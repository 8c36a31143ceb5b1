"""A real browser for the tests of this folder.

Playwright lives on one event loop, so every test and fixture under tests/e2e shares the session's
loop. Write tests as `async def test_…(page)`; fixtures with
`@pytest_asyncio.fixture(loop_scope="session")`.
"""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Error,
    Page,
    async_playwright,
)

HERE = Path(__file__).parent
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A name that is not this host's own: over plain HTTP it is no secure context.
    "--host-resolver-rules=MAP plain.example 127.0.0.1",
]
# Chromium itself reports these, on top of what the page says; only a test that provokes them may.
_LOAD_FAILED = re.compile(r"^Failed to load resource|^WebSocket connection to .* failed")
_REPORT_VIOLATIONS = """
addEventListener('securitypolicyviolation', (event) => console.error(
  `CSP blocked ${event.blockedURI} by ${event.violatedDirective} in ${event.sourceFile}`));
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


class Complaints:
    """Errors the browser reported: console errors, uncaught exceptions, CSP violations."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._expected: list[str] = []

    def expect_failed_load(self, path: str) -> None:
        """This test makes requests to `path` fail: the browser's own line about it is no error."""
        self._expected.append(path)

    def watch(self, page: Page) -> None:
        page.on("console", self._on_console)
        page.on("pageerror", self._on_page_error)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type != "error":
            return
        text = message.text
        where = urlsplit(str(message.location.get("url", ""))).path
        if _LOAD_FAILED.search(text) and any(p == where or p in text for p in self._expected):
            return
        self.found.append(f"{text} ({where})")

    def _on_page_error(self, error: Error) -> None:
        self.found.append(f"uncaught: {error}")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        await chromium.close()


@pytest.fixture
def context_options() -> dict[str, Any]:
    """Override in a module or with parametrize: viewport, color_scheme, ignore_https_errors …"""
    return {"viewport": {"width": 1280, "height": 800}}


@pytest_asyncio.fixture(loop_scope="session")
async def context(
    browser: Browser, context_options: dict[str, Any]
) -> AsyncIterator[BrowserContext]:
    fresh = await browser.new_context(**context_options)
    fresh.set_default_timeout(10_000)
    await fresh.add_init_script(_REPORT_VIOLATIONS)
    yield fresh
    await fresh.close()


@pytest.fixture
def complaints() -> Complaints:
    return Complaints()


@pytest_asyncio.fixture(loop_scope="session")
async def page(context: BrowserContext, complaints: Complaints) -> AsyncIterator[Page]:
    """A page in a context of its own; the test fails if the browser reports an error."""
    fresh = await context.new_page()
    complaints.watch(fresh)
    yield fresh
    await fresh.close()
    assert not complaints.found, "\n".join(["the browser reported:", *complaints.found])
