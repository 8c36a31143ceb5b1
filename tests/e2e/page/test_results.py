"""What becomes of a bet: its rate, its result, its money, however the page hears of it."""

import re
import time
from typing import Any

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from e2e.page.fake_site import COLUMN_S, CREDIT, FakeSite, problem
from e2e.page.steps import (
    aim,
    expect_account,
    expect_answer,
    expect_balance,
    expect_bet,
    expect_state,
    sign_in,
    tap,
    until,
)

RATE = "2.3589"
BET = "bet_0001"
TIMES = "\N{MULTIPLICATION SIGN}"


async def place(page: Page, site: FakeSite, index: int = 0, column: str = "") -> str:
    """Taps a cell of somebody the stream knows; returns its id."""
    placed = len(site.bets)
    cell_id = await tap(page, index, column)
    await until(lambda: len(site.bets) > placed)
    await expect_bet(page, cell_id, "pending")
    await until(lambda: bool(site.books.listeners))
    return cell_id


def line(page: Page, cell_id: str) -> Locator:
    return page.locator(f'#taps li[data-cell-id="{cell_id}"]')


def cell(page: Page, cell_id: str) -> Locator:
    return page.locator(f'#cells [data-cell-id="{cell_id}"]')


def over(bet_id: str, site: FakeSite, seconds_ago: float) -> None:
    """Puts a bet on a cell whose column has ended."""
    [bet] = [bet for bets in site.books.bets.values() for bet in bets if bet["bet_id"] == bet_id]
    symbol, _, width, *band = bet["cell_id"].split(":")
    bet["cell_id"] = ":".join(
        [symbol, str(int(time.time() - seconds_ago) - int(width)), width, *band]
    )


async def test_a_bet_is_confirmed_and_won(live_page: Page, site: FakeSite) -> None:
    cell_id = await place(live_page, site)
    await site.books.confirm(BET, RATE)
    await expect_bet(live_page, cell_id, "confirmed")
    await expect(cell(live_page, cell_id)).to_have_text("$5")
    await expect(cell(live_page, cell_id)).to_have_attribute("data-note", f"2.35{TIMES}")
    await expect(line(live_page, cell_id)).to_contain_text(f"Confirmed at 2.3589{TIMES}")
    await expect_balance(live_page, CREDIT - 500)

    await site.books.settle(BET, 1_179)
    await expect_bet(live_page, cell_id, "won")
    await expect(cell(live_page, cell_id)).to_have_text("$11.79")
    await expect(cell(live_page, cell_id)).to_have_attribute(
        "aria-label", re.compile(r"won \$11.79")
    )
    await expect(line(live_page, cell_id)).to_have_attribute("data-bet", "won")
    await expect(line(live_page, cell_id)).to_contain_text("Won $11.79")
    await expect_balance(live_page, CREDIT + 679)
    result = live_page.get_by_role("status").filter(has_text="1 won, $11.79 paid.")
    await expect(result).to_be_visible()


async def test_a_bet_is_lost(live_page: Page, site: FakeSite) -> None:
    cell_id = await place(live_page, site)
    await site.books.confirm(BET, RATE)
    await site.books.settle(BET, 0)
    await expect_bet(live_page, cell_id, "lost")
    await expect(cell(live_page, cell_id)).to_have_attribute("data-note", "lost")
    await expect(line(live_page, cell_id)).to_contain_text("Lost")
    await expect(live_page.locator("#result")).to_contain_text("1 lost.")
    await expect_balance(live_page, CREDIT - 500)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("rate_below_minimum", "the rate fell more than 10 % below the one shown"),
        ("not_offered", "the cell was not offered any more when the rate was fixed"),
        ("no_price", "there was no price to fix the rate by"),
        ("feed_outage", "the price feed had a gap in the window"),
    ],
)
async def test_a_void_bet_says_why_and_the_stake_is_back(
    live_page: Page, site: FakeSite, reason: str, words: str
) -> None:
    cell_id = await place(live_page, site)
    await expect_balance(live_page, CREDIT - 500)
    await site.books.void(BET, reason)
    await expect_bet(live_page, cell_id, "void")
    await expect(line(live_page, cell_id)).to_contain_text(f"Void, stake returned: {words}")
    await expect(live_page.locator("#result")).to_contain_text("1 void, $5 returned.")
    await expect_balance(live_page, CREDIT)
    assert site.books.calls.count(f"bets/{BET}") == 1


async def test_a_column_is_summed_up(live_page: Page, site: FakeSite) -> None:
    await sign_in(live_page)
    # The first of the open columns may close between two taps, so the third has the time.
    column = str((await aim(live_page, 0))["id"]).split(":")[1]
    column = str(int(column) + 2 * COLUMN_S)
    for index in range(3):
        await place(live_page, site, index, column)
    await site.books.settle("bet_0001", 1_000)
    await site.books.settle("bet_0002", 0)
    await site.books.void("bet_0003", "feed_outage")
    await expect(live_page.locator("#result")).to_contain_text(
        "1 won, $10 paid; 1 lost; 1 void, $5 returned."
    )


