"""The end-to-end flow: browser, Nginx, services, Redis and SQLite, and back."""

import asyncio
import json
import re
import shlex
import time
from typing import Any

from playwright.async_api import Page, WebSocket, expect

from e2e.conftest import Complaints
from e2e.page import steps
from e2e.page.steps import expect_account, expect_answer, expect_live, expect_state
from e2e.site.machine import Machine

#: Far above what the benchmark (tests/bench/frame_latency.py) measures: a bound for sanity only.
SLOWEST_MS = 1_000
PRICES = 30
CENTS = re.compile(r"^\d+$")


async def shown(page: Page) -> tuple[int, int]:
    """Stamp and cents of the price that is drawn."""
    price = page.locator("#price")
    return (
        int(str(await price.get_attribute("data-t"))),
        int(str(await price.get_attribute("data-price"))),
    )


async def nearest_cell(page: Page, taken: str = "") -> dict[str, str | float]:
    """The open cell nearest to the price in the column that closes last: rows at the edge may
    leave the grid with the next one, and a column that closes soon pays out within the test.

    A page does not know what was `taken` before it was loaded.
    """
    # A market that has just begun has no volatility yet, and offers nothing.
    first = page.locator(".cell[aria-disabled=false]").first
    await expect(first).to_be_attached(timeout=120_000)
    aims = await page.evaluate(steps._OPEN_CELLS_IN_SIGHT)
    _, cents = await shown(page)

    def distance(target: dict[str, str | float]) -> float:
        low, high = map(int, str(target["id"]).split(":")[3:])
        return abs((low + high) / 2 - cents)

    free = [target for target in aims if target["id"] != taken]
    assert free, "no free cell in sight"
    last = max(str(target["id"]).split(":")[1] for target in free)
    return dict(min((each for each in free if str(each["id"]).split(":")[1] == last), key=distance))


async def rows(machine: Machine, statement: str) -> Any:
    """What the database of bets answers."""
    command = f"sqlite3 -readonly -json /data/bets.db {shlex.quote(statement)}"
    return json.loads(await asyncio.to_thread(machine.run, command) or "[]")


async def account(page: Page) -> tuple[str, int]:
    """Address and balance (cents) that are shown."""
    await expect_account(page, "in")
    await expect(page.locator("#balance")).to_have_attribute("data-cents", CENTS)
    return (
        str(await page.locator("#address").get_attribute("data-address")),
        int(str(await page.locator("#balance").get_attribute("data-cents"))),
    )


async def test_the_price_moves(live_page: Page) -> None:
    seen = set()
    end = time.monotonic() + 10
    while len(seen) < 10:
        assert time.monotonic() < end, f"few prices: {sorted(seen)}"
        seen.add(await shown(live_page))
        await live_page.wait_for_timeout(50)
    stamps = [stamp for stamp, _ in seen]
    assert max(stamps) > min(stamps)
    assert len({price for _, price in seen}) > 1
    assert abs(max(stamps) - time.time() * 1000) < 3_000


async def test_the_first_tap_signs_in_and_places_a_bet_that_is_in_the_database(
    home_page: Page, machine: Machine
) -> None:
    await expect_account(home_page, "out")
    await home_page.get_by_label("$10", exact=True).check()
    target = await nearest_cell(home_page)
    await home_page.mouse.click(float(target["x"]), float(target["y"]))
    await expect_answer(home_page, "Accepted: $10 on ")
    cell_id = str(target["id"])
    line = home_page.locator(f'#taps li[data-cell-id="{cell_id}"]')
    await expect(line).to_have_attribute("data-bet", re.compile("pending|confirmed"))
    address, balance = await account(home_page)
    bet_id = await home_page.locator("#taps li").first.get_attribute("data-bet-id")
    [row] = await rows(
        machine,
        "SELECT wallet_address, balance, cell_id, amount, status"
        f" FROM bets JOIN users ON users.id = user_id WHERE bets.id = '{bet_id}'",
    )
    assert row.pop("status") in {"pending", "confirmed"}
    assert row == {
        "wallet_address": address,
        "balance": balance,
        "cell_id": cell_id,
        "amount": 1000,
    }
    ended = re.compile("won|lost|void")
    await expect(line).to_have_attribute("data-bet", ended, timeout=90_000)
    [row] = await rows(machine, f"SELECT status FROM bets WHERE id = '{bet_id}'")
    await expect(line).to_have_attribute("data-bet", row["status"])


