"""The audit: clean books pass, and every kind of damage is found and named.

The damage is done for real, to a copy of the books without their trigger and their checks.
"""

import asyncio
import json
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.conftest import process_environment, python

from tap_trading.archive.backup import BackupError, back_up
from tap_trading.base.db import DatabaseError, open_reader, open_writer
from tap_trading.ledger import ids, migrations
from tap_trading.ledger.accounts import Account, find, open_account, post
from tap_trading.ledger.audit import LISTED, Report, audit
from tap_trading.ledger.batcher import Batcher
from tap_trading.ledger.bets import BetBooks
from tap_trading.ledger.placing import BetRequest, Limits, Placed, Refusal
from tap_trading.services import api

NOW = 1_764_000_000_000
CREDIT = 100_000
NO_PAIR = "is not an entry of a user and its opposite of the house"
#: The sentence about a journal entry that does not balance.
NO_ZERO = "and the users' entries before it are together"


def stake(connection: apsw.Connection, user_id: str, bet_id: str, amount: int) -> None:
    """A bet as a batch of one: a pending row, its entry and the house's, an open stake."""
    balances = []
    for user, change, opened in ((user_id, -amount, amount), ("house", amount, 0)):
        row = connection.execute(
            "UPDATE users SET balance = balance + ?, open_stake = open_stake + ?,"
            " version = version + 1 WHERE id = ? RETURNING balance",
            (change, opened, user),
        ).fetchone()
        assert row
        balances.append((user, change, row[0]))
    write_bet(connection, user_id, bet_id, amount, "pending")
    reference = {"u": bet_id, "h": f"batch_{bet_id}"}
    for side, (user, change, balance) in zip("uh", balances, strict=True):
        connection.execute(
            "INSERT INTO transaction_ledger (id, user_id, amount, balance_after, ref_type, ref_id,"
            " created_at) VALUES (?, ?, ?, ?, 'BET', ?, ?)",
            (f"led_{bet_id}{side}", user, change, balance, reference[side], NOW),
        )


def write_bet(
    connection: apsw.Connection,
    user_id: str,
    bet_id: str,
    amount: int,
    status: str,
    key: str | None = "",
) -> None:
    connection.execute(
        "INSERT INTO bets (id, user_id, cell_id, amount, status, placed_at, idempotency_key)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (bet_id, user_id, f"cell of {bet_id}", amount, status, NOW, bet_id if key == "" else key),
    )


@pytest.fixture
def books(database: Path) -> Path:
    """Two users with a few movements and bets of every kind that moves money."""
    connection = open_writer(database)
    ann = open_account(connection, "ann", NOW, CREDIT)
    bob = open_account(connection, "bob", NOW, CREDIT)
    for user in (ann, bob):
        for number, amount in enumerate((100, 500)):
            stake(connection, user.user_id, f"bet_{user.address}{number}", amount)
    write_bet(connection, ann.user_id, "bet_unpaid", 5000, "insufficient_funds")
    write_bet(connection, ann.user_id, "bet_of_schema_1", 2500, "pending", key=None)
    seen = find(connection, "ann")
    assert seen
    for amount, kind in ((1250, "DEPOSIT"), (-50, "ADJUSTMENT"), (-1, "WITHDRAWAL")):
        seen = move(connection, seen, amount, kind)
    connection.execute("UPDATE bets SET status = 'lost', payout_amount = 0 WHERE id = 'bet_bob0'")
    connection.execute(
        "UPDATE users SET open_stake = open_stake - 100 WHERE id = ?", (bob.user_id,)
    )
    connection.execute("UPDATE bets SET status = 'confirmed' WHERE id = 'bet_bob1'")
    connection.close()
    return database


def move(connection: apsw.Connection, account: Account, amount: int, kind: str) -> Account:
    named = {"ref_type": kind, "ref_id": f"{kind.lower()}-1", "metadata": None, "now_ms": NOW}
    return post(connection, account=account, amount=amount, **named)


@pytest.fixture
def damaged(books: Path) -> Iterator[Callable[..., Report]]:
    """`damaged("UPDATE …")`: the report on the books after it."""

    def damage(*statements: str) -> Report:
        # Its own page cache, no triggers, no checks, no references: as a stray tool would.
        connection = apsw.Connection(str(books))
        connection.pragma("ignore_check_constraints", 1)
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
            assert connection.changes() > 0, statement
        for _, sql in triggers:
            connection.execute(sql)
        connection.close()
        return audit_of(books)

    return damage


