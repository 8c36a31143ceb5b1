"""The page against the fake site: nothing else runs."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from build_frontend import build
from playwright.async_api import Page, expect

from e2e.conftest import Complaints
from e2e.page.fake_site import FakeSite, serve


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "dist"
    build(out)
    return out


@pytest_asyncio.fixture(loop_scope="session")
async def site(dist: Path) -> AsyncIterator[FakeSite]:
    async with serve(FakeSite(dist=dist)) as running:
        yield running


@pytest.fixture
def page(site: FakeSite, page: Page, complaints: Complaints) -> Page:
    """The page closes before the site does, or it would report the site's end as an error.

    The page asks at every load who is signed in; that nobody is, is no error.
    """
    complaints.expect_failed_load("/api/me")
    return page


@pytest_asyncio.fixture(loop_scope="session")
async def live_page(page: Page, site: FakeSite) -> Page:
    """The page, connected and showing its first price."""
    await page.goto(site.url)
    await expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    await expect(page.locator("#price")).to_have_attribute("data-price", str(site.price))
    return page
