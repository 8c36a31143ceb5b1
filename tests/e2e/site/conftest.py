"""The page of a provisioned machine, through its Nginx.

SITE_URL names it (http://127.0.0.1:8088 after `make up`); it has to be a machine of scripts/vm.sh,
because the tests look into its database and restart its services. Without it they are skipped.
"""

import os
import re
from collections.abc import Generator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from e2e.site.machine import Machine, add_journal, machine_at

PRICE = re.compile(r"^\d+$")
#: The first start on a busy machine takes its time.
LIVE_WITHIN_MS = 30_000


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    add_journal(report, item, call.duration)
    return report


@pytest.fixture(scope="session")
def machine() -> Machine:
    url = os.environ.get("SITE_URL")
    if not url:
        pytest.skip("SITE_URL is not set: the site of a machine was NOT tested in a browser")
    return machine_at(url)


@pytest.fixture(params=["http", "https"])
def url(request: pytest.FixtureRequest, machine: Machine) -> str:
    """The site over plain HTTP, and over TLS with its self-signed certificate."""
    return str(getattr(machine, request.param))


@pytest.fixture
def context_options(context_options: dict[str, Any]) -> dict[str, Any]:
    return {**context_options, "ignore_https_errors": True}


@pytest_asyncio.fixture(loop_scope="session")
async def live_page(page: Page, url: str) -> Page:
    """The page, connected and showing a price."""
    await page.goto(url)
    await expect(page.locator("#connection")).to_have_attribute(
        "data-state", "live", timeout=LIVE_WITHIN_MS
    )
    await expect(page.locator("#price")).to_have_attribute("data-price", PRICE)
    return page