def audit_of(path: Path) -> Report:
    connection = open_reader(path)
    try:
        return audit(connection)
    finally:
        assert not connection.in_transaction
        assert connection.pragma("temp_store") == 2
        connection.close()


def user_id(path: Path, address: str) -> str:
    connection = open_reader(path)
    account = find(connection, address)
    connection.close()
    assert account
    return account.user_id


def only(report: Report) -> str:
    """The one finding."""
    assert report.found == len(report.findings) == 1, report.findings
    assert not report.clean
    return report.findings[0]


def test_an_empty_database_is_clean(database: Path) -> None:
    report = audit_of(database)
    assert (report.clean, report.users, report.entries, report.bets) == (True, 0, 0, 0)


def test_whole_books_are_clean(books: Path) -> None:
    report = audit_of(books)
    assert report.findings == ()
    assert report.clean
    assert (report.users, report.entries, report.bets) == (2, 18, 6)
    assert report.seconds > 0


def test_bets_as_the_batch_writes_them_are_clean(database: Path) -> None:
    """Hundreds of them from a few users, some beyond their money, with deposits between."""
    draw = random.Random(5)
    placing = BetBooks(Limits(user=10**9, cell=10**9, column=10**9))
    connection = open_writer(database)
    users = [open_account(connection, f"wallet {n}", NOW, 20_000).user_id for n in range(5)]
    outcomes: list[object] = []
    batches = 0
    for batch in range(20):
        requests = [
            BetRequest(
                bet_id=ids.new_id("bet", NOW + batch),
                user_id=draw.choice(users),
                idempotency_key=f"{batch}:{number}",
                cell_id=f"btc-usd:{1_764_000_000 + draw.randrange(5) * 5}:5:{number}00:{number}01",
                amount=draw.choice((500, 2500, 5000)),
                min_reward_rate_bps=None,
                placed_at=NOW + batch,
            )
            for number in range(20)
        ]
        connection.execute("BEGIN IMMEDIATE")
        answers = placing.place(connection, requests)
        outcomes += answers
        batches += any(isinstance(answer, Placed) for answer in answers)
        seen = find(connection, draw.choice(users))
        assert seen
        named = {"ref_type": "DEPOSIT", "ref_id": f"d{batch}", "metadata": None, "now_ms": NOW}
        post(connection, account=seen, amount=1000, **named)
        connection.execute("COMMIT")
    connection.close()
    placed = sum(isinstance(outcome, Placed) for outcome in outcomes)
    unpaid = outcomes.count(Refusal.INSUFFICIENT_FUNDS)
    assert placed > 20
    assert unpaid > 20
    report = audit_of(database)
    assert report.findings == ()
    assert report.bets == placed + unpaid
    # Of the house, one for each batch that placed anything; then the credits and deposits.
    assert report.entries == placed + batches + 2 * (5 + 20)


def test_a_changed_balance(damaged: Callable[..., Report], books: Path) -> None:
    ann = user_id(books, "ann")
    report = damaged("UPDATE users SET balance = balance + 1 WHERE wallet_address = 'ann'")
    assert only(report) == f"{ann} has a balance of 100600 cents, but its entries add up to 100599"


def test_a_changed_balance_of_the_house(damaged: Callable[..., Report]) -> None:
    report = damaged("UPDATE users SET balance = 0 WHERE id = 'house'")
    assert only(report) == "house has a balance of 0 cents, but its entries add up to -199999"


def test_a_changed_amount(damaged: Callable[..., Report], books: Path) -> None:
    ann = user_id(books, "ann")
    report = damaged(
        "UPDATE transaction_ledger SET amount = amount + 7"
        " WHERE ref_id = 'deposit-1' AND user_id <> 'house'"
    )
    assert report.found == len(report.findings) == 5
    entry, journal = (finding for finding in report.findings if finding.startswith("entry led_"))
    assert report.findings == (
        "all entries together are 7 cents instead of 0",
        f"{ann} has a balance of 100599 cents, but its entries add up to 100606",
        entry,
        journal,
        f"DEPOSIT deposit-1 {NO_PAIR}: it has 2 in all, 1 of the house, together 7 cents",
    )
    said = f"u of {ann} says 100650 cents afterwards, but it was 99400 before and 1257 were moved"
    assert entry.endswith(said)
    assert journal.endswith(f"for DEPOSIT deposit-1 {NO_ZERO} 7 cents instead of 0")


