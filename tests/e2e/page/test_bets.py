"""A tap on a cell becomes one bet, whatever happens on the way."""

import asyncio
import re
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from e2e.page.fake_site import FakeSite, problem, proxy_page
from e2e.page.steps import aim, expect_answer, expect_bet, expect_state, tap, until

_UUID = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")


async def test_a_tap_sends_the_bet_and_shows_the_answer(live_page: Page, site: FakeSite) -> None:
    await live_page.get_by_label("$10", exact=True).check()
    cell_id = await tap(live_page)
    await expect_answer(live_page, "Accepted: $10 on ")
    await expect_answer(live_page, "bet_0001")
    await expect_bet(live_page, cell_id, "pending")
    [bet] = site.bets
    least = bet.body.pop("min_reward_rate")
    assert bet.body == {"cell_id": cell_id, "amount": 1_000}
    assert re.fullmatch(r"[0-9]+\.[0-9]{4}", least)
    assert bet.key is not None
    assert _UUID.match(bet.key)
    line = live_page.locator("#taps li")
    await expect(line).to_have_attribute("data-bet-id", "bet_0001")
    await expect(line).to_contain_text("Pending")


async def test_each_bet_has_a_key_of_its_own(live_page: Page, site: FakeSite) -> None:
    cells = [await tap(live_page, 0), await tap(live_page, 2)]
    await until(lambda: len(site.bets) == 2)
    assert [bet.body["cell_id"] for bet in site.bets] == cells
    assert site.bets[0].key != site.bets[1].key


async def test_a_cell_with_a_bet_takes_no_second_tap(live_page: Page, site: FakeSite) -> None:
    target = await aim(live_page)
    for _ in range(3):
        await live_page.mouse.click(float(target["x"]), float(target["y"]))
    await expect_answer(live_page, "Accepted")
    await live_page.wait_for_timeout(200)
    assert len(site.bets) == 1


async def test_a_key_is_made_without_random_uuid_too(page: Page, site: FakeSite) -> None:
    await page.add_init_script("delete Crypto.prototype.randomUUID")
    await page.goto(site.url)
    await expect_state(page, "live")
    await tap(page)
    await expect_answer(page, "Accepted")
    assert site.bets[0].key is not None
    assert _UUID.match(site.bets[0].key)


@pytest.mark.parametrize(
    ("status", "code", "detail"),
    [
        (409, "duplicate_cell", "You already have a bet on this cell."),
        (422, "cell_closed", "This column takes no more bets."),
        (402, "insufficient_funds", "Your balance is lower than the stake."),
    ],
)
async def test_a_refusal_is_shown_in_its_own_words(
    live_page: Page, site: FakeSite, complaints: Any, status: int, code: str, detail: str
) -> None:
    complaints.expect_failed_load("/api/bets")
    site.answers = [problem(status, code, detail)]
    cell_id = await tap(live_page)
    await expect_answer(live_page, f"Not placed: {detail}")
    await expect_bet(live_page, cell_id, "refused")
    await live_page.wait_for_timeout(300)
    assert len(site.bets) == 1


async def test_busy_is_tried_again_with_the_same_key_and_then_said(
    live_page: Page, site: FakeSite, complaints: Any
) -> None:
    complaints.expect_failed_load("/api/bets")
    busy = problem(503, "overloaded", "The site is busy. Nothing was placed.", {"Retry-After": "0"})
    site.answers = [busy] * 20
    await tap(live_page)
    await expect_answer(live_page, "Not placed: The site is busy. Nothing was placed.")
    assert len(site.bets) == 5
    assert len({bet.key for bet in site.bets}) == 1


async def test_a_long_retry_after_is_not_sat_out(
    live_page: Page, site: FakeSite, complaints: Any
) -> None:
    complaints.expect_failed_load("/api/bets")
    site.answers = [problem(503, "feed_stale", "The price is stale.", {"Retry-After": "30"})]
    await tap(live_page)
    await expect_answer(live_page, "Not placed: The price is stale.")
    assert len(site.bets) == 1


async def test_a_proxys_page_is_tried_again_until_the_site_answers(
    live_page: Page, site: FakeSite, complaints: Any
) -> None:
    complaints.expect_failed_load("/api/bets")
    site.answers = [proxy_page(503), proxy_page(502)]
    cell_id = await tap(live_page)
    await expect_answer(live_page, "trying again")
    await expect_answer(live_page, "Accepted")
    await expect_bet(live_page, cell_id, "pending")
    assert len(site.bets) == 3
    assert len({bet.key for bet in site.bets}) == 1


