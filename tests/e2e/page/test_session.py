"""Who is betting: signing in with the first tap, the balance, and signing out."""

import asyncio
import re
from typing import Any

import pytest
from playwright.async_api import Page, expect

from e2e.page.fake_site import (
    CREDIT,
    Answer,
    FakeSite,
    accepted,
    problem,
    proxy_page,
    unauthenticated,
)
from e2e.page.steps import (
    expect_account,
    expect_answer,
    expect_balance,
    expect_bet,
    expect_state,
    sign_in,
    tap,
    until,
)

SIGN_IN = ["auth/challenge", "auth/verify"]


def arrivals(site: FakeSite) -> list[str]:
    """What was asked to sign in and out; the balance may be read more than once meanwhile."""
    return [call for call in site.accounts.calls if call != "me"]


async def test_a_visitor_is_asked_for_nothing_and_sees_how_to_begin(
    live_page: Page, site: FakeSite
) -> None:
    await expect_account(live_page, "out")
    await expect(live_page.get_by_role("button", name="Start practising")).to_be_visible()
    await expect(live_page.locator("#balance")).to_be_empty()
    await live_page.wait_for_timeout(200)
    assert site.accounts.calls == ["me"]
    assert site.accounts.challenges == {}


async def test_the_first_tap_signs_in_and_places(live_page: Page, site: FakeSite) -> None:
    cell_id = await tap(live_page)
    await expect_answer(live_page, "Accepted: $5 on ")
    await expect_bet(live_page, cell_id, "pending")
    await expect_account(live_page, "in")
    await expect_balance(live_page, CREDIT - 500)
    [bet] = site.bets
    [token] = site.accounts.sessions
    assert bet.authorization == f"Bearer {token}"
    assert arrivals(site) == SIGN_IN

    await tap(live_page, 3)
    await until(lambda: len(site.bets) == 2)
    await expect_balance(live_page, CREDIT - 1_000)
    assert arrivals(site) == SIGN_IN
    # At load, then after signing in, and once the stream tells of changes.
    assert site.accounts.calls.count("me") <= 3


async def test_taps_in_a_hurry_sign_in_once(live_page: Page, site: FakeSite) -> None:
    for index in (0, 2, 4):
        await tap(live_page, index)
    await until(lambda: len(site.bets) == 3)
    await expect_balance(live_page, CREDIT - 1_500)
    assert site.accounts.calls.count("auth/challenge") == 1
    assert len({bet.key for bet in site.bets}) == 3


async def test_a_tap_waits_for_the_cookies_answer(page: Page, site: FakeSite) -> None:
    await page.goto(site.url)
    address = await sign_in(page)
    answer = asyncio.Event()

    async def later(route: Any) -> None:
        await answer.wait()
        await route.continue_()

    await page.route("**/api/me", later)
    await page.reload()
    await expect_state(page, "live")
    await tap(page)
    await expect_answer(page, "Signing in, then sending")
    answer.set()
    await expect_answer(page, "Accepted")
    assert site.accounts.calls.count("auth/challenge") == 1
    assert site.accounts.balances == {address: CREDIT - 500}


async def test_the_button_signs_in_and_the_account_shows(live_page: Page, site: FakeSite) -> None:
    address = await sign_in(live_page)
    assert list(site.accounts.balances) == [address]
    await expect(live_page.locator("#balance")).to_have_text("Balance $1,000.00")
    shown = live_page.locator("#address")
    await expect(shown).to_have_text(f"{address[:4]}…{address[-4:]}")
    await expect(shown).to_have_attribute("title", re.compile(address))
    await expect_answer(live_page, "Signed in. Tap a cell to stake on it.")
    assert site.bets == []


async def test_a_double_click_does_not_sign_out_again(live_page: Page, site: FakeSite) -> None:
    await live_page.get_by_role("button", name="Start practising").dblclick(delay=120)
    await expect_account(live_page, "in")
    await live_page.wait_for_timeout(200)
    assert "auth/logout" not in site.accounts.calls