def test_both_sides_of_a_pair_changed(damaged: Callable[..., Report]) -> None:
    """The sum is 0 still: the balances and their history tell."""
    report = damaged("UPDATE transaction_ledger SET amount = amount * 2 WHERE ref_id = 'deposit-1'")
    assert report.found == 4
    assert "all entries together" not in report.findings[0]


def test_a_changed_balance_after(damaged: Callable[..., Report], books: Path) -> None:
    bob = user_id(books, "bob")
    report = damaged(
        "UPDATE transaction_ledger SET balance_after = 3"
        " WHERE ref_id = 'bet_bob0' AND user_id <> 'house'"
    )
    said = "entry {} of {} says {} cents afterwards, but it was {} before and {} were moved"
    assert report.findings == (
        said.format("led_bet_bob0u", bob, 3, 100_000, -100),
        said.format("led_bet_bob1u", bob, 99_400, 3, -500),
    )


def test_a_deleted_entry(damaged: Callable[..., Report]) -> None:
    report = damaged("DELETE FROM transaction_ledger WHERE id = 'led_bet_ann0h'")
    assert "all entries together are -100 cents instead of 0" in report.findings
    # The users' side of it goes into the house's next entry, which does not cover it.
    assert any(f"{NO_ZERO} -100 cents instead of 0" in finding for finding in report.findings)


def test_a_deleted_pair(damaged: Callable[..., Report], books: Path) -> None:
    ann = user_id(books, "ann")
    report = damaged("DELETE FROM transaction_ledger WHERE ref_id = 'bet_ann1'")
    assert (
        f"bet bet_ann1 of {ann} is pending with a stake of 500 cents, but its entry moved nothing"
    ) in report.findings


def test_entries_in_another_order(damaged: Callable[..., Report]) -> None:
    report = damaged(
        "UPDATE transaction_ledger SET rowid = 1000 WHERE id = 'led_bet_ann0u'",
    )
    assert report.found == 3
    assert sum("cents afterwards" in finding for finding in report.findings) == 2
    assert sum(NO_ZERO in finding for finding in report.findings) == 1


def test_an_entry_added_on_one_side(damaged: Callable[..., Report], books: Path) -> None:
    ann = user_id(books, "ann")
    report = damaged(
        "INSERT INTO transaction_ledger VALUES ('x', 'house', -5, -200004, 'DEPOSIT', 'x', NULL, 1)",
        f"INSERT INTO transaction_ledger VALUES ('y', '{ann}', 5, 100604, 'DEPOSIT', 'y', NULL, 1)",
        f"UPDATE users SET balance = 100604 WHERE id = '{ann}'",
        "UPDATE users SET balance = -200004 WHERE id = 'house'",
    )
    assert report.findings == (
        f"entry x of the house for DEPOSIT x {NO_ZERO} -5 cents instead of 0",
        f"DEPOSIT x {NO_PAIR}: it has 1 in all, 1 of the house, together -5 cents",
        f"DEPOSIT y {NO_PAIR}: it has 1 in all, 0 of the house, together 5 cents",
    )


def test_a_bet_of_another_amount(damaged: Callable[..., Report], books: Path) -> None:
    bob = user_id(books, "bob")
    report = damaged("UPDATE bets SET amount = 90 WHERE id = 'bet_bob0'")
    assert only(report) == (
        f"bet bet_bob0 of {bob} is lost with a stake of 90 cents, but its entry moved -100 cents"
    )


def test_a_bet_of_another_user(damaged: Callable[..., Report], books: Path) -> None:
    ann, bob = user_id(books, "ann"), user_id(books, "bob")
    report = damaged(f"UPDATE bets SET user_id = '{ann}' WHERE id = 'bet_bob0'")
    assert report.findings == (
        f"bet bet_bob0 of {ann} is lost with a stake of 100 cents, but its entry moved nothing",
        f"entry led_bet_bob0u of {bob} moved -100 cents for bet bet_bob0, which is of {ann}",
    )


def test_a_bet_that_is_gone(damaged: Callable[..., Report], books: Path) -> None:
    bob = user_id(books, "bob")
    report = damaged("DELETE FROM bets WHERE id = 'bet_bob0'")
    assert only(report) == (
        f"entry led_bet_bob0u of {bob} moved -100 cents for bet bet_bob0, which is not there"
    )


def test_a_bet_that_nobody_paid(damaged: Callable[..., Report], books: Path) -> None:
    ann = user_id(books, "ann")
    report = damaged("UPDATE bets SET status = 'lost', payout_amount = 0 WHERE id = 'bet_unpaid'")
    assert only(report) == (
        f"bet bet_unpaid of {ann} is lost with a stake of 5000 cents, but its entry moved nothing"
    )


