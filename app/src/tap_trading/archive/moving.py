"""The end of a week in the books: from one commit on they begin behind it, and what was copied
goes bit by bit.

Every transaction is short, and the writer's lock is held for one at a time, so bets are written
in between. The books are whole after each.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

import apsw

from tap_trading.archive.checking import Checked
from tap_trading.archive.errors import ArchiveError
from tap_trading.archive.plan import Cut
from tap_trading.archive.weeks import Week
from tap_trading.base.db import DatabaseError, WriterLock, open_reader, open_writer
from tap_trading.ledger.journal import as_json

#: So many rows are written or deleted in a transaction: a few ms.
_AT_ONCE = 200
#: So many pages are given back to the file system at once; fewer are not worth it.
_PAGES = 100
#: After each transaction so many times as long as it took is left to others.
_PAUSE = 1.5

# What the archive knows and the books have to.
_BALANCES = "SELECT id, balance FROM users ORDER BY id"
_CARRIED = "SELECT bet_id, user_id, amount FROM carried_bets WHERE week = ? ORDER BY bet_id"
_REFERENCES = """
SELECT DISTINCT ref_type, ref_id FROM transaction_ledger
WHERE ref_type NOT IN ('BET', 'PAYOUT', 'REFUND')
"""
_WRITE_BALANCES = """
INSERT OR REPLACE INTO opening_balances (week, user_id, balance)
SELECT ?1, e.value ->> 0, e.value ->> 1 FROM json_each(?2) e
"""
_WRITE_CARRIED = """
INSERT OR REPLACE INTO carried_bets (week, bet_id, user_id, amount)
SELECT ?1, e.value ->> 0, e.value ->> 1, e.value ->> 2 FROM json_each(?2) e
"""
_WRITE_REFERENCES = """
INSERT OR IGNORE INTO archived_references (ref_type, ref_id)
SELECT e.value ->> 0, e.value ->> 1 FROM json_each(?2) e WHERE ?1 <> ''
"""
_WRITE_ARCHIVE = """
INSERT INTO archives (week, begins_at, ends_at, bets, entries, size, sha256, archived_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_WRITE_HORIZON = """
UPDATE horizon SET week = :week, bets = :bets, entries = :entries
WHERE week < :week AND bets <= :bets AND entries < :entries
"""

# What is behind the horizon: the keys of a piece after a row, and their deletion.
_PAST_ENTRIES = """
SELECT rowid FROM transaction_ledger
WHERE rowid > ? AND rowid <= (SELECT entries FROM horizon) ORDER BY rowid LIMIT ?
"""
_PAST_BETS = """
SELECT rowid FROM bets b
WHERE rowid > ? AND rowid <= (SELECT bets FROM horizon)
  AND status NOT IN ('pending', 'confirmed')
  AND NOT EXISTS (
    SELECT 1 FROM carried_bets c WHERE c.week = (SELECT week FROM horizon) AND c.bet_id = b.id
  )
ORDER BY rowid LIMIT ?
"""
_PAST_PRICINGS = "SELECT bar FROM pricings WHERE bar > ? AND bar < {needed} ORDER BY bar LIMIT ?"
_PAST_SETTLEMENTS = """
SELECT start FROM settlements
WHERE start > ? AND start * 1000 < {needed} AND released IS NULL ORDER BY start LIMIT ?
"""
_DELETE_ENTRIES = "DELETE FROM transaction_ledger WHERE rowid IN (SELECT value FROM json_each(?))"
_DELETE_BETS = "DELETE FROM bets WHERE rowid IN (SELECT value FROM json_each(?))"
_DELETE_PRICINGS = "DELETE FROM pricings WHERE bar IN (SELECT value FROM json_each(?))"
_DELETE_SETTLEMENTS = (
    "DELETE FROM settlements WHERE start IN (SELECT value FROM json_each(?)) AND released IS NULL"
)
_DELETE_OLD = (
    """
    DELETE FROM carried_bets WHERE (week, bet_id) IN (
      SELECT week, bet_id FROM carried_bets WHERE week < (SELECT week FROM horizon) LIMIT ?
    )
    """,
    """
    DELETE FROM opening_balances WHERE (week, user_id) IN (
      SELECT week, user_id FROM opening_balances WHERE week < (SELECT week FROM horizon) LIMIT ?
    )
    """,
    # Of books from before schema 2; bets know their keys themselves since.
    """
    DELETE FROM idempotency_keys WHERE (user_id, key) IN (
      SELECT user_id, key FROM idempotency_keys WHERE bet_id NOT IN (SELECT id FROM bets) LIMIT ?
    )
    """,
)
# What the bets of the books were decided by is not older than the first of them.
_NEEDED_SINCE = """
SELECT min(placed_at) FROM bets
WHERE rowid <= coalesce(
  (SELECT rowid FROM bets WHERE rowid > (SELECT bets FROM horizon) ORDER BY rowid LIMIT 1),
  (SELECT bets FROM horizon)
)
"""


class Mover:
    """Moves the beginning of the books when it is its turn to write."""

    def __init__(self, books: Path, pause: Callable[[float], None] = time.sleep) -> None:
        """Raises DatabaseError."""
        self._books = books
        self._pause = pause
        self._lock = WriterLock(books)
        with self._lock.held():
            self._connection = open_writer(books)
        # The audit checks them; here a pricing's deletion would read every bet for it.
        self._connection.pragma("foreign_keys", 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock.held():  # closing may checkpoint
            self._connection.close()
        self._lock.close()

    def begin_behind(self, cut: Cut, archive: Path, checked: Checked, now: int) -> None:
        """Let the books begin behind the week that `archive` has. Raises ArchiveError."""
        week = cut.week.name
        try:
            with closing(open_reader(archive)) as source:
                for statement, rows in (
                    (_WRITE_BALANCES, source.execute(_BALANCES).fetchall()),
                    (_WRITE_CARRIED, source.execute(_CARRIED, (week,)).fetchall()),
                    (_WRITE_REFERENCES, source.execute(_REFERENCES).fetchall()),
                ):
                    for number in range(0, len(rows), _AT_ONCE):
                        piece = as_json(rows[number : number + _AT_ONCE])
                        with self._transaction():
                            self._connection.execute(statement, (week, piece))
            with self._transaction():
                self._connection.execute(
                    _WRITE_ARCHIVE,
                    (
                        *(week, cut.week.begins_at, cut.week.ends_at, checked.bets),
                        *(checked.entries, checked.size, checked.sha256, now),
                    ),
                )
                self._connection.execute(_WRITE_HORIZON, cut.parameters)
                if not self._connection.changes():
                    raise ArchiveError(f"{week}: the books begin behind another week by now")
        except (apsw.Error, DatabaseError) as error:
            raise ArchiveError(f"{self._books}: {error}") from error

    def clear(self) -> int:
        """Delete what is behind the horizon, and give its room back; how many rows there were.

        Nothing when that was done before. Raises ArchiveError.
        """
        try:
            deleted = self._delete(_PAST_ENTRIES, _DELETE_ENTRIES)
            deleted += self._delete(_PAST_BETS, _DELETE_BETS)
            needed = self._needed_since()
            for past, delete in (
                (_PAST_PRICINGS, _DELETE_PRICINGS),
                (_PAST_SETTLEMENTS, _DELETE_SETTLEMENTS),
            ):
                deleted += self._delete(past.format(needed=needed), delete)
            for statement in _DELETE_OLD:
                while self._delete_some(statement):
                    pass
            self._shrink()
        except (apsw.Error, DatabaseError) as error:
            raise ArchiveError(f"{self._books}: {error}") from error
        return deleted

    def mark_stored(self, week: Week, now: int) -> None:
        """An archive is in cold storage, proven at `now` (Unix ms)."""
        self._mark("UPDATE archives SET stored_at = ? WHERE week = ?", (now, week.name))

    def mark_removed(self, week: Week) -> None:
        """An archive is in cold storage alone."""
        self._mark(
            "UPDATE archives SET is_local = 0 WHERE week = ? AND stored_at IS NOT NULL",
            (week.name,),
        )

    def mark_missing(self, week: Week) -> None:
        """An archive is not on this machine; whoever says so has looked for it elsewhere."""
        self._mark("UPDATE archives SET is_local = 0 WHERE week = ?", (week.name,))

    def _mark(self, statement: str, parameters: tuple[int | str, ...]) -> None:
        try:
            with self._transaction():
                self._connection.execute(statement, parameters)
                if not self._connection.changes():
                    raise ArchiveError(f"{self._books} does not know this archive: {parameters}")
        except (apsw.Error, DatabaseError) as error:
            raise ArchiveError(f"{self._books}: {error}") from error

    def _needed_since(self) -> int:
        week = self._connection.execute("SELECT week FROM horizon").get
        if not week:
            return 0
        first = self._connection.execute(_NEEDED_SINCE).get
        ends_at = Week.parse(week).ends_at
        return ends_at if first is None else min(first, ends_at)

    def _delete(self, past: str, delete: str) -> int:
        after = deleted = 0
        while True:
            rows = [key for (key,) in self._connection.execute(past, (after, _AT_ONCE))]
            if not rows:
                return deleted
            with self._transaction():
                self._connection.execute(delete, (as_json(rows),))
            after, deleted = rows[-1], deleted + len(rows)
            self._shrink()

    def _delete_some(self, delete: str) -> int:
        with self._transaction():
            self._connection.execute(delete, (_AT_ONCE,))
            return self._connection.changes()

    def _shrink(self) -> None:
        """Give free pages back, so that they never become many."""
        while self._connection.pragma("freelist_count") >= _PAGES:
            with self._turn():
                self._connection.execute("PRAGMA incremental_vacuum(100)").fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._turn():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._lock.held():
            began = time.monotonic()
            yield
            took = time.monotonic() - began
        self._pause(took * _PAUSE)
