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
    assert bet.body == {"cell_id": cell_id, "amount": 1_000}
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
    assert [bet.body for bet in site.bets] == [{"cell_id": there, "amount": 1_000}]


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
    first = live_page.locator(".cell[aria-disabled=false]").first
    start = int(str(await first.get_attribute("data-cell-id")).split(":")[1])
    column = live_page.locator(f'.cell[data-cell-id^="btc-usd:{start}:"]').first
    await expect(column).to_have_attribute("aria-disabled", "true")
    left = start - await live_page.evaluate("Date.now() / 1000")
    assert 4.0 < left <= 5.05


async def test_rates_are_shown_when_they_come(live_page: Page, site: FakeSite) -> None:
    grid = site.grid()
    for cell in grid["cells"]:
        cell["reward_rate"] = "2.3589"
    await site.send(type="grid", **grid)
    cell = live_page.locator(".cell[aria-disabled=false]").first
    await expect(cell).to_have_text("2.35")
    await expect(cell).to_have_attribute("aria-label", re.compile("pays 2.3589 times"))


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
