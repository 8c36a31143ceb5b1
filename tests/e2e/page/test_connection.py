"""Connection and market state: what is said, and that the page comes back by itself."""

import re
import time
from typing import Any

import pytest
from playwright.async_api import Page, expect

from e2e.page.fake_site import FakeSite
from e2e.page.steps import aim, expect_answer, expect_state, prices_flowing, until

_RESTART = 1012


async def test_it_comes_back_after_the_connection_is_lost(live_page: Page, site: FakeSite) -> None:
    # The first attempt comes so soon that polling could miss what was shown before it.
    await live_page.evaluate("""() => {
      window.shown = [];
      const [state, notice] = ['connection', 'notice'].map((id) => document.getElementById(id));
      new MutationObserver(() => shown.push(`${state.dataset.state}: ${notice.textContent}`))
        .observe(document.body, {subtree: true, attributeFilter: ['data-state'], childList: true});
    }""")
    await site.drop()
    await until(lambda: site.connections == 2 and bool(site.sockets))
    await site.send_price(6_500_000)
    await expect(live_page.locator("#price")).to_have_text("$65,000.00")
    await expect_state(live_page, "live")
    shown = await live_page.evaluate("shown")
    assert "reconnecting: Connection lost, reconnecting. Taps are off." in shown


async def test_it_keeps_trying_while_a_proxy_answers_for_the_site(
    live_page: Page, site: FakeSite, complaints: Any
) -> None:
    complaints.expect_failed_load("/ws")
    site.accepting = False
    await site.drop()
    await until(lambda: site.connections >= 3)
    await expect_state(live_page, "reconnecting")
    site.accepting = True
    await expect_state(live_page, "live", 20)


async def test_a_restart_is_waited_for_as_long_as_the_server_says(
    live_page: Page, site: FakeSite
) -> None:
    await site.set_state("suspended", "restart", retry_in_ms=1_600)
    await expect(live_page.locator("#notice")).to_contain_text("the service is restarting")
    site.state = "open"
    closed = time.monotonic()
    await site.drop(code=_RESTART)
    await until(lambda: site.connections == 2)
    assert 1.6 <= time.monotonic() - closed < 3
    await expect_state(live_page, "live")


async def test_the_markets_own_wait_is_none_of_the_connections(
    live_page: Page, site: FakeSite
) -> None:
    await site.set_state("suspended", "settling", retry_in_ms=60_000)
    await expect(live_page.locator("#wait")).to_have_text(re.compile(r"^It may go on in \d+ s\.$"))
    await site.drop()
    await until(lambda: site.connections == 2, 5)


async def test_a_silent_connection_is_asked_and_then_replaced(
    live_page: Page, site: FakeSite
) -> None:
    pings = site.pings
    await until(lambda: site.pings > pings, 8)
    site.mute = True
    await until(lambda: site.connections == 2, 20)
    site.mute = False
    await expect(live_page.locator("#notice")).not_to_contain_text("reconnecting")


async def test_the_states_of_the_market_show(live_page: Page, site: FakeSite) -> None:
    async with prices_flowing(site):
        await site.set_state("degraded", "feed_stale")
        await expect_state(live_page, "delayed")
        await site.set_state("suspended", "feed_stale")
        await expect_state(live_page, "suspended")
        notice = live_page.locator("#notice")
        await expect(notice).to_contain_text("Betting is suspended: the price feed is silent")
        await site.set_state("open")
        await expect_state(live_page, "live")
        await expect(notice).to_be_empty()


async def test_a_price_that_stops_is_called_delayed(live_page: Page, site: FakeSite) -> None:
    await expect_state(live_page, "delayed")
    await site.send_price()
    await expect_state(live_page, "live")


async def test_a_suspended_market_takes_no_taps(live_page: Page, site: FakeSite) -> None:
    target = await aim(live_page)
    await site.set_state("suspended", "feed_stale")
    await expect_state(live_page, "suspended")
    assert await live_page.locator(".cell[aria-disabled=false]").count() == 0
    await live_page.mouse.click(float(target["x"]), float(target["y"]))
    await live_page.wait_for_timeout(300)
    assert site.bets == []
    await site.set_state("open")
    await expect(live_page.locator(".cell[aria-disabled=false]").first).to_be_attached()


async def test_a_tap_on_a_suspended_market_is_answered(live_page: Page, site: FakeSite) -> None:
    target = await aim(live_page)
    await site.set_state("suspended", "manual")
    await expect_state(live_page, "suspended")
    # With an event, as the notice may lie over it.
    await live_page.locator(f'#cells [data-cell-id="{target["id"]}"]').dispatch_event("click")
    await expect_answer(
        live_page, "Not placed: Betting is suspended: the operators have stopped it."
    )
    assert site.bets == []


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("quorum_lost", "too few exchanges can be heard"),
        ("settling", "prices are back and have to prove stable first"),
        ("something_new", "something new"),
    ],
)
async def test_who_comes_to_a_suspended_market_is_told_why(
    page: Page, site: FakeSite, reason: str, words: str
) -> None:
    site.state, site.reason = "suspended", reason
    await page.goto(site.url)
    await expect(page.locator("#notice")).to_have_text(
        f"Betting is suspended: {words}. Taps are off."
    )
    await expect(page.locator("#wait")).to_be_empty()
    await site.set_state("open")
    await site.send_grid()
    await expect(page.locator("#notice-box")).to_be_hidden()
    await expect(page.locator(".cell[aria-disabled=false]").first).to_be_attached()


async def test_a_lost_connection_takes_no_taps(live_page: Page, site: FakeSite) -> None:
    await site.set_state("open", "restart", retry_in_ms=60_000)
    await site.drop(code=_RESTART)
    await expect_state(live_page, "reconnecting")
    assert await live_page.locator(".cell[aria-disabled=false]").count() == 0


async def test_without_cells_it_says_so(page: Page, site: FakeSite) -> None:
    site.with_grid = False
    await page.goto(site.url)
    await expect_state(page, "live")
    await expect(page.locator("#notice")).to_have_text("No cells are offered right now.")
    site.with_grid = True
    await site.send_grid()
    await site.send_price()
    await expect(page.locator("#notice")).to_be_empty()
    await expect(page.locator(".cell").first).to_be_attached()


async def test_before_the_first_price_it_says_so(page: Page, site: FakeSite) -> None:
    site.blank = True
    await page.goto(site.url)
    await expect(page.locator("#notice")).to_have_text("Waiting for the first price.")
    await expect(page.locator("#price")).to_have_attribute("data-price", "")
    await site.send_price()
    await expect(page.locator("#price")).to_have_text("$64,213.57")
