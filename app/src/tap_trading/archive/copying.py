"""An archive in the making: a copy of what belongs to a week, piece by piece.

A piece is a short read of the books, so that nobody waits and no log grows meanwhile; what is
copied never changes any more. The copy may be cut off anywhere: the next run goes on where the
last one ended.
"""

import contextlib
from pathlib import Path

import apsw

from tap_trading.archive.errors import ArchiveError
from tap_trading.archive.plan import BELONGS, Cut
from tap_trading.base.db import DatabaseError, check_sqlite_version
from tap_trading.ledger import migrations

#: So many rows are copied at once: some tens of ms.
_AT_ONCE = 20_000
#: So many columns' bars.
_COLUMNS_AT_ONCE = 500

#: Of no use in a file that is only read; the others are made when the rows are there.
_INDEXES = ("idx_bets_pending", "idx_bets_one_per_cell", "idx_bets_user",
            "idx_ledger_user_time", "idx_ledger_ref")  # fmt: skip
_READERS_INDEXES = """
CREATE UNIQUE INDEX IF NOT EXISTS idx_bets_user ON bets (user_id, idempotency_key);
CREATE UNIQUE INDEX IF NOT EXISTS idx_ledger_ref ON transaction_ledger (ref_type, ref_id, user_id);
CREATE INDEX IF NOT EXISTS idx_ledger_user ON transaction_ledger (user_id, id);
"""
#: Tables of the prices that a bet can be verified with.
_OF_PRICES = ("bars", "progress")
_BELONGS = BELONGS.format(schema="books")
_ATTACH = "ATTACH ? AS {name}"
_DROP_INDEX = "DROP INDEX IF EXISTS main.{index}"
_TABLE = "SELECT sql FROM prices.sqlite_master WHERE type = 'table' AND name = ?"
_LAST = "SELECT coalesce(max(rowid), 0) FROM main.{table}"
_PIECE = """
SELECT max(rowid) FROM (SELECT rowid FROM books.{table} WHERE rowid > ? ORDER BY rowid LIMIT ?)
"""
_ENTRIES = """
INSERT INTO main.transaction_ledger (rowid, {columns})
SELECT rowid, {columns} FROM books.transaction_ledger
WHERE rowid > :after AND rowid <= :last
"""
_BETS = """
INSERT INTO main.bets (rowid, {columns})
SELECT rowid, {columns} FROM books.bets b
WHERE b.rowid > :after AND b.rowid <= :last AND {belongs}
"""
# Bets from before the horizon that go now: their stakes are in an older archive.
_CARRIED_IN = """
INSERT OR IGNORE INTO main.carried_bets
SELECT c.* FROM books.carried_bets c JOIN books.bets b ON b.id = c.bet_id
WHERE c.week = (SELECT week FROM books.horizon) AND {belongs}
"""
#: Bets that stay, with what their stakes' entries moved. A bet of schema 1 has none.
CARRIED_OUT = """
INSERT OR IGNORE INTO {target}.carried_bets (week, bet_id, user_id, amount)
SELECT :week, b.id, b.user_id, -b.amount FROM {schema}.bets b
WHERE b.rowid <= :bets AND b.idempotency_key IS NOT NULL AND NOT ({belongs})
"""
_DECIDED_BY = """
INSERT OR IGNORE INTO main.settlements
SELECT * FROM books.settlements WHERE (start + width) * 1000 <= :ends_at;
INSERT OR IGNORE INTO main.pricings
SELECT * FROM books.pricings WHERE bar IN (SELECT pricing FROM main.bets);
INSERT OR IGNORE INTO main.idempotency_keys
SELECT * FROM books.idempotency_keys WHERE bet_id IN (SELECT id FROM main.bets);
"""
_BARS = """
INSERT OR IGNORE INTO main.bars SELECT b.*
FROM main.settlements s JOIN prices.bars b
  ON b.t >= s.start * 1000 AND b.t < (s.start + s.width) * 1000
WHERE s.start BETWEEN ? AND ?
"""
_PRICED_BARS = """
INSERT OR IGNORE INTO main.bars SELECT b.* FROM main.pricings p JOIN prices.bars b
  ON b.t IN (p.bar, (SELECT max(t) FROM prices.bars WHERE t < p.bar))
WHERE p.bar BETWEEN ? AND ?
"""
_ACCOUNTS = """
INSERT OR IGNORE INTO main.users SELECT * FROM books.users;
INSERT OR IGNORE INTO main.opening_balances
SELECT * FROM books.opening_balances WHERE week = (SELECT week FROM books.horizon);
UPDATE users SET open_stake = 0, open_liability = 0, balance = coalesce(
  (SELECT o.balance FROM opening_balances o WHERE o.user_id = users.id), 0);
UPDATE users SET balance = balance + e.total
FROM (SELECT user_id, sum(amount) AS total FROM transaction_ledger GROUP BY user_id) e
WHERE users.id = e.user_id;
"""


