"""The end-to-end flow: browser, Nginx, services, Redis and SQLite, and back."""

import asyncio
import json
import time

from playwright.async_api import Page, WebSocket, expect

from e2e.page import steps
from e2e.page.steps import expect_answer, expect_bet, expect_state
from e2e.site.machine import Machine

#: Far above what the benchmark (tests/bench/frame_latency.py) measures: a bound for sanity only.
SLOWEST_MS = 1_000
PRICES = 30


async def shown(page: Page) -> tuple[int, int]:
    """Stamp and cents of the price that is drawn."""
    price = page.locator("#price")
    return (
        int(str(await price.get_attribute("data-t"))),
        int(str(await price.get_attribute("data-price"))),
    )


async def free_cell(page: Page, machine: Machine) -> dict[str, str | float]:
    """The open cell nearest to the price that nobody has staked on: bets of earlier tests stay.

    Rows at the edge of the grid may leave it with the next price.
    """
    statement = "SELECT cell_id FROM bets ORDER BY placed_at DESC LIMIT 500"
    taken = await asyncio.to_thread(machine.run, f"sqlite3 -readonly /data/bets.db '{statement}'")
    await expect(page.locator(".cell[aria-disabled=false]").first).to_be_attached()
    aims = await page.evaluate(steps._OPEN_CELLS_IN_SIGHT)
    _, cents = await shown(page)

    def distance(target: dict[str, str | float]) -> float:
        low, high = map(int, str(target["id"]).split(":")[3:])
        return abs((low + high) / 2 - cents)

    free = [target for target in aims if target["id"] not in taken.split()]
    assert free, "every cell in sight is taken"
    return dict(min(free, key=distance))


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


async def test_a_tap_places_a_bet_that_is_in_the_database(
    live_page: Page, machine: Machine
) -> None:
    await live_page.get_by_label("$10", exact=True).check()
    target = await free_cell(live_page, machine)
    await live_page.mouse.click(float(target["x"]), float(target["y"]))
    await expect_answer(live_page, "Accepted: $10 on ")
    cell_id = str(target["id"])
    await expect_bet(live_page, cell_id, "pending")
    bet_id = await live_page.locator("#taps li").first.get_attribute("data-bet-id")
    rows = await asyncio.to_thread(
        machine.run,
        "sqlite3 -readonly -json /data/bets.db"
        f" \"SELECT cell_id, amount, status FROM bets WHERE id = '{bet_id}'\"",
    )
    assert json.loads(rows) == [{"cell_id": cell_id, "amount": 1000, "status": "pending"}]


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
