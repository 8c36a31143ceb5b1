"""Accounts: created once, credited once, and moved only as they were last seen."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from tap_trading.base.db import WriterLock, open_writer
from tap_trading.ledger import ids, statement
from tap_trading.ledger.accounts import (
    HOUSE,
    MAX_AMOUNT,
    Account,
    AccountError,
    DuplicateReferenceError,
    InsufficientFundsError,
    StaleAccountError,
    find,
    open_account,
    post,
)
from tap_trading.ledger.audit import audit
from tap_trading.ledger.batcher import Batcher

NOW = 1_764_000_000_000
CREDIT = 100_000


@pytest.fixture
def connection(database: Path) -> Iterator[apsw.Connection]:
    connection = open_writer(database)
    yield connection
    report = audit(connection)
    connection.close()
    assert report.clean, report.findings


@pytest.fixture
def account(connection: apsw.Connection) -> Account:
    return open_account(connection, "wallet", NOW, CREDIT)


def move(connection: apsw.Connection, account: Account, amount: int, **other: Any) -> Account:
    named = {"ref_type": "ADJUSTMENT", "ref_id": "r", "metadata": None, "now_ms": NOW + 1}
    return post(connection, account=account, amount=amount, **named | other)


def entries(connection: apsw.Connection) -> list[Any]:
    return connection.execute("SELECT * FROM transaction_ledger ORDER BY rowid").fetchall()


def test_a_first_sign_in_creates_the_user_with_a_practice_credit(
    connection: apsw.Connection,
) -> None:
    account = open_account(connection, "wallet", NOW, CREDIT)
    assert account.user_id.startswith("user_")
    assert account == Account(account.user_id, "wallet", CREDIT, 0, 2, NOW, NOW)
    house = find(connection, HOUSE)
    assert house is not None
    assert (house.balance, house.version, house.updated_at) == (-CREDIT, 2, NOW)
    user, other = entries(connection)
    assert user[0][:-1] == other[0][:-1]
    assert (user[0][-1], other[0][-1]) == ("u", "h")
    said = '{"reason":"practice credit","operator":"tap-trading"}'
    reference = f"practice_{account.user_id}"
    assert user[1:] == (account.user_id, CREDIT, CREDIT, "DEPOSIT", reference, said, NOW)
    assert other[1:] == (HOUSE, -CREDIT, -CREDIT, "DEPOSIT", reference, said, NOW)


def test_the_next_sign_in_finds_it_as_it_is(connection: apsw.Connection, account: Account) -> None:
    spent = move(connection, account, -CREDIT)
    assert open_account(connection, "wallet", NOW + 5, CREDIT) == spent
    assert len(entries(connection)) == 4


def test_without_a_credit_nothing_is_moved(connection: apsw.Connection) -> None:
    account = open_account(connection, "wallet", NOW, 0)
    assert (account.balance, account.version) == (0, 1)
    assert entries(connection) == []


def test_nobody_signs_in_as_the_house(connection: apsw.Connection) -> None:
    with pytest.raises(ValueError, match="house"):
        open_account(connection, HOUSE, NOW, CREDIT)


def test_an_account_that_cannot_be_made_is_said_so(connection: apsw.Connection) -> None:
    """A trigger stands in for whatever might swallow the row."""
    connection.execute(
        "CREATE TEMP TRIGGER t BEFORE INSERT ON main.users BEGIN SELECT RAISE(IGNORE); END"
    )
    with pytest.raises(AccountError, match="could not be created"):
        open_account(connection, "wallet", NOW, CREDIT)


async def test_many_first_sign_ins_at_once_make_one_user(database: Path) -> None:
    batcher: Batcher[Any, Any] = Batcher(database, lambda connection, items: [])
    await batcher.open()
    found = await asyncio.gather(
        *(
            batcher.run(lambda connection: open_account(connection, "wallet", NOW, CREDIT))
            for _ in range(50)
        )
    )
    await batcher.close()
    assert len({account.user_id for account in found}) == 1
    assert {account.balance for account in found} == {CREDIT}


def test_an_account_is_found_by_its_id_or_its_address(
    connection: apsw.Connection, account: Account
) -> None:
    assert find(connection, account.user_id) == find(connection, "wallet") == account
    assert find(connection, "nobody") is None
    # Should somebody's address be another's id, the id decides.
    open_account(connection, account.user_id, NOW, 0)
    assert find(connection, account.user_id) == account


def test_a_movement_changes_both_balances_and_both_versions(
    connection: apsw.Connection, account: Account
) -> None:
    before = find(connection, HOUSE)
    after = move(connection, account, -300, metadata={"reason": "ü"})
    house = find(connection, HOUSE)
    assert before is not None
    assert house is not None
    assert after == find(connection, account.user_id)
    assert after == replace(account, balance=CREDIT - 300, version=3, updated_at=NOW + 1)
    assert house == replace(
        before, balance=before.balance + 300, version=before.version + 1, updated_at=NOW + 1
    )
    user, other = statement.entries_of(connection, "r")
    assert user.details == other.details == {"reason": "ü"}
    assert (user.amount, other.amount) == (-300, 300)


def test_whoever_comes_second_loses_and_nothing_of_it_is_kept(
    connection: apsw.Connection, account: Account
) -> None:
    first = move(connection, account, 100, ref_id="first")
    with pytest.raises(StaleAccountError, match=account.user_id):
        move(connection, account, 100, ref_id="second")
    # Not even when what it saw was too little: it may be enough by now.
    with pytest.raises(StaleAccountError):
        move(connection, account, -CREDIT - 1, ref_id="second")
    assert find(connection, account.user_id) == first
    move(connection, first, 100, ref_id="second")


def test_an_account_that_is_gone_is_stale(connection: apsw.Connection, account: Account) -> None:
    with pytest.raises(StaleAccountError):
        move(connection, replace(account, user_id="user_gone"), 1)


def test_a_balance_never_goes_below_zero(connection: apsw.Connection, account: Account) -> None:
    with pytest.raises(InsufficientFundsError, match="has 100000 cents, which is less than 100001"):
        move(connection, account, -CREDIT - 1)
    assert move(connection, account, -CREDIT).balance == 0


def test_a_reference_is_used_once_for_each_kind(
    connection: apsw.Connection, account: Account
) -> None:
    other = open_account(connection, "other wallet", NOW, CREDIT)
    after = move(connection, account, 1)
    for again in (after, other):
        with pytest.raises(DuplicateReferenceError, match="a ADJUSTMENT with the reference r"):
            move(connection, again, 1)
    # Said before anything else that is wrong with it.
    with pytest.raises(DuplicateReferenceError):
        move(connection, account, -CREDIT * 2)
    assert find(connection, account.user_id) == after
    move(connection, after, 1, ref_type="DEPOSIT")


def test_a_failed_movement_leaves_the_transaction_around_it_whole(
    connection: apsw.Connection, account: Account
) -> None:
    connection.execute("BEGIN IMMEDIATE")
    after = move(connection, account, 1, ref_id="kept")
    connection.execute(
        "CREATE TEMP TRIGGER t BEFORE INSERT ON main.transaction_ledger"
        " WHEN NEW.user_id = 'house' BEGIN SELECT RAISE(ABORT, 'half'); END"
    )
    with pytest.raises(apsw.ConstraintError, match="half"):
        move(connection, after, 1, ref_id="lost")
    connection.execute("DROP TRIGGER t")
    connection.execute("COMMIT")
    assert find(connection, account.user_id) == after
    assert statement.entries_of(connection, "lost") == []


@pytest.mark.parametrize("amount", [0, MAX_AMOUNT + 1, -MAX_AMOUNT - 1, 1.0, True, "1"])
def test_an_amount_is_whole_cents_within_bounds(
    connection: apsw.Connection, account: Account, amount: Any
) -> None:
    with pytest.raises(ValueError, match="an amount must be"):
        move(connection, account, amount)


def test_the_largest_movement_fits(connection: apsw.Connection, account: Account) -> None:
    after = move(connection, account, MAX_AMOUNT)
    assert move(connection, after, -MAX_AMOUNT, ref_id="back").balance == CREDIT


@pytest.mark.parametrize("reference", ["", "a b", "ü", "x" * 65, "a\n"])
def test_a_reference_is_visible_ascii(
    connection: apsw.Connection, account: Account, reference: str
) -> None:
    with pytest.raises(ValueError, match="a reference must be"):
        move(connection, account, 1, ref_id=reference)


def test_the_house_has_no_movements_of_its_own(connection: apsw.Connection) -> None:
    house = find(connection, HOUSE)
    assert house is not None
    with pytest.raises(ValueError, match="the house is the other side"):
        move(connection, house, 1)


def test_without_a_house_nothing_is_moved(database: Path) -> None:
    connection = open_writer(database)
    account = open_account(connection, "wallet", NOW, 0)
    connection.execute("DELETE FROM users WHERE id = 'house'")
    with pytest.raises(AccountError, match="no house account"):
        move(connection, account, 1)
    assert find(connection, account.user_id) == account
    connection.close()


def test_movements_from_many_threads_lose_nothing(
    database: Path, connection: apsw.Connection, account: Account
) -> None:
    """Each reads, and writes what it read; who was too late reads again."""

    def add_cents(thread: int) -> None:
        lock = WriterLock(database)
        with lock.held(wait_s=60):
            own = open_writer(database)
        written = 0
        while written < 10:
            seen = find(own, account.user_id)
            assert seen
            with lock.held(wait_s=60):
                own.execute("BEGIN IMMEDIATE")
                try:
                    move(own, seen, 1, ref_id=f"{thread}:{written}")
                except StaleAccountError:
                    own.execute("ROLLBACK")
                else:
                    own.execute("COMMIT")
                    written += 1
        with lock.held(wait_s=60):
            own.close()
        lock.close()

    threads = [threading.Thread(target=add_cents, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = find(connection, account.user_id)
    assert after is not None
    assert (after.balance, after.version) == (CREDIT + 50, account.version + 50)


def test_ids_sort_by_time() -> None:
    early, late = ids.new_id("led", NOW), ids.new_id("led", NOW + 1)
    assert early < late
    assert early.startswith(f"led_{NOW:012x}")
    assert len(early) == len("led_") + 12 + 16
    assert ids.new_id("led", NOW) != early


def test_a_statement_says_what_the_books_say(connection: apsw.Connection, account: Account) -> None:
    for number in range(5):
        account = move(connection, account, number + 1, ref_id=f"r{number}")
    latest = statement.latest_entries(connection, account.user_id, 3)
    assert [(entry.amount, entry.balance_after) for entry in latest] == [
        *((5, CREDIT + 15), (4, CREDIT + 10), (3, CREDIT + 6)),
    ]
    assert latest[0].details == {}
    assert replace(latest[0], metadata="[1]").details == {}
    assert statement.bets_by_status(connection, account.user_id) == {}
    assert statement.bet(connection, "bet_none") is None