async def stake_a_dollar(page: Page, taken: str = "") -> str:
    """Stakes on the nearest cell but the one that is taken; returns its id."""
    await page.get_by_label("$1", exact=True).check()
    target = await nearest_cell(page, taken)
    await page.mouse.click(float(target["x"]), float(target["y"]))
    await expect_answer(page, "Accepted: $1 on ")
    return str(target["id"])


async def test_the_account_outlives_the_page_and_its_sessions(
    home_page: Page, complaints: Complaints
) -> None:
    complaints.expect_failed_load("/api/bets")
    await steps.sign_in(home_page)
    address, balance = await account(home_page)
    taken = await stake_a_dollar(home_page)
    await home_page.reload()  # the cookie knows
    assert await account(home_page) == (address, balance - 100)

    ended = await home_page.evaluate(
        "async () => (await fetch('/api/auth/logout', {method: 'POST'})).status"
    )
    assert ended == 204
    await stake_a_dollar(home_page, taken)  # signs in again
    await steps.expect_balance(home_page, balance - 200)
    assert await account(home_page) == (address, balance - 200)

    await home_page.get_by_role("button", name="Sign out").click()
    await expect_account(home_page, "out")
    assert await home_page.context.cookies() == []


async def test_at_another_address_than_the_sites_own_nothing_is_signed(
    page: Page, machine: Machine, home: str
) -> None:
    [other] = {machine.http, machine.https} - {home}
    await page.goto(other)
    await expect_live(page)
    await page.get_by_role("button", name="Start practising").click()
    named, here = (address.partition("//")[2] for address in (home, other))
    await expect_answer(page, f"the text to sign is for {named}, but this page is {here}.")
    await expect_account(page, "out")


async def test_the_footer_names_the_live_release(live_page: Page, machine: Machine) -> None:
    live = await asyncio.to_thread(machine.run, "basename $(readlink /opt/app/current)")
    await expect(live_page.locator("#version")).to_have_text(live.strip())


async def test_the_stream_runs_over_the_pages_own_scheme(page: Page, url: str) -> None:
    opened: list[str] = []

    def note(socket: WebSocket) -> None:
        opened.append(socket.url)

    page.on("websocket", note)
    await page.goto(url)
    await expect_state(page, "live", 30)
    assert opened == [f"{url.replace('http', 'ws', 1)}/ws"]


async def test_the_page_comes_back_after_the_stream_was_restarted(
    live_page: Page, machine: Machine
) -> None:
    await live_page.evaluate("""() => {
      window.shown = [];
      const state = document.getElementById('connection');
      new MutationObserver(() => shown.push(state.dataset.state))
        .observe(state, {attributeFilter: ['data-state']});
    }""")
    await asyncio.to_thread(machine.run, "systemctl restart tap-trading-ws")
    before, _ = await shown(live_page)
    await live_page.wait_for_function("() => shown.includes('reconnecting')", timeout=10_000)
    await expect_state(live_page, "live", 30)
    await live_page.wait_for_function(
        "(t) => Number(document.getElementById('price').dataset.t) > t + 1000",
        arg=before,
        timeout=10_000,
    )


async def test_prices_are_drawn_soon_after_they_are_published(live_page: Page) -> None:
    await live_page.wait_for_function(
        "(prices) => tapLatency.length >= prices", arg=PRICES, timeout=20_000
    )
    entries = await live_page.evaluate("tapLatency")
    # A bar stamped t is published when it is complete, 100 ms later.
    slowness = sorted(entry["drawn"] - entry["t"] - 100 for entry in entries)
    assert slowness[0] > -20
    assert slowness[len(slowness) // 2] < SLOWEST_MS