def test_a_bet_refused_for_lack_of_money_that_was_paid(
    damaged: Callable[..., Report], books: Path
) -> None:
    bob = user_id(books, "bob")
    report = damaged(
        "UPDATE bets SET status = 'insufficient_funds', payout_amount = NULL WHERE id = 'bet_bob0'"
    )
    assert only(report) == (
        f"bet bet_bob0 of {bob} is insufficient_funds with a stake of 100 cents,"
        " but its entry moved -100 cents"
    )


def test_a_wrong_open_stake(damaged: Callable[..., Report], books: Path) -> None:
    ann, bob = user_id(books, "ann"), user_id(books, "bob")
    report = damaged(
        "UPDATE users SET open_stake = 599 WHERE wallet_address = 'ann'",
        "UPDATE users SET open_liability = 7 WHERE wallet_address = 'bob'",
    )
    sums = (
        "has an open stake of {} and an open liability of {} cents,"
        " but its bets that count as open add up to"
    )
    assert set(report.findings) == {
        f"{ann} {sums.format(599, 0)} 600 and 0",
        f"{bob} {sums.format(500, 7)} 500 and 0",
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("status = 'void'", "void with a stake of 500 cents at no rate and a payout of nothing"),
        (
            "status = 'won', reward_rate_bps = 15000, payout_amount = 750",
            "won with a stake of 500 cents at 15000 basis points and a payout of 750 cents",
        ),
        ("status = 'lost'", "lost with a stake of 500 cents at no rate and a payout of nothing"),
        (
            "payout_amount = 1",
            "confirmed with a stake of 500 cents at no rate and a payout of 1 cents",
        ),
    ],
)
def test_a_result_that_was_not_paid_out(
    change: str, said: str, damaged: Callable[..., Report], books: Path
) -> None:
    bob = user_id(books, "bob")
    report = damaged(
        f"UPDATE bets SET {change} WHERE id = 'bet_bob1'",
        "UPDATE users SET open_stake = CASE (SELECT status FROM bets WHERE id = 'bet_bob1')"
        " WHEN 'confirmed' THEN 500 ELSE 0 END WHERE wallet_address = 'bob'",
    )
    assert only(report) == (
        f"bet bet_bob1 of {bob} is {said}, but it was paid nothing and given back nothing"
    )


@pytest.mark.parametrize("kind", ["PAYOUT", "REFUND"])
def test_money_for_a_bet_that_was_lost(
    kind: str, damaged: Callable[..., Report], books: Path
) -> None:
    bob = user_id(books, "bob")
    report = damaged(
        f"INSERT INTO transaction_ledger VALUES ('y', '{bob}', 5, 99405, '{kind}', 'bet_bob0',"
        " NULL, 1)",
        "INSERT INTO transaction_ledger"
        f" VALUES ('x', 'house', -5, -200004, '{kind}', 'batch_x', NULL, 1)",
        f"UPDATE users SET balance = 99405 WHERE id = '{bob}'",
        "UPDATE users SET balance = -200004 WHERE id = 'house'",
    )
    paid = ("5 cents", "nothing") if kind == "PAYOUT" else ("nothing", "5 cents")
    assert only(report) == (
        f"bet bet_bob0 of {bob} is lost with a stake of 100 cents at no rate and a payout of"
        f" 0 cents, but it was paid {paid[0]} and given back {paid[1]}"
    )


def test_a_debt(damaged: Callable[..., Report], books: Path) -> None:
    ann = user_id(books, "ann")
    report = damaged(
        "INSERT INTO transaction_ledger VALUES"
        f" ('y', '{ann}', -200000, -99401, 'WITHDRAWAL', 'x', NULL, 1)",
        "INSERT INTO transaction_ledger"
        " VALUES ('x', 'house', 200000, 1, 'WITHDRAWAL', 'x', NULL, 1)",
        f"UPDATE users SET balance = -99401 WHERE id = '{ann}'",
        "UPDATE users SET balance = 1 WHERE id = 'house'",
    )
    assert only(report) == f"{ann} owes: its balance is -99401 cents"


def test_a_reference_into_nothing(damaged: Callable[..., Report]) -> None:
    report = damaged("DELETE FROM users WHERE wallet_address = 'bob'")
    assert (
        "row 3 of transaction_ledger points to a row of users that is not there" in report.findings
    )