async def test_the_keyboard_signs_in_and_out(live_page: Page, site: FakeSite) -> None:
    await live_page.keyboard.press("Tab")
    await expect(live_page.get_by_text("Skip to the cells")).to_be_focused()
    await live_page.keyboard.press("Tab")
    button = live_page.locator("#account button")
    await expect(button).to_be_focused()
    await live_page.keyboard.press("Enter")
    await expect_account(live_page, "in")
    await expect(button).to_be_focused()
    await expect(button).to_have_text("Sign out")
    await live_page.keyboard.press("Space")
    await expect_account(live_page, "out")
    await expect(button).to_be_focused()


async def test_what_changes_is_announced(live_page: Page) -> None:
    await sign_in(live_page)
    for name in ("Balance $1,000.00", "Signed in"):
        await expect(live_page.get_by_role("status").filter(has_text=name)).to_be_visible()
    await expect(live_page.get_by_role("region", name="Account")).to_be_visible()


async def test_a_reload_goes_on_with_the_cookie(live_page: Page, site: FakeSite) -> None:
    address = await sign_in(live_page)
    await tap(live_page)
    await expect_balance(live_page, CREDIT - 500)
    calls = len(arrivals(site))

    await live_page.reload()
    await expect_account(live_page, "in")
    await expect_balance(live_page, CREDIT - 500)
    await expect(live_page.locator("#address")).to_have_attribute("data-address", address)
    await tap(live_page, 3)
    await expect_balance(live_page, CREDIT - 1_000)
    assert arrivals(site)[calls:] == []
    assert site.bets[-1].authorization is None


async def test_the_token_is_kept_in_memory_only(live_page: Page, site: FakeSite) -> None:
    site.accounts.keeps_cookies = False
    address = await sign_in(live_page)
    [token] = site.accounts.sessions
    state = await live_page.context.storage_state(indexed_db=True)
    assert token not in str(state)
    assert await live_page.evaluate("document.cookie") == ""

    await live_page.reload()
    await expect_account(live_page, "out")
    await tap(live_page)
    await expect_balance(live_page, CREDIT - 500)
    assert site.accounts.balances == {address: CREDIT - 500}


async def test_a_session_that_ended_is_begun_anew_and_the_same_bet_sent_again(
    live_page: Page, site: FakeSite, complaints: Any
) -> None:
    complaints.expect_failed_load("/api/bets")
    address = await sign_in(live_page)
    [first] = site.accounts.sessions
    site.accounts.sessions.clear()
    cell_id = await tap(live_page)
    await expect_answer(live_page, "Accepted")
    await expect_bet(live_page, cell_id, "pending")
    refused, placed = site.bets
    [second] = site.accounts.sessions
    assert (refused.key, refused.body) == (placed.key, placed.body)
    assert refused.authorization == f"Bearer {first}"
    assert placed.authorization == f"Bearer {second}"
    assert site.accounts.balances == {address: CREDIT - 500}
    await expect_balance(live_page, CREDIT - 500)


async def test_a_cookie_that_ended_is_replaced_by_a_token(
    live_page: Page, site: FakeSite, complaints: Any
) -> None:
    complaints.expect_failed_load("/api/bets")
    await sign_in(live_page)
    await live_page.reload()
    await expect_account(live_page, "in")
    site.accounts.sessions.clear()
    await tap(live_page)
    await expect_balance(live_page, CREDIT - 500)
    assert [bet.authorization is None for bet in site.bets] == [True, False]
    assert len({bet.key for bet in site.bets}) == 1


async def test_many_bets_of_a_dead_session_renew_it_once(
    live_page: Page, site: FakeSite, complaints: Any
) -> None:
    complaints.expect_failed_load("/api/bets")
    await sign_in(live_page)
    site.accounts.sessions.clear()
    for index in (0, 2, 4):
        await tap(live_page, index)
    await expect_balance(live_page, CREDIT - 1_500)
    assert len({bet.key for bet in site.bets}) == 3
    assert site.accounts.calls.count("auth/challenge") == 2