async def test_a_lost_answer_is_asked_for_with_the_same_key(
    live_page: Page, site: FakeSite, complaints: Any
) -> None:
    complaints.expect_failed_load("/api/bets")
    lost = 2

    async def cut(route: Any) -> None:
        nonlocal lost
        if lost > 0:
            lost -= 1
            await route.fetch()
            await route.abort("connectionreset")
        else:
            await route.continue_()

    await live_page.route("**/api/bets", cut)
    await tap(live_page)
    await expect_answer(live_page, "Accepted")
    assert len(site.bets) == 3
    assert len({bet.key for bet in site.bets}) == 1
    assert len({str(bet.body) for bet in site.bets}) == 1


async def test_no_answer_at_all_is_called_unknown_and_a_second_tap_asks_again(
    live_page: Page, site: FakeSite, complaints: Any
) -> None:
    complaints.expect_failed_load("/api/bets")
    site.answers = [proxy_page(502)] * 5
    cell_id = await tap(live_page, 8)
    await expect_answer(live_page, "The bet may or may not stand", 20)
    await expect_bet(live_page, cell_id, "unknown")
    await live_page.get_by_label("$50", exact=True).check()
    await live_page.locator(f'#cells [data-cell-id="{cell_id}"]').dispatch_event("click")
    await expect_answer(live_page, "Accepted: $5 on ")
    assert len(site.bets) == 6
    assert len({bet.key for bet in site.bets}) == 1
    assert {bet.body["amount"] for bet in site.bets} == {500}


async def test_the_keyboard_is_enough(live_page: Page, site: FakeSite) -> None:
    stake = live_page.get_by_label("$5", exact=True)
    await stake.focus()
    await live_page.keyboard.press("ArrowRight")
    await expect(live_page.get_by_label("$10", exact=True)).to_be_checked()

    await live_page.keyboard.press("Shift+Tab")
    focused = "document.activeElement.dataset.cellId"
    start, _, low, _ = (await live_page.evaluate(focused)).removeprefix("btc-usd:").split(":")
    for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
        await live_page.keyboard.press(key)
    there = await live_page.evaluate(focused)
    moved_start, _, moved_low, _ = there.removeprefix("btc-usd:").split(":")
    assert int(moved_start) >= int(start) + 10
    assert int(moved_low) == int(low) + 1_000

    await live_page.keyboard.press("Enter")
    await expect_answer(live_page, "Accepted: $10 on ")
    [bet] = site.bets
    assert (bet.body["cell_id"], bet.body["amount"]) == (there, 1_000)


async def test_focus_moves_on_when_its_column_closes(live_page: Page, site: FakeSite) -> None:
    # A quarter of a second after the first grid the tab stop lies level with the price.
    level = f"{site.price // 1_000 * 1_000}:{(site.price // 1_000 + 1) * 1_000}"
    await expect(live_page.locator("#cells [tabindex='0']")).to_have_attribute(
        "data-cell-id", re.compile(f":{level}$")
    )
    await live_page.locator("#cells [tabindex='0']").focus()
    first = await live_page.evaluate("document.activeElement.dataset.cellId")
    await live_page.wait_for_function(
        "(id) => document.activeElement.dataset.cellId !== id", arg=first, timeout=10_000
    )
    then = await live_page.evaluate("document.activeElement.dataset.cellId")
    assert int(then.split(":")[1]) > int(first.split(":")[1])
    assert then.split(":")[3:] == first.split(":")[3:]


async def test_a_cell_closes_when_its_column_is_next(live_page: Page, site: FakeSite) -> None:
    # Noted in the page, as a busy machine may look late.
    left = await live_page.evaluate("""() => new Promise((done) => {
      const cell = document.querySelector('.cell[aria-disabled=false]');
      const start = Number(cell.dataset.cellId.split(':')[1]);
      new MutationObserver(() => done(start - Date.now() / 1000))
        .observe(cell, {attributeFilter: ['aria-disabled']});
    })""")
    assert 4.0 < left <= 5.05


async def test_rates_are_shown_and_change_with_every_offer(live_page: Page, site: FakeSite) -> None:
    grid = site.grid()
    cells = live_page.locator(".cell[aria-disabled=false]")
    for rate, shown in (("2.3589", "2.35"), ("12.3589", "12.3"), ("1.0582", "1.05")):
        for cell in grid["cells"]:
            cell["reward_rate"] = rate
        await site.send(type="grid", **grid)
        await expect(cells.first).to_have_text(shown)
        await expect(cells.first).to_have_attribute("aria-label", re.compile(f"pays {rate} times"))


