"""Reading the books in pages: in order, complete, without repeats, and through an index."""

import random
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

    def add(self, time: int, *, user: str = ADA, status: str = "lost") -> str:
        """A bet and its entry; returns the bet's id."""
        self._count += 1
        bet_id, entry_id = new_id("bet", time), new_id("led", time) + "u"
        self._writer.execute(
            "INSERT INTO bets (id, user_id, cell_id, amount, status, placed_at)"
            " VALUES (?, ?, ?, 100, ?, ?)",
            (bet_id, user, f"btc-usd:{self._count}:5:1:2", status, time),
        )
        self._writer.execute(
            "INSERT INTO transaction_ledger"
            " (id, user_id, amount, balance_after, ref_type, ref_id, created_at)"
            " VALUES (?, ?, -100, 0, 'BET', ?, ?)",
            (entry_id, user, bet_id, time),
        )
        if user == ADA:
            self.bets.append(bet_id)
            self.entries.append(entry_id)
        return bet_id


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
        books.add(time)
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
    first, second = books.add(NOW), books.add(NOW + 1)
    stranger = books.add(NOW, user=BOB)
    assert ids(queries.bets(reader, ADA, cursor=Cursor(NOW + 1, "bet_gone"))) == [first]
    assert ids(queries.bets(reader, ADA, cursor=Cursor(NOW + 2, stranger))) == [second, first]
    assert ids(queries.bets(reader, ADA, cursor=Cursor(NOW, stranger))) == []


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
    by_time = "SEARCH transaction_ledger USING INDEX idx_ledger_user_time"
    listing = [
        "SEARCH bets USING INDEX idx_bets_user (user_id=? AND placed_at<?)",
        "SCALAR SUBQUERY 1",
        "SEARCH bets USING INDEX sqlite_autoindex_bets_1 (id=?)",
    ]
    assert plans == [
        listing,
        listing,
        [
            f"{by_time} (user_id=? AND created_at<?)",
            "SCALAR SUBQUERY 1",
            "SEARCH transaction_ledger USING INDEX sqlite_autoindex_transaction_ledger_1 (id=?)",
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
