"""What the stream tells only its owner: who it knows, and what a reconnect brings back."""

from playwright.async_api import Page, expect

from e2e.page.fake_site import CREDIT, FakeSite
from e2e.page.steps import (
    expect_account,
    expect_balance,
    expect_bet,
    expect_state,
    sign_in,
    tap,
    until,
)

RATE = "2.3589"


def said(site: FakeSite, kind: str) -> list[dict[str, object]]:
    return [message for message in site.books.heard if message["type"] == kind]


async def known(page: Page, site: FakeSite) -> str:
    """Signs in and waits until the stream knows it; returns the address."""
    address = await sign_in(page)
    await until(lambda: address in site.books.listeners.values())
    await until(lambda: "bets" in site.books.calls)
    return address


async def cut(page: Page, site: FakeSite) -> None:
    """Takes the connection away and waits until it is back and introduced."""
    connections = site.connections
    site.accepting = True
    await site.drop()
    await until(lambda: site.connections > connections and bool(site.books.listeners))
    await expect_state(page, "live")


async def test_who_signs_in_introduces_itself_with_the_token(
    live_page: Page, site: FakeSite
) -> None:
    assert said(site, "auth") == []
    await known(live_page, site)
    [token] = site.accounts.sessions
    assert said(site, "auth") == [{"type": "auth", "token": token}]
    await cut(live_page, site)
    await until(lambda: len(said(site, "auth")) == 2)


async def test_after_a_reload_the_cookie_is_introduction_enough(
    live_page: Page, site: FakeSite
) -> None:
    address = await known(live_page, site)
    await live_page.reload()
    await expect_account(live_page, "in")
    await until(lambda: address in site.books.listeners.values())
    assert len(said(site, "auth")) == 1


async def test_a_new_session_is_introduced_too(live_page: Page, site: FakeSite) -> None:
    await known(live_page, site)
    await live_page.get_by_role("button", name="Sign out").click()
    await expect_account(live_page, "out")
    await sign_in(live_page)
    await until(lambda: len(said(site, "auth")) == 2)
    tokens = [message["token"] for message in said(site, "auth")]
    assert tokens[1] in site.accounts.sessions
    assert tokens[0] != tokens[1]


async def test_without_a_stream_that_knows_the_trader_the_bets_are_read_all_the_same(
    live_page: Page, site: FakeSite
) -> None:
    site.books.knows_cookies = False
    await sign_in(live_page)
    cell_id = await tap(live_page)
    await expect_bet(live_page, cell_id, "pending")
    await live_page.reload()
    await expect_bet(live_page, cell_id, "pending")


async def test_what_was_missed_is_told_again_and_nothing_is_read(
    live_page: Page, site: FakeSite
) -> None:
    await known(live_page, site)
    cell_id = await tap(live_page)
    await expect_bet(live_page, cell_id, "pending")
    await site.books.confirm("bet_0001", RATE)
    await expect_bet(live_page, cell_id, "confirmed")
    reads = [*site.books.calls, *site.accounts.calls]
    site.books.silent = True
    await site.books.settle("bet_0001", 1_179)
    site.books.silent = False
    await cut(live_page, site)
    await expect_bet(live_page, cell_id, "won")
    await expect_balance(live_page, CREDIT + 679)
    assert said(site, "resume") == [{"type": "resume", "epoch": "first", "seq": 1}]
    # The tap's answer and the payout may have overtaken each other: the balance alone is read.
    await live_page.wait_for_timeout(300)
    assert [
        call for call in [*site.books.calls, *site.accounts.calls][len(reads) :] if call != "me"
    ] == []


async def test_a_reset_reads_bets_and_balance_anew(live_page: Page, site: FakeSite) -> None:
    await known(live_page, site)
    cell_id = await tap(live_page)
    await expect_bet(live_page, cell_id, "pending")
    reads = site.books.calls.count("bets")
    site.books.silent = site.books.forgetful = True
    await site.books.confirm("bet_0001", RATE)
    await site.books.settle("bet_0001", 1_179)
    site.books.silent = False
    await cut(live_page, site)
    await expect_bet(live_page, cell_id, "won")
    await expect_balance(live_page, CREDIT + 679)
    assert site.books.calls.count("bets") == reads + 1


async def test_after_a_reset_its_epoch_and_number_count(live_page: Page, site: FakeSite) -> None:
    """It comes unasked too, and names an epoch that this connection was not greeted with."""
    await known(live_page, site)
    cell_id = await tap(live_page)
    await expect_bet(live_page, cell_id, "pending")
    reads = site.books.calls.count("bets")
    site.books.epoch = "second"
    site.books.skip(7)
    await site.send(type="reset", epoch="second", seq=7)
    await until(lambda: site.books.calls.count("bets") == reads + 1)
    await site.books.confirm("bet_0001", RATE)
    await expect_bet(live_page, cell_id, "confirmed")
    await cut(live_page, site)
    await until(lambda: said(site, "resume") == [{"type": "resume", "epoch": "second", "seq": 8}])
    assert site.books.calls.count("bets") == reads + 1


async def test_after_another_epoch_everything_is_read_anew(live_page: Page, site: FakeSite) -> None:
    await known(live_page, site)
    cell_id = await tap(live_page)
    await expect_bet(live_page, cell_id, "pending")
    site.books.silent = True
    await site.books.confirm("bet_0001", RATE)
    await site.books.settle("bet_0001", 0)
    site.books.silent = False
    site.books.epoch = "second"
    site.books.events.clear()
    await cut(live_page, site)
    await expect_bet(live_page, cell_id, "lost")
    # The numbers of the new epoch count, lower as they are.
    second = await tap(live_page, 3)
    await expect_bet(live_page, second, "pending")
    await site.books.settle("bet_0002", 1_179)
    await expect_bet(live_page, second, "won")
    await expect_balance(live_page, CREDIT - 1_000 + 1_179)


async def test_a_number_that_is_missing_has_everything_read_anew(
    live_page: Page, site: FakeSite
) -> None:
    await known(live_page, site)
    cells = []
    for index in (0, 3):
        cells.append(await tap(live_page, index))
        await expect_bet(live_page, cells[-1], "pending")
    reads = site.books.calls.count("bets")
    site.books.silent = True
    await site.books.confirm("bet_0001", RATE)
    site.books.silent = False
    await site.books.confirm("bet_0002", RATE)
    await expect_bet(live_page, cells[1], "confirmed")
    await expect_bet(live_page, cells[0], "confirmed")
    assert site.books.calls.count("bets") == reads + 1


async def test_messages_that_make_no_sense_are_left_out(live_page: Page, site: FakeSite) -> None:
    await known(live_page, site)
    cell_id = await tap(live_page)
    await expect_bet(live_page, cell_id, "pending")
    bet = {"bet_id": "bet_0001", "cell_id": cell_id, "amount": 500, "placed_at": "yesterday"}
    await site.send(type="bet", seq=1, status="won", **bet)
    await site.send(type="bet", seq=1, status="eaten", **{**bet, "placed_at": "2026-01-01T00:00Z"})
    await site.send(type="balance", seq=1, balance="a lot")
    await site.send(type="balance", balance=5)
    await site.books.confirm("bet_0001", RATE)
    await expect_bet(live_page, cell_id, "confirmed")
    await expect(live_page.locator("#balance")).to_have_attribute("data-cents", str(CREDIT - 500))
