"""Reading the books in pages: in order, complete, without repeats, and through an index."""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from tap_trading.base.db import open_reader, open_writer
from tap_trading.ledger import queries
from tap_trading.ledger.ids import new_id
from tap_trading.ledger.queries import Bet, Cursor, Entry, Page

NOW = 1_764_000_002_000
ADA, BOB = "user_ada", "user_bob"


@pytest.fixture
def writer(database: Path) -> Iterator[apsw.Connection]:
    connection = open_writer(database)
    for user in (ADA, BOB):
        connection.execute(
            "INSERT INTO users (id, wallet_address, balance, created_at, updated_at)"
            " VALUES (?1, ?1, 700, 0, 0)",
            (user,),
        )
    yield connection
    connection.close()


@pytest.fixture
def reader(database: Path, writer: apsw.Connection) -> Iterator[apsw.Connection]:
    connection = open_reader(database)
    yield connection
    connection.close()


class Books:
    """Writes bets and entries, and knows in which order they are to be read."""

    def __init__(self, writer: apsw.Connection) -> None:
        self._writer = writer
        self._count = 0
        self.bets: list[str] = []  # Ada's, oldest first
        self.entries: list[str] = []

    def add(self, time: int, *, user: str = ADA, status: str = "lost", key: bool = True) -> str:
        """A bet and its entry, if it has one; returns the bet's id. Those of schema 1 had
        no key and no entry.
        """
        self._count += 1
        bet_id = new_id("bet", time)
        self._writer.execute(
            "INSERT INTO bets (id, user_id, cell_id, amount, status, placed_at, idempotency_key)"
            " VALUES (?, ?, ?, 100, ?, ?, ?)",
            (bet_id, user, f"btc-usd:{self._count}:5:1:2", status, time, bet_id if key else None),
        )
        if user == ADA:
            self.bets.append(bet_id)
        if key and status != "insufficient_funds":
            self._enter(f"led_{bet_id.removeprefix('bet_')}u", user, -100, "BET", bet_id, time)
        return bet_id

    def move(self, time: int) -> None:
        """A deposit of Ada's."""
        self._enter(f"{new_id('led', time)}u", ADA, 100, "DEPOSIT", new_id("ops", time), time)

    def _enter(
        self, entry_id: str, user: str, amount: int, kind: str, ref_id: str, time: int
    ) -> None:
        self._writer.execute(
            "INSERT INTO transaction_ledger"
            " (id, user_id, amount, balance_after, ref_type, ref_id, created_at)"
            " VALUES (?, ?, ?, 0, ?, ?, ?)",
            (entry_id, user, amount, kind, ref_id, time),
        )
        if user == ADA:
            self.entries.append(entry_id)


@pytest.fixture
def books(writer: apsw.Connection) -> Books:
    return Books(writer)


def ids(page: Page[Bet] | Page[Entry]) -> list[str]:
    return [item.bet_id if isinstance(item, Bet) else item.entry_id for item in page.items]


@pytest.mark.parametrize("limit", [1, 2, 7, 50, 100])
def test_pages_are_complete_and_in_order_whatever_is_written_meanwhile(
    books: Books, reader: apsw.Connection, limit: int
) -> None:
    chance = random.Random(limit)
    time = NOW
    for _ in range(211):  # many of them share a millisecond
        time += chance.choice([0, 0, 0, 1, 5])
        kind = chance.randrange(8)
        if kind == 0:
            books.move(time)
        else:
            books.add(time, status=("lost", "insufficient_funds")[kind == 1], key=kind != 2)
        if chance.random() < 0.5:
            books.add(time, user=BOB)
    bets, entries = books.bets[::-1], books.entries[::-1]

    bet_page = queries.bets(reader, ADA, limit=limit)
    entry_page = queries.entries(reader, ADA, limit=limit)
    found_bets, found_entries = ids(bet_page), ids(entry_page)
    while bet_page.next_cursor:
        time += chance.choice([0, 1])
        books.add(time)
        bet_page = queries.bets(reader, ADA, cursor=bet_page.next_cursor, limit=limit)
        found_bets += ids(bet_page)
        assert len(found_bets) <= len(bets)
    while entry_page.next_cursor:
        books.add(time)
        entry_page = queries.entries(reader, ADA, cursor=entry_page.next_cursor, limit=limit)
        found_entries += ids(entry_page)
        assert len(found_entries) <= len(entries)
    assert found_bets == bets
    assert found_entries == entries


def test_a_full_last_page_has_no_cursor(books: Books, reader: apsw.Connection) -> None:
    assert queries.bets(reader, ADA) == Page([], None)
    assert queries.entries(reader, ADA) == Page([], None)
    for i in range(3):
        books.add(NOW + i)
    assert queries.bets(reader, ADA, limit=3).next_cursor is None
    assert queries.entries(reader, ADA, limit=3).next_cursor is None
    assert queries.bets(reader, ADA, limit=2).next_cursor == Cursor(NOW + 1, books.bets[1])
    assert queries.entries(reader, ADA, limit=2).next_cursor == Cursor(NOW + 1, books.entries[1])