async def test_a_second_401_is_the_answer(live_page: Page, site: FakeSite, complaints: Any) -> None:
    complaints.expect_failed_load("/api/bets")
    await sign_in(live_page)
    site.answers = [unauthenticated] * 9
    cell_id = await tap(live_page)
    await expect_answer(live_page, "Not placed: Sign in first: there is no such session.")
    await expect_bet(live_page, cell_id, "refused")
    assert len(site.bets) == 2
    assert len({bet.key for bet in site.bets}) == 1


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"domain": "other.example"}, "the text to sign is for other.example, but this page is"),
        ({"uri": "https://other.example"}, "the text to sign is for https://other.example, but"),
        ({"names": "4vJ9JU1bJJE96FWSJKvHsmmFADCg4gpZQff4P3bkLKi"}, "for another account"),
        ({"asks_for_nonce": "0ldnonce5678"}, "has another nonce"),
    ],
    ids=["domain", "uri", "address", "nonce"],
)
async def test_a_text_for_somebody_else_is_not_signed(
    live_page: Page, site: FakeSite, lie: dict[str, str], words: str
) -> None:
    for name, value in lie.items():
        setattr(site.accounts, name, value)
    cell_id = await tap(live_page)
    await expect_answer(live_page, "Not placed: Nothing was signed:")
    await expect_answer(live_page, words)
    await expect_bet(live_page, cell_id, "refused")
    await expect_account(live_page, "out")
    await live_page.get_by_role("button", name="Start practising").click()
    await expect_answer(live_page, "Not signed in: Nothing was signed:")
    assert site.accounts.calls == ["me", "auth/challenge", "auth/challenge"]
    assert site.bets == []


async def test_a_busy_sign_in_is_tried_again(
    live_page: Page, site: FakeSite, complaints: Any
) -> None:
    for path in ("/api/auth/challenge", "/api/auth/verify"):
        complaints.expect_failed_load(path)
    busy = problem(503, "unavailable", "There is no signing in.", {"Retry-After": "0"})
    site.accounts.answers = {"auth/challenge": [busy, proxy_page(502)], "auth/verify": [busy]}
    await tap(live_page)
    await expect_answer(live_page, "Accepted")
    # A nonce may have been used up by an attempt that failed: each has one of its own.
    tries = ["auth/challenge"] * 3 + ["auth/verify"] + ["auth/challenge", "auth/verify"]
    assert arrivals(site) == tries
    assert len(site.bets) == 1


@pytest.mark.parametrize(
    ("path", "status", "code", "detail"),
    [
        ("auth/challenge", 429, "rate_limited", "Too many requests."),
        ("auth/challenge", 503, "unavailable", "There is no signing in."),
        ("auth/verify", 401, "bad_nonce", "This nonce is unknown, used or expired."),
        ("auth/verify", 401, "bad_signature", "This is not the address' signature."),
    ],
)
async def test_why_there_is_no_signing_in_is_said_in_its_own_words(
    live_page: Page,
    site: FakeSite,
    complaints: Any,
    path: str,
    status: int,
    code: str,
    detail: str,
) -> None:
    complaints.expect_failed_load(f"/api/{path}")
    site.accounts.answers = {path: [problem(status, code, detail, {"Retry-After": "30"})]}
    cell_id = await tap(live_page)
    await expect_answer(live_page, f"Not placed: {detail}")
    await expect_bet(live_page, cell_id, "refused")
    assert site.bets == []
    await sign_in(live_page)


async def test_a_site_that_cannot_tell_who_this_is_at_load_is_asked_again(
    live_page: Page, site: FakeSite
) -> None:
    await sign_in(live_page)
    site.accounts.answers = {"me": [problem(503, "unavailable", "Try again soon."), proxy_page()]}
    await live_page.reload()
    await expect_account(live_page, "in")
    await expect_balance(live_page, CREDIT)
    assert site.accounts.calls.count("auth/challenge") == 1


async def test_a_late_answer_does_not_bring_an_old_balance_back(
    live_page: Page, site: FakeSite
) -> None:
    def told(balance: int, second: int) -> Answer:
        at = f"2026-01-01T00:00:0{second}.000Z"
        return lambda: accepted(site.bets[-1].body, "bet_x", balance, at)

    await sign_in(live_page)
    for balance, second, shown in (
        (99_000, 2, 99_000),
        (99_500, 1, 99_000),  # placed earlier
        (98_500, 3, 98_500),
        (98_400, 3, 98_400),  # in the same millisecond
        (98_700, 3, 98_400),
    ):
        site.answers = [told(balance, second)]
        cell_id = await tap(live_page, len(site.bets))
        await expect_bet(live_page, cell_id, "pending")
        await expect_balance(live_page, shown)