def copy(target: Path, cut: Cut, books: Path, prices: Path) -> None:
    """Make `target` a copy of what of the books belongs to the week of `cut`, with the bars that
    its bets were decided by; or go on making it.

    Raises ArchiveError.
    """
    try:
        check_sqlite_version(apsw.sqlite_lib_version())
        migrations.migrate(target)
        with contextlib.closing(_open(target, books, prices)) as connection:
            _begin(connection)
            columns = _columns(connection, "transaction_ledger")
            _rows(connection, "transaction_ledger", _ENTRIES.format(columns=columns), cut.entries)
            statement = _BETS.format(columns=_columns(connection, "bets"), belongs=_BELONGS)
            _rows(connection, "bets", statement, cut.bets, cut)
            _the_rest(connection, cut)
            # One file that opens anywhere, without -wal and -shm beside it.
            connection.execute("DETACH books; DETACH prices")
            connection.pragma("journal_mode", "delete")
        target.with_name(f"{target.name}.lock").unlink(missing_ok=True)
    except (apsw.Error, DatabaseError, OSError) as error:
        raise ArchiveError(f"{target}: {error}") from error


def _open(target: Path, books: Path, prices: Path) -> apsw.Connection:
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(str(target), flags=flags)
    connection.pragma("busy_timeout", 5000)
    connection.pragma("synchronous", "normal")  # it is synced before it counts
    connection.pragma("foreign_keys", 0)  # the audit checks them
    connection.pragma("cache_size", -64000)
    # Read-only: it can neither write to them nor checkpoint them.
    for name, path in (("books", books), ("prices", prices)):
        connection.execute(_ATTACH.format(name=name), (f"{path.resolve().as_uri()}?mode=ro",))
    return connection


def _begin(connection: apsw.Connection) -> None:
    with connection:
        for index in _INDEXES:
            connection.execute(_DROP_INDEX.format(index=index))
        for table in _OF_PRICES:
            if not connection.table_exists("main", table):
                connection.execute(connection.execute(_TABLE, (table,)).get)
        connection.execute(
            "UPDATE horizon SET (week, bets, entries) ="
            " (SELECT week, bets, entries FROM books.horizon)"
        )


def _columns(connection: apsw.Connection, table: str) -> str:
    rows = connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
    return ", ".join(name for (name,) in rows)


def _rows(
    connection: apsw.Connection, table: str, statement: str, last: int, cut: Cut | None = None
) -> None:
    """Copy the rows of a table up to the `last` one, those behind what is copied already."""
    after = connection.execute(_LAST.format(table=table)).get
    while after < last:
        until = connection.execute(_PIECE.format(table=table), (after, _AT_ONCE)).get
        if until is None:
            return
        until = min(until, last)
        parameters = cut.parameters if cut else {}
        connection.execute(statement, {**parameters, "after": after, "last": until})
        after = until


def _the_rest(connection: apsw.Connection, cut: Cut) -> None:
    """What is little, or has to be made again when it was cut off."""
    with connection:
        connection.execute(_CARRIED_IN.format(belongs=_BELONGS), cut.parameters)
        connection.execute(
            CARRIED_OUT.format(target="main", schema="books", belongs=_BELONGS), cut.parameters
        )
        connection.execute(_DECIDED_BY, {"ends_at": cut.week.ends_at})
        connection.execute(_ACCOUNTS)
    for statement, keys in ((_BARS, "SELECT start FROM settlements ORDER BY start"),
                            (_PRICED_BARS, "SELECT bar FROM pricings ORDER BY bar")):  # fmt: skip
        found = [key for (key,) in connection.execute(keys)]
        for number in range(0, len(found), _COLUMNS_AT_ONCE):
            some = found[number : number + _COLUMNS_AT_ONCE]
            connection.execute(statement, (some[0], some[-1]))
    with connection:
        connection.execute(_READERS_INDEXES)
        connection.execute(
            "INSERT OR REPLACE INTO progress (id, bars_until) VALUES (1, ?)", (cut.week.ends_at,)
        )
