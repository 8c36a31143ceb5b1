"""The page of a provisioned machine, through its Nginx.

SITE_URL names it (http://127.0.0.1:8088 after `make up`); it has to be a machine of scripts/vm.sh,
because the tests look into its database and restart its services. Without it they are skipped.
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Generator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import Page, Response

from e2e.conftest import Complaints
from e2e.page.steps import expect_live
from e2e.site.machine import Machine, add_journal, machine_at

#: So many requests of the API an address may make for ever; a few more at once.
_API_PER_S = 100 / 60


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


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def home(machine: Machine) -> str:
    """The one of the machine's addresses that its texts to sign name: wallets sign only there."""
    any_address = "4vJ9JU1bJJE96FWSJKvHsmmFADCg4gpZQff4P3bkLKi"
    url = f"{machine.https}/api/auth/challenge"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json={"address": any_address}, ssl=False) as answer,
    ):
        assert answer.status == 200, await answer.text()
        text = (await answer.json())["message"]
    [named] = re.findall(r"^URI: (\S+?)/?$", text, re.MULTILINE)
    assert named in (machine.http, machine.https)
    return str(named)


@pytest_asyncio.fixture(loop_scope="session")
async def page(page: Page, complaints: Complaints) -> AsyncIterator[Page]:
    """The page asks at every load who is signed in; that nobody is, is no error.

    What it has asked of the API counts against this host's address: the next test finds as much
    left of the limit as this one did.
    """
    complaints.expect_failed_load("/api/me")
    asked, began = 0, time.monotonic()

    def count(response: Response) -> None:
        nonlocal asked
        asked += "/api/" in response.url

    page.context.on("response", count)
    yield page
    await page.close()
    await asyncio.sleep(max(0.0, asked / _API_PER_S - (time.monotonic() - began)))


@pytest_asyncio.fixture(loop_scope="session")
async def live_page(page: Page, url: str) -> Page:
    """The page at each of its addresses, connected and showing a price."""
    await page.goto(url)
    await expect_live(page)
    return page


@pytest_asyncio.fixture(loop_scope="session")
async def home_page(page: Page, home: str) -> Page:
    """The page at the address where one can sign in."""
    await page.goto(home)
    await expect_live(page)
    return page