async def test_a_settled_cell_takes_no_second_tap(live_page: Page, site: FakeSite) -> None:
    cell_id = await place(live_page, site)
    await site.books.void(BET, "rate_below_minimum")
    await expect_bet(live_page, cell_id, "void")
    await expect(cell(live_page, cell_id)).to_have_attribute("aria-disabled", "true")
    await cell(live_page, cell_id).dispatch_event("click")
    await live_page.wait_for_timeout(200)
    assert len(site.bets) == 1


async def test_a_bet_never_goes_back(live_page: Page, site: FakeSite) -> None:
    cell_id = await place(live_page, site)
    await site.books.confirm(BET, RATE)
    await site.books.settle(BET, 1_179)
    await expect_bet(live_page, cell_id, "won")
    [events] = site.books.events.values()
    for event in events[:1]:
        await site.send(**event)
    await site.send_price(6_400_001)
    await expect(live_page.locator("#price")).to_have_text("$64,000.01")
    await expect_bet(live_page, cell_id, "won")
    await expect_balance(live_page, CREDIT + 679)


async def test_news_before_the_bets_own_answer_count(live_page: Page, site: FakeSite) -> None:
    await sign_in(live_page)
    await until(lambda: bool(site.books.listeners))

    async def late(route: Any) -> None:
        response = await route.fetch()
        await site.books.confirm(BET, RATE)
        await live_page.wait_for_timeout(300)
        await route.fulfill(response=response)

    await live_page.route("**/api/bets", late)
    cell_id = await tap(live_page)
    await expect_answer(live_page, "Accepted")
    await expect_bet(live_page, cell_id, "confirmed")
    await expect(live_page.locator("#taps li")).to_have_count(1)
    await expect(line(live_page, cell_id)).to_have_attribute("data-bet-id", BET)


async def test_after_a_reload_the_bets_are_there_again(live_page: Page, site: FakeSite) -> None:
    won, confirmed, pending = [await place(live_page, site, index) for index in (0, 2, 4)]
    await site.books.confirm("bet_0001", RATE)
    await site.books.confirm("bet_0002", RATE)
    await site.books.settle("bet_0001", 1_179)
    await expect_bet(live_page, won, "won")

    await live_page.reload()
    await expect_account(live_page, "in")
    await expect_bet(live_page, confirmed, "confirmed")
    await expect_bet(live_page, pending, "pending")
    await expect_bet(live_page, won, "won")
    lines = live_page.locator("#taps li")
    await expect(lines).to_have_count(3)
    shown = [await lines.nth(n).get_attribute("data-bet-id") for n in range(3)]
    assert shown == ["bet_0003", "bet_0002", "bet_0001"]
    await expect(live_page.locator("#result")).to_be_empty()  # that is no news
    await expect(cell(live_page, pending)).to_have_attribute("aria-disabled", "true")

    # The cookie is enough for the stream to go on.
    await site.books.settle("bet_0002", 1_179)
    await expect_bet(live_page, confirmed, "won")
    await expect_balance(live_page, CREDIT - 1_500 + 2 * 1_179)


async def test_open_bets_are_found_however_far_back(live_page: Page, site: FakeSite) -> None:
    address = await sign_in(live_page)
    cells = site.cell_ids()
    for number in range(130):
        cell_id = cells[number] if number < len(cells) else cells[number % 40] + "0"
        site.books.place(address, f"bet_{number:04}", {"cell_id": cell_id, "amount": 100})
    calls = len(site.books.calls)
    await live_page.reload()
    await expect(live_page.locator("#taps li")).to_have_count(30)
    await expect_bet(live_page, cells[0], "pending")
    assert site.books.calls[calls:] == ["bets", "bets"]


async def test_a_bet_placed_in_another_tab_appears(
    live_page: Page, site: FakeSite, complaints: Any
) -> None:
    complaints.expect_failed_load("/api/bets")
    address = await sign_in(live_page)
    cell_id = str((await aim(live_page))["id"])
    site.books.place(address, "bet_x", {"cell_id": cell_id, "amount": 2_500})
    site.answers = [problem(409, "duplicate_cell", "You have a bet on this cell already.")]
    await tap(live_page)
    await expect_answer(live_page, "Not placed: You have a bet on this cell already.")
    await expect_bet(live_page, cell_id, "pending")
    await expect(cell(live_page, cell_id)).to_have_text("$25")
    await expect(line(live_page, cell_id)).to_have_attribute("data-bet-id", "bet_x")


async def test_an_overdue_result_is_asked_for(live_page: Page, site: FakeSite) -> None:
    site.books.silent = True
    address = await sign_in(live_page)
    site.books.place(address, BET, {"cell_id": site.cell_ids()[0], "amount": 500})
    over(BET, site, 4)
    await live_page.reload()
    await expect_account(live_page, "in")
    await until(lambda: f"bets/{BET}" in site.books.calls)
    await expect(live_page.locator("#taps li")).to_have_attribute("data-bet", "pending")
    await site.books.confirm(BET, RATE)
    await site.books.settle(BET, 1_179)
    await expect(live_page.locator("#taps li")).to_have_attribute("data-bet", "won", timeout=15_000)
    await expect(live_page.locator("#taps li")).to_contain_text("Won $11.79")
    asked = site.books.calls.count(f"bets/{BET}")
    assert asked <= 4
    await live_page.wait_for_timeout(2_500)
    assert site.books.calls.count(f"bets/{BET}") == asked


