"""What the books say of an account or a bet, for the people who ask."""

from dataclasses import dataclass
from typing import Any

import apsw
import orjson

from tap_trading.ledger import queries
from tap_trading.ledger.accounts import HOUSE


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the ledger."""

    entry_id: str
    user_id: str
    amount: int  # cents, above 0 when the account gained
    balance_after: int  # cents
    ref_type: str
    ref_id: str
    metadata: str | None  # JSON
    created_at: int  # Unix ms

    @property
    def details(self) -> dict[str, Any]:
        """What the metadata says by name; {} without any."""
        said = orjson.loads(self.metadata) if self.metadata else {}
        return said if isinstance(said, dict) else {}


_ENTRY = (
    "SELECT id, user_id, amount, balance_after, ref_type, ref_id, metadata, created_at"
    " FROM transaction_ledger "
)


def latest_entries(connection: apsw.Connection, user_id: str, limit: int) -> list[Entry]:
    """A user's last entries, newest first; or the house's, whose stakes are those of batches."""
    ids = [entry.entry_id for entry in queries.entries(connection, user_id, limit=limit).items]
    if user_id == HOUSE:
        batches = connection.execute(
            "SELECT id FROM transaction_ledger WHERE ref_type = 'BET' AND user_id = ?"
            " AND ref_id BETWEEN 'batch_' AND 'batch_~' ORDER BY ref_id DESC LIMIT ?",
            (HOUSE, limit),
        )
        ids += [entry_id for (entry_id,) in batches]
    newest = sorted(ids, reverse=True)[:limit]
    rows = connection.executemany(f"{_ENTRY} WHERE id = ?", [(entry_id,) for entry_id in newest])
    return [Entry(*row) for row in rows]


def entries_of(connection: apsw.Connection, ref_id: str) -> list[Entry]:
    """All entries under a reference, whatever their kind, oldest first."""
    rows = connection.execute(
        # The kinds are named, since the index of references begins with them.
        f"{_ENTRY} WHERE ref_type IN ('BET', 'PAYOUT', 'REFUND', 'DEPOSIT', 'WITHDRAWAL',"
        " 'ADJUSTMENT') AND ref_id = ? ORDER BY rowid",
        (ref_id,),
    )
    return [Entry(*row) for row in rows]


def house_sides(connection: apsw.Connection, bet_id: str) -> list[Entry]:
    """The house's entries that a bet's stake, payout or refund went into, each together with
    the rest of its batch.

    It is the first of the house after the bet's own (ADR 0010).
    """
    own = connection.execute(
        "SELECT rowid FROM transaction_ledger WHERE ref_type IN ('BET', 'PAYOUT', 'REFUND')"
        " AND ref_id = ? ORDER BY rowid",
        (bet_id,),
    ).fetchall()
    rows = connection.executemany(
        # The plus keeps the house's index out: the entry is found a few rows further on.
        f"{_ENTRY} WHERE +user_id = 'house' AND rowid > ? ORDER BY rowid LIMIT 1",
        own,
    )
    return [Entry(*row) for row in rows]


def bets_by_status(connection: apsw.Connection, user_id: str) -> dict[str, int]:
    """How many bets of each status a user has."""
    rows = connection.execute(
        "SELECT status, count(*) FROM bets WHERE user_id = ? GROUP BY status ORDER BY status",
        (user_id,),
    )
    return dict(rows)


def bet(connection: apsw.Connection, bet_id: str) -> dict[str, Any] | None:
    """A bet's row, by column; None when there is no such bet."""
    cursor = connection.execute("SELECT * FROM bets WHERE id = ?", (bet_id,))
    for row in cursor:
        columns = (column[0] for column in cursor.get_description())
        return dict(zip(columns, row, strict=True))
    return None