def test_a_ledger_that_can_be_changed(books: Path) -> None:
    connection = open_writer(books)
    connection.execute("DROP TRIGGER ledger_is_append_only_delete")
    connection.close()
    assert only(audit_of(books)) == (
        "the trigger ledger_is_append_only_delete is missing: entries can be changed"
    )


def test_amounts_beyond_all_numbers(damaged: Callable[..., Report]) -> None:
    report = damaged(
        f"UPDATE transaction_ledger SET amount = {2**62} WHERE ref_id IN ('bet_ann0', 'bet_bob0')"
    )
    assert "amounts are so large that they cannot be added up" in report.findings


def test_a_long_list_is_cut_but_counted(books: Path) -> None:
    connection = open_writer(books)
    for number in range(LISTED + 5):
        write_bet(connection, user_id(books, "ann"), f"bet_x{number}", 1, "lost")
    connection.execute("UPDATE bets SET payout_amount = 0 WHERE status = 'lost'")
    connection.close()
    report = audit_of(books)
    assert (len(report.findings), report.found) == (LISTED, LISTED + 5)
    lines = tap(books, "audit").stdout.splitlines()
    assert lines[:-2] == list(report.findings)
    assert lines[-2] == "and 5 more"


def test_a_database_that_knows_no_money_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    migrations.migrate(path, migrations.available()[:1])
    with pytest.raises(DatabaseError, match="has schema 1, the audit needs 4; run: tap migrate"):
        audit_of(path)
    other = tmp_path / "other.db"
    apsw.Connection(str(other)).execute("CREATE TABLE t (x)").close()
    with pytest.raises(DatabaseError, match="has schema 0"):
        audit_of(other)


def test_a_database_that_cannot_be_read_is_said_so(books: Path) -> None:
    plain = bytearray(books.read_bytes())
    connection = open_reader(books)
    root = connection.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'transaction_ledger'"
    ).fetchone()
    connection.close()
    assert root
    plain[4096 * (root[0] - 1) : 4096 * root[0]] = b"\x55" * 4096
    books.write_bytes(plain)
    with pytest.raises(DatabaseError, match="cannot be audited"):
        audit_of(books)


def test_a_callers_transaction_is_left_alone(books: Path) -> None:
    connection = open_reader(books)
    connection.execute("BEGIN")
    with pytest.raises(DatabaseError, match="within a transaction"):
        audit(connection)
    assert connection.in_transaction
    connection.close()


async def test_it_sees_one_moment_while_others_write_and_keeps_nobody_waiting(books: Path) -> None:
    batcher: Batcher[object, object] = Batcher(books, lambda connection, items: [])
    await batcher.open()
    stop = asyncio.Event()
    written = 0

    def deposit(number: int) -> Callable[[apsw.Connection], None]:
        def work(connection: apsw.Connection) -> None:
            seen = find(connection, "bob")
            assert seen
            named = {"ref_type": "DEPOSIT", "ref_id": f"n{number}", "metadata": None}
            post(connection, account=seen, amount=1, now_ms=NOW, **named)

        return work

    async def write() -> None:
        nonlocal written
        while not stop.is_set():
            await batcher.run(deposit(written))
            written += 1

    writer = asyncio.create_task(write())
    entries = []
    for _ in range(20):
        report = await asyncio.to_thread(audit_of, books)
        assert report.clean, report.findings
        entries.append(report.entries)
    # A reader that stays inside its moment keeps no writer waiting.
    reader = open_reader(books)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM users").fetchall()
    before = written
    while written < before + 20:
        await asyncio.sleep(0.01)
    reader.close()
    stop.set()
    await writer
    await batcher.close()
    assert entries == sorted(entries)
    assert entries[0] < entries[-1]
    assert audit_of(books).entries == 18 + 2 * written


# -- the backup ------------------------------------------------------------------------------


def test_damaged_books_are_not_backed_up_and_older_copies_stay(
    damaged: Callable[..., Report], books: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copies"
    good = back_up(books, "bets", folder, 1, datetime(2026, 1, 1, tzinfo=UTC))
    damaged("UPDATE users SET balance = balance + 1 WHERE wallet_address = 'ann'")
    with pytest.raises(
        BackupError, match=r"failed its audit \(findings: 1\), the first: user_.*tap audit"
    ):
        back_up(books, "bets", folder, 1, datetime(2026, 1, 2, tzinfo=UTC))
    assert list(folder.iterdir()) == [good.path]


# -- tap audit ---------------------------------------------------------------------------------


def tap(database: Path, *words: str, **streams: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python("-m", "tap_trading.cli.main", *words),
        env=process_environment({"DB_PATH": str(database)}),
        capture_output=True,
        text=True,
        check=False,
    )


def metrics(path: Path) -> dict[str, float]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.split() for line in lines)}


