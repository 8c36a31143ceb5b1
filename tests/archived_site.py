"""A market over the end of a week, with a bet in every state."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from settled_market import settled_market
from tap_trading.archive.archiver import Archived, archive
from tap_trading.archive.history import History
from tap_trading.archive.shelf import Shelf
from tap_trading.archive.weeks import Week
from tap_trading.base.db import open_reader, open_writer
from tap_trading.ledger import queries
from tap_trading.ledger.queries import Page

#: The week that ends in the middle of the market.
WEEK = Week(2025, 48)
HOUR_MS = 3600 * 1000
#: When it may be archived.
LATER = WEEK.ends_at + 2 * HOUR_MS
_BEFORE_S, _MARKET_S = 300, 600


@dataclass(frozen=True)
class Site:
    """Books, prices and archives of one machine."""

    books: Path
    prices: Path
    shelf: Shelf

    def archive(self, now: int = LATER) -> list[Archived]:
        """Archive what is over."""
        return list(archive(self.books, self.prices, self.shelf, now))

    @contextmanager
    def reading(self) -> Iterator[apsw.Connection]:
        """The books, for reading."""
        with closing(open_reader(self.books)) as connection:
            yield connection

    @contextmanager
    def history(self) -> Iterator[History]:
        """The books and the archives."""
        with self.reading() as connection:
            yield History(connection, self.shelf)

    def save(self) -> Path:
        """A copy of the books as they are, to `go_back` to."""
        saved = self.books.with_name("saved.db")
        shutil.copy(self.books, saved)
        return saved

    def go_back(self, saved: Path) -> None:
        """Restore the books, as from an older backup."""
        for suffix in ("", "-wal", "-shm"):
            self.books.with_name(self.books.name + suffix).unlink(missing_ok=True)
        shutil.copy(saved, self.books)

    def users(self) -> list[str]:
        """All of them but the house."""
        with self.reading() as books:
            return [user for (user,) in books.execute("SELECT id FROM users WHERE id <> 'house'")]

    def told(self, every: int = 1) -> dict[str, Any]:
        """What users are told, page by page: their balances, bets and entries."""
        found = {}
        with self.history() as history:
            for user in self.users()[::every]:
                found[user] = (
                    queries.balance(history.books, user),
                    pages(lambda cursor, user=user: history.bets(user, cursor=cursor, limit=7)),
                    pages(lambda cursor, user=user: history.entries(user, cursor=cursor, limit=7)),
                    pages(lambda c, user=user: history.bets(user, status="won", cursor=c, limit=3)),
                )
        return found


def pages(ask: Callable[[Any], Page[Any]]) -> list[list[Any]]:
    """All pages of a list."""
    found, cursor = [], None
    while True:
        page = ask(cursor)
        found.append(page.items)
        cursor = page.next_cursor
        if cursor is None:
            return found


def rows(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """What a database answers."""
    with closing(open_reader(path)) as connection:
        return connection.execute(statement).fetchall()


def totals(*paths: Path) -> dict[str, int]:
    """What the entries of these files are together, in cents, by user."""
    found: Counter[str] = Counter()
    for path in paths:
        found.update(
            dict(rows(path, "SELECT user_id, sum(amount) FROM transaction_ledger GROUP BY user_id"))
        )
    return dict(found)


async def site_with_a_closed_week(books: Path, prices: Path, folder: Path) -> Site:
    """A market of ten minutes, settled, in whose middle WEEK ended."""
    begin = WEEK.ends_at - _BEFORE_S * 1000
    await settled_market(books, prices, _MARKET_S, begin=begin, often=0.05)
    return Site(books, prices, Shelf(folder))


def many_weeks(site: Site, count: int) -> list[Path]:
    """Archive the week, and copies of it as if there had been `count` of them."""
    [made] = site.archive()
    paths, week = [made.path], WEEK
    connection = open_writer(site.books)
    for _ in range(count - 1):
        week = week.next
        path = site.shelf.path(week)
        shutil.copy(made.path, path)
        paths.append(path)
        connection.execute(
            "INSERT INTO archives SELECT ?, begins_at, ends_at, bets, entries, size, sha256,"
            " archived_at, stored_at, is_local FROM archives WHERE week = ?",
            (week.name, WEEK.name),
        )
    connection.close()
    return paths