async def test_a_balance_read_before_a_bet_does_not_replace_the_bets(
    live_page: Page, site: FakeSite
) -> None:
    answer = asyncio.Event()

    async def later(route: Any) -> None:
        response = await route.fetch()
        await answer.wait()
        await route.fulfill(response=response)

    await live_page.route("**/api/me", later)
    await sign_in(live_page)
    await expect(live_page.locator("#balance")).to_be_empty()
    await until(lambda: site.accounts.calls.count("me") >= 2)
    await tap(live_page)
    await expect_balance(live_page, CREDIT - 500)
    answer.set()
    await live_page.wait_for_timeout(200)
    await expect_balance(live_page, CREDIT - 500)


async def test_too_little_money_is_said_and_the_balance_read_anew(
    live_page: Page, site: FakeSite, complaints: Any
) -> None:
    complaints.expect_failed_load("/api/bets")
    address = await sign_in(live_page)
    site.accounts.balances[address] = 123  # spent in another tab
    site.answers = [problem(402, "insufficient_funds", "The balance does not cover this stake.")]
    cell_id = await tap(live_page)
    await expect_answer(live_page, "Not placed: The balance does not cover this stake.")
    await expect_bet(live_page, cell_id, "refused")
    await expect(live_page.locator("#balance")).to_have_text("Balance $1.23")


@pytest.mark.parametrize(
    ("status", "code", "detail"),
    [
        (422, "limit_exceeded", "The most that may be at stake here is reached."),
        (429, "rate_limited", "More than 300 requests in a minute."),
    ],
)
async def test_limits_are_said_in_their_own_words(
    live_page: Page, site: FakeSite, complaints: Any, status: int, code: str, detail: str
) -> None:
    complaints.expect_failed_load("/api/bets")
    await sign_in(live_page)
    site.answers = [problem(status, code, detail, {"Retry-After": "1"})]
    await tap(live_page)
    await expect_answer(live_page, f"Not placed: {detail}")
    await expect_balance(live_page, CREDIT)
    assert len(site.bets) == 1


@pytest.mark.parametrize(
    "door",
    [
        problem(429, "rate_limited", "Too many requests."),
        problem(503, "overloaded", "Nothing was placed.", {"Retry-After": "30"}),
        unauthenticated,
    ],
    ids=["rate limit", "overload", "session"],
)
async def test_a_bet_in_doubt_stays_so_until_somebody_looked(
    live_page: Page, site: FakeSite, complaints: Any, door: Any
) -> None:
    complaints.expect_failed_load("/api/bets")
    await sign_in(live_page)
    site.answers = [proxy_page(502), door, unauthenticated]
    cell_id = await tap(live_page, 8)
    await expect_answer(live_page, "The bet may or may not stand")
    await expect_bet(live_page, cell_id, "unknown")
    site.answers = [problem(503, "overloaded", "Nothing was placed.", {"Retry-After": "30"})]
    await live_page.locator(f'#cells [data-cell-id="{cell_id}"]').dispatch_event("click")
    await until(lambda: not site.answers)
    await expect_bet(live_page, cell_id, "unknown")
    site.answers = [problem(422, "cell_closed", "This cell's column takes no more bets.")]
    await live_page.locator(f'#cells [data-cell-id="{cell_id}"]').dispatch_event("click")
    await expect_answer(live_page, "Not placed: This cell's column takes no more bets.")
    assert len({bet.key for bet in site.bets}) == 1


async def test_signing_out_ends_the_session_and_keeps_the_wallet(
    live_page: Page, site: FakeSite
) -> None:
    address = await sign_in(live_page)
    await live_page.get_by_role("button", name="Sign out").click()
    await expect_account(live_page, "out")
    await expect_answer(live_page, "Signed out.")
    await expect(live_page.locator("#balance")).to_be_empty()
    await expect(live_page.locator("#address")).to_be_empty()
    assert site.accounts.sessions == {}

    await live_page.reload()
    await expect_account(live_page, "out")
    assert site.accounts.calls.count("auth/challenge") == 1
    assert await sign_in(live_page) == address