async def test_a_result_that_is_not_due_yet_is_not_asked_for(
    live_page: Page, site: FakeSite
) -> None:
    await place(live_page, site)
    await live_page.wait_for_timeout(2_500)
    assert f"bets/{BET}" not in site.books.calls


async def test_signing_out_takes_the_bets_along(live_page: Page, site: FakeSite) -> None:
    cell_id = await place(live_page, site)
    await site.books.confirm(BET, RATE)
    await expect_bet(live_page, cell_id, "confirmed")
    await live_page.get_by_role("button", name="Sign out").click()
    await expect_account(live_page, "out")
    await expect(live_page.locator("#taps li")).to_have_count(0)
    await expect(live_page.locator("#taps-none")).to_be_visible()
    await expect(live_page.locator("#cells [data-bet]")).to_have_count(0)

    # What is still told of the one who has gone is nobody's business.
    await site.books.settle(BET, 1_179)
    await live_page.wait_for_timeout(200)
    await expect(live_page.locator("#taps li")).to_have_count(0)
    await expect(live_page.locator("#balance")).to_be_empty()

    await sign_in(live_page)
    await expect(line(live_page, cell_id)).to_contain_text("Won $11.79")
    await expect_balance(live_page, CREDIT + 679)


async def test_results_and_answers_that_overtake_each_other_end_at_the_books_balance(
    live_page: Page, site: FakeSite
) -> None:
    await place(live_page, site, 0)
    await site.books.confirm(BET, RATE)

    async def late(route: Any) -> None:
        response = await route.fetch()  # its balance is without the payout
        await site.books.settle(BET, 1_179)
        await live_page.wait_for_timeout(300)
        await route.fulfill(response=response)

    await live_page.route("**/api/bets", late)
    await tap(live_page, 3)
    await expect_answer(live_page, "bet_0002")
    await expect_balance(live_page, CREDIT - 1_000)  # the older one came last
    await expect_balance(live_page, CREDIT - 1_000 + 1_179)


@pytest.mark.parametrize("context_options", [{"viewport": {"width": 320, "height": 640}}])
async def test_results_fit_a_phone(live_page: Page, site: FakeSite) -> None:
    # Placed without a tap: few cells of a stage this narrow can be aimed at.
    address = await sign_in(live_page)
    for bet_id, cell_id in zip(("bet_0001", "bet_0002"), site.cell_ids(), strict=False):
        site.books.place(address, bet_id, {"cell_id": cell_id, "amount": 500})
    await live_page.reload()
    await expect(live_page.locator("#taps li")).to_have_count(2)
    await until(lambda: bool(site.books.listeners))
    await site.books.void("bet_0001", "not_offered")
    await site.books.confirm("bet_0002", "47.6190")
    await site.books.settle("bet_0002", 23_809)
    await expect(live_page.locator("#taps")).to_contain_text("Won $238.09")
    won = live_page.locator('.cell[data-bet="won"]')
    await expect(won).to_have_text("$238")
    assert await won.evaluate("(cell) => cell.scrollWidth <= cell.clientWidth")
    await expect(live_page.locator("#taps")).to_contain_text("stake returned: the cell was not")
    widths: dict[str, Any] = await live_page.evaluate(
        "({page: document.documentElement.scrollWidth, window: innerWidth})"
    )
    assert widths["page"] <= widths["window"]


async def test_results_reach_every_tab(live_page: Page, site: FakeSite) -> None:
    cell_id = await place(live_page, site)
    other = await live_page.context.new_page()
    await other.goto(site.url)
    await expect_state(other, "live")
    await expect_bet(other, cell_id, "pending")
    await site.books.confirm(BET, RATE)
    await site.books.settle(BET, 0)
    for page in (live_page, other):
        await expect(line(page, cell_id)).to_have_attribute("data-bet", "lost")
    await other.close()


async def test_nobody_is_told_of_anothers_bets(
    live_page: Page, site: FakeSite, browser: Browser
) -> None:
    context = await browser.new_context()
    stranger = await context.new_page()
    await stranger.goto(site.url)
    await expect_state(stranger, "live")
    await sign_in(stranger)
    await place(live_page, site)
    [events] = [site.books.events.setdefault(name, []) for name in site.books.bets]
    await site.books.confirm(BET, RATE)
    # Not even if a server were to tell a guest.
    guest = await (await browser.new_context()).new_page()
    await guest.goto(site.url)
    await expect_state(guest, "live")
    await site.send(**events[0])
    await guest.wait_for_timeout(300)
    await expect(guest.locator("#taps li")).to_have_count(0)
    await guest.context.close()
    await context.close()
