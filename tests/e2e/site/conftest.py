"""The page of a provisioned machine, through its Nginx.

SITE_URL names it (http://127.0.0.1:8088 after `make up`); it has to be a machine of scripts/vm.sh,
because the tests look into its database and restart its services. Without it they are skipped.
"""

import os
import re
from collections.abc import Generator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import Page

from e2e.conftest import Complaints
from e2e.page.steps import expect_live
from e2e.site.machine import Machine, add_journal, machine_at


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


@pytest.fixture
def page(page: Page, complaints: Complaints) -> Page:
    """The page asks at every load who is signed in; that nobody is, is no error."""
    complaints.expect_failed_load("/api/me")
    return page


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