async def test_signing_out_after_a_reload_ends_the_cookies_session(
    live_page: Page, site: FakeSite
) -> None:
    await sign_in(live_page)
    await live_page.reload()
    await live_page.get_by_role("button", name="Sign out").click()
    await expect_account(live_page, "out")
    assert site.accounts.sessions == {}
    assert await live_page.context.cookies() == []


async def test_a_session_that_is_gone_counts_as_signed_out(
    live_page: Page, site: FakeSite, complaints: Any
) -> None:
    complaints.expect_failed_load("/api/auth/logout")
    complaints.expect_failed_load("/api/bets")  # asked for on signing in, maybe still on its way
    await sign_in(live_page)
    site.accounts.sessions.clear()
    await live_page.get_by_role("button", name="Sign out").click()
    await expect_account(live_page, "out")


async def test_a_sign_out_that_fails_is_said(
    live_page: Page, site: FakeSite, complaints: Any
) -> None:
    complaints.expect_failed_load("/api/auth/logout")
    await sign_in(live_page)
    still = "You are still signed in: nothing can be ended now."
    site.accounts.answers = {
        "auth/logout": [problem(503, "unavailable", still, {"Retry-After": "30"})]
    }
    await live_page.get_by_role("button", name="Sign out").click()
    await expect_answer(live_page, f"Not signed out: {still}")
    await expect_account(live_page, "in")
    await expect_balance(live_page, CREDIT)
    assert len(site.accounts.sessions) == 1


async def test_who_signs_out_is_not_signed_in_again_by_an_older_bet(
    live_page: Page, site: FakeSite, complaints: Any
) -> None:
    complaints.expect_failed_load("/api/bets")
    await sign_in(live_page)
    held = asyncio.Event()

    async def later(route: Any) -> None:
        await held.wait()
        await route.continue_()

    await live_page.route("**/api/bets", later)
    cell_id = await tap(live_page)
    await expect_bet(live_page, cell_id, "sending")
    await live_page.get_by_role("button", name="Sign out").click()
    await expect_account(live_page, "out")
    held.set()
    await expect_answer(live_page, "Not placed: You have signed out meanwhile.")
    await expect_account(live_page, "out")
    assert site.accounts.sessions == {}


@pytest.mark.parametrize("context_options", [{"viewport": {"width": 320, "height": 640}}])
async def test_a_phone_has_room_for_the_account(live_page: Page, site: FakeSite) -> None:
    await expect_inside(live_page)
    address = await sign_in(live_page)
    await expect_inside(live_page)
    site.accounts.balances[address] = 123_456_789_012
    await live_page.reload()
    await expect(live_page.locator("#balance")).to_have_text("Balance $1,234,567,890.12")
    await expect_inside(live_page)
    site.accounts.domain = "a-rather-long-name-of-some-other-site.example"
    await live_page.get_by_role("button", name="Sign out").click()
    await live_page.get_by_role("button", name="Start practising").click()
    await expect_answer(live_page, "a-rather-long-name")
    await expect_inside(live_page)


async def expect_inside(page: Page) -> None:
    """Nothing needs sideways scrolling, and the account's words lie on the screen, left of its
    button."""
    measured = await page.evaluate("""() => {
      const box = (element) => element.getBoundingClientRect();
      const button = box(document.querySelector('#account button'));
      return {
        page: document.documentElement.scrollWidth, window: innerWidth,
        button: [button.left, button.right, button.height],
        words: ['balance', 'address'].map((id) => document.getElementById(id))
          .filter((words) => words.textContent).map((words) => [box(words).left,
            box(words).left + words.scrollWidth]),
      };
    }""")
    assert measured["page"] <= measured["window"]
    left, right, height = measured["button"]
    assert right <= measured["window"]
    assert height >= 36
    for begins, ends in measured["words"]:
        assert begins >= 0
        assert ends <= left