def test_a_status_selects_and_its_pages_survive_a_change(
    books: Books, reader: apsw.Connection, writer: apsw.Connection
) -> None:
    won = [books.add(NOW + i // 3, status="won" if i % 2 else "lost") for i in range(20)][1::2]
    page = queries.bets(reader, ADA, status="won", limit=4)
    assert ids(page) == won[:-5:-1]
    assert {bet.status for bet in page.items} == {"won"}
    # The item that the cursor stands behind may be something else by now.
    writer.execute("UPDATE bets SET status = 'void' WHERE id = ?", (ids(page)[-1],))
    rest = queries.bets(reader, ADA, status="won", cursor=page.next_cursor, limit=100)
    assert ids(rest) == won[-5::-1]
    assert queries.bets(reader, ADA, status="confirmed").items == []


def test_a_cursor_of_nothing_known_still_says_when(books: Books, reader: apsw.Connection) -> None:
    first, stranger, second = books.add(NOW), books.add(NOW, user=BOB), books.add(NOW + 1)
    gone = new_id("bet", NOW + 1)
    assert ids(queries.bets(reader, ADA, cursor=Cursor(NOW + 1, gone))) == [second, first]
    assert ids(queries.bets(reader, ADA, cursor=Cursor(NOW, stranger))) == [first]
    assert ids(queries.bets(reader, ADA, cursor=Cursor(NOW, first))) == []


def test_one_bet_is_its_owners_only(books: Books, reader: apsw.Connection) -> None:
    mine, theirs = books.add(NOW), books.add(NOW, user=BOB)
    found = queries.bet(reader, ADA, mine)
    assert found == Bet(mine, "btc-usd:1:5:1:2", 100, "lost", None, None, NOW, None)
    assert queries.bet(reader, ADA, theirs) is None
    assert queries.bet(reader, ADA, "bet_none") is None


def test_the_balance(reader: apsw.Connection) -> None:
    assert queries.balance(reader, ADA) == 700
    assert queries.balance(reader, "nobody") is None


@pytest.mark.parametrize("analyzed", [False, True])
def test_every_question_goes_through_an_index(
    books: Books, writer: apsw.Connection, reader: apsw.Connection, *, analyzed: bool
) -> None:
    for i in range(200):
        books.add(NOW + i // 2, user=(ADA, BOB)[i % 2])
    if analyzed:
        writer.execute("ANALYZE")
    plans = _plans(reader)
    cursor = Cursor(NOW + 50, books.bets[25])
    queries.bets(reader, ADA)
    queries.bets(reader, ADA, status="won", cursor=cursor)
    queries.entries(reader, ADA, cursor=cursor)
    queries.bet(reader, ADA, books.bets[0])
    queries.balance(reader, ADA)
    searched = [[step for step in plan if step.startswith("SEARCH")] for plan in plans]
    assert not [
        step for plan in plans for step in plan if re.match(r"SCAN (?!\(subquery|found)", step)
    ]
    own = "SEARCH bets USING COVERING INDEX idx_bets_user (user_id=?)"
    begin = "SEARCH bets USING COVERING INDEX sqlite_autoindex_bets_1 (id>?)"
    row = "USING INTEGER PRIMARY KEY (rowid=?)"
    assert searched == [
        [own, f"SEARCH bets {row}"],
        [begin],
        [own, f"SEARCH bets {row}"],
        [
            own,
            begin,
            f"SEARCH b {row}",
            (
                "SEARCH l USING COVERING INDEX idx_ledger_ref"
                " (ref_type=? AND ref_id=? AND user_id=?)"
            ),
            f"SEARCH l {row}",
            (
                "SEARCH transaction_ledger USING INDEX idx_ledger_user_time"
                " (user_id=? AND created_at<?)"
            ),
            f"SEARCH l {row}",
        ],
        ["SEARCH bets USING INDEX sqlite_autoindex_bets_1 (id=?)"],
        ["SEARCH users USING INDEX sqlite_autoindex_users_1 (id=?)"],
    ]


def _plans(connection: apsw.Connection) -> list[list[str]]:
    """SQLite's plan of every statement that is executed from now on."""
    plans: list[list[str]] = []

    def explain(cursor: apsw.Cursor, statement: str, bindings: object) -> bool:
        if not statement.startswith("EXPLAIN"):
            asked = connection.execute(f"EXPLAIN QUERY PLAN {statement}", bindings)
            plans.append([str(row[3]) for row in asked])
        return True

    connection.exec_trace = explain
    return plans