def test_tap_audit_sums_clean_books_up(books: Path, tmp_path: Path) -> None:
    file = tmp_path / "audit.prom"
    done = tap(books, "audit", "--metrics", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{books} is clean: 2 users, 18 entries, 6 bets, in 0.")
    found = metrics(file)
    assert abs(found.pop("tap_audit_timestamp_seconds") - time.time()) < 60
    assert 0 < found.pop("tap_audit_seconds") < 5
    assert found == {
        "tap_audit_clean": 1,
        "tap_audit_findings": 0,
        "tap_audit_users": 2,
        "tap_audit_entries": 18,
    }
    assert file.stat().st_mode & 0o777 == 0o644
    assert {path.name for path in tmp_path.iterdir() if "audit" in path.name} == {"audit.prom"}


async def test_the_api_shows_the_last_audit(
    books: Path, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    async with serve(api.build, TAP_METRICS_DIR=str(tmp_path)) as client:
        before = await (await client.get("/metrics")).text()
        file = tmp_path / "audit.prom"
        done = await asyncio.to_thread(tap, books, "audit", "--metrics", str(file))
        after = await (await client.get("/metrics")).text()
    assert done.returncode == 0
    assert "tap_audit_" not in before
    assert "\ntap_audit_clean 1.0\n" in after
    assert "\ntap_audit_entries 18.0\n" in after


def test_tap_audit_lists_what_is_wrong(
    damaged: Callable[..., Report], books: Path, tmp_path: Path
) -> None:
    file = tmp_path / "audit.prom"
    damaged(*["UPDATE users SET open_stake = open_stake + 1 WHERE id <> 'house'"])
    done = tap(books, "audit", "--metrics", str(file))
    assert (done.returncode, done.stderr) == (1, "")
    first, second, last = done.stdout.splitlines()
    assert "has an open stake of 601 and an open liability of 0 cents" in first + second
    assert last.startswith(f"{books} is NOT clean (findings: 2): 2 users, 18 entries")
    assert metrics(file)["tap_audit_clean"] == 0
    assert metrics(file)["tap_audit_findings"] == 2


def test_tap_audit_takes_an_unpacked_backup(books: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    connection = open_writer(books)
    connection.execute("VACUUM INTO ?", (str(copy),))
    connection.execute("DROP TRIGGER ledger_is_append_only_update")
    connection.close()
    before = copy.read_bytes()
    copy.chmod(0o400)
    assert tap(books, "audit", "--database", str(copy)).returncode == 0
    assert copy.read_bytes() == before
    assert tap(books, "audit").returncode == 1
    missing = tap(books, "audit", "--database", str(tmp_path / "no.db"))
    assert missing.returncode == 1
    assert missing.stderr == f"tap: there is no file {tmp_path / 'no.db'}\n"


def test_tap_audit_says_when_its_metrics_cannot_be_written(books: Path, tmp_path: Path) -> None:
    done = tap(books, "audit", "--metrics", str(tmp_path / "no" / "audit.prom"))
    assert done.returncode == 1
    assert "is clean" in done.stdout
    assert done.stderr.startswith("tap: the metrics were not written: ")
    folder = tmp_path / "audit.prom"
    folder.mkdir()
    assert tap(books, "audit", "--metrics", str(folder)).returncode == 1
    assert not list(tmp_path.glob(".audit-*"))


def test_the_journal_gets_a_line_of_priority_err_for_each_finding(
    damaged: Callable[..., Report], books: Path
) -> None:
    """As systemd starts it: standard output is a socket, and JOURNAL_STREAM names it."""
    damaged("UPDATE users SET balance = balance + 1 WHERE wallet_address = 'ann'")
    ours, journal = socket.socketpair()
    stat = os.fstat(journal.fileno())
    with ours, journal:
        code = subprocess.call(
            python("-m", "tap_trading.cli.main", "audit"),
            env=process_environment(
                {"DB_PATH": str(books), "JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"}
            ),
            stdout=journal,
        )
        journal.shutdown(socket.SHUT_RDWR)
        lines = ours.makefile().read().splitlines()
    assert code == 1
    assert len(lines) == 2
    assert all(line.startswith("<3>") for line in lines), json.dumps(lines)