async def test_a_cell_that_is_not_offered_any_more_says_so_and_shows_no_rate(
    live_page: Page, site: FakeSite
) -> None:
    target = await aim(live_page)
    grid = site.grid()
    grid["cells"] = [cell for cell in grid["cells"] if cell["cell_id"] != target["id"]]
    await site.send(type="grid", **grid)
    cell = live_page.locator(f'#cells [data-cell-id="{target["id"]}"]')
    await expect(cell).to_have_attribute("aria-disabled", "true")
    await expect(cell).to_have_text("")
    await cell.dispatch_event("click")
    await expect_answer(live_page, "Not placed: This cell is not offered at the moment.")
    assert site.bets == []
    await site.send_grid()
    await expect(cell).to_have_attribute("aria-disabled", "false")
    await tap(live_page)
    await expect_answer(live_page, "Accepted")


async def test_a_column_that_has_closed_says_so(live_page: Page, site: FakeSite) -> None:
    start = int(site.cell_ids()[0].split(":")[1])
    closed = live_page.locator(f'.column[data-phase="locked"] [data-cell-id*=":{start}:"]').first
    await expect(closed).to_be_attached()
    await closed.dispatch_event("click")
    await expect_answer(live_page, "Not placed: This column takes no more bets.")
    assert site.bets == []


@pytest.mark.parametrize(
    ("shown", "least"),
    [("2.3521", "2.1168"), ("1.0582", "0.9523"), ("47.6190", "42.8571"), ("0.0001", None)],
)
async def test_a_tap_agrees_to_a_rate_ten_per_cent_lower_at_most(
    live_page: Page, site: FakeSite, complaints: Any, shown: str, least: str | None
) -> None:
    complaints.expect_failed_load("/api/bets")
    grid = site.grid()
    for cell in grid["cells"]:
        cell["reward_rate"] = shown
    await site.send(type="grid", **grid)
    await expect(live_page.locator(f'.cell[data-rate="{shown}"]').first).to_be_attached()
    site.answers = [problem(503, "overloaded", "The site is busy.", {"Retry-After": "0"})]
    await tap(live_page)
    await until(lambda: len(site.bets) == 1)
    # What the retry agrees to is what the tap agreed to.
    await site.send_grid()
    await expect_answer(live_page, "Accepted")
    assert [bet.body.get("min_reward_rate") for bet in site.bets] == [least, least]


async def test_columns_have_rows_of_their_own(page: Page, site: FakeSite) -> None:
    site.steps = (1_000, 1_500)
    await page.goto(site.url)
    await expect_state(page, "live")
    await expect(page.locator(".cell").first).to_be_attached()
    await asyncio.sleep(0.5)
    drawn = await page.evaluate("""() => [...document.querySelectorAll('.cell')].map((cell) => {
      const [, start, , low, high] = cell.dataset.cellId.split(':').map(Number);
      const {top, bottom} = cell.getBoundingClientRect();
      return {start, low, high, top, bottom};
    })""")
    heights: dict[int, set[int]] = {}
    for cell in drawn:
        height = cell["bottom"] - cell["top"]
        heights.setdefault(cell["high"] - cell["low"], set()).add(round(height))
        assert height >= 24
    [low], [high] = (heights[step] for step in site.steps)
    assert abs((high + 2) / (low + 2) - 1.5) < 0.05
    # The same price lies at the same height in every column.
    edges: dict[int, set[int]] = {}
    for cell in drawn:
        edges.setdefault(cell["high"], set()).add(round(cell["top"]))
    shared = [tops for cents, tops in edges.items() if cents % 3_000 == 0]
    assert shared
    assert all(max(tops) - min(tops) <= 1 for tops in shared)
    cell_id = await tap(page, 3)
    await expect_answer(page, "Accepted")
    assert site.bets[0].body["cell_id"] == cell_id


async def test_it_works_by_touch_and_with_reduced_motion(browser: Browser, site: FakeSite) -> None:
    context = await browser.new_context(
        viewport={"width": 390, "height": 844},
        has_touch=True,
        is_mobile=True,
        device_scale_factor=2,
        reduced_motion="reduce",
    )
    page = await context.new_page()
    await page.goto(site.url)
    await expect_state(page, "live")
    target = await aim(page)
    await page.touchscreen.tap(float(target["x"]), float(target["y"]))
    await expect_answer(page, "Accepted")
    assert [bet.body["cell_id"] for bet in site.bets] == [target["id"]]
    await context.close()


async def test_every_control_has_a_name_and_every_cell_is_big_enough(live_page: Page) -> None:
    await asyncio.sleep(0.3)
    nameless = await live_page.evaluate("""() => [...document.querySelectorAll('button, input')]
      .filter((e) => !(e.ariaLabel || e.labels?.[0]?.textContent.trim()
        || (!e.matches('.cell') && e.textContent.trim()))).map((e) => e.outerHTML)""")
    assert nameless == []
    sizes = await live_page.evaluate("""() => [...document.querySelectorAll('.cell')]
      .map((e) => [e.clientWidth, e.clientHeight])""")
    assert min(width for width, _ in sizes) >= 24
    assert min(height for _, height in sizes) >= 24
