"""What a user may read of the books: bets, ledger entries and the balance.

Lists are read in pages, newest first. Behind a page with more to come stands a cursor, the
time and id of its last item; the next page is what was written before that item. So items
that arrive meanwhile neither move nor repeat what is still to be read.

Bets are in the order in which they were written, which is that of their rows; a user's are
found by the index of their keys, whose entries are sorted for each question: some 15 ms for
100,000 of them. Entries are in the order of their ids, which begin with their time.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import apsw

Item = TypeVar("Item")

#: How many items a page may hold, and how many it holds when nobody says.
LARGEST_PAGE = 100
USUAL_PAGE = 50

_BET_ID = re.compile(r"bet_([0-9a-f]{12})")

STATUSES = ("pending", "confirmed", "won", "lost", "insufficient_funds", "void")


class BadCursorError(Exception):
    """The text is no cursor of this list."""


class Cursor(NamedTuple):
    """A place in a list: right behind the item with this time and id."""

    time: int  # Unix ms
    item_id: str


class CursorForm:
    """How the cursors of one list are written: to be handed back, not to be read.

    The list's letter and the form's version, the time in 12 and the id's ASCII codes in two
    hexadecimal digits each. Every place has one spelling, and `pattern` fits no other text.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        text = rf"{prefix}[0-9a-f]{{12}}(2[1-9a-f]|[3-6][0-9a-f]|7[0-9a-e]){{1,64}}"
        self._text = re.compile(text)
        self.pattern = f"^{text}$"

    def write(self, cursor: Cursor) -> str:
        """The text of a cursor."""
        return f"{self._prefix}{cursor.time:012x}{cursor.item_id.encode('ascii').hex()}"

    def read(self, text: str) -> Cursor:
        """The cursor of a text. Raises BadCursorError."""
        if not self._text.fullmatch(text):
            raise BadCursorError("no cursor of this list")
        digits = text.removeprefix(self._prefix)
        return Cursor(int(digits[:12], 16), bytes.fromhex(digits[12:]).decode("ascii"))


BET_CURSORS = CursorForm("b1")
ENTRY_CURSORS = CursorForm("e1")

#: Before everything there is: where a list begins.
_START = Cursor(2**63 - 1, "~")


class Bet(NamedTuple):
    """A bet as its owner sees it."""

    bet_id: str
    cell_id: str
    amount: int  # cents
    status: str
    reward_rate_bps: int | None  # None until it is fixed
    payout_amount: int | None  # cents; None until the bet is settled
    placed_at: int  # Unix ms
    resolved_at: int | None  # Unix ms; None until the bet is settled


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the ledger as its owner sees it."""

    entry_id: str
    amount: int  # cents, above 0 when the user gained
    balance_after: int  # cents
    ref_type: str
    ref_id: str
    created_at: int  # Unix ms


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some items of a list, newest first, and where the next page begins."""

    items: list[Item]
    next_cursor: Cursor | None  # None when there is nothing older


#: Above every row.
_NO_ROW = 1 << 62

# CROSS JOIN keeps the tables in this order, and a LIMIT the order of a subquery's rows.
_BETS = """
SELECT bets.rowid, id, cell_id, amount, status, reward_rate_bps, payout_amount, placed_at,
       resolved_at
FROM (
  SELECT rowid AS number
  FROM bets INDEXED BY idx_bets_user
  WHERE user_id = ?1 AND rowid < ?2
  ORDER BY rowid DESC
  LIMIT CASE WHEN ?3 IS NULL THEN ?4 ELSE -1 END
) found CROSS JOIN bets ON bets.rowid = found.number
WHERE ?3 IS NULL OR status = ?3
LIMIT ?4
"""
_ENTRIES = """
SELECT id, amount, balance_after, ref_type, ref_id, created_at
FROM (
  SELECT * FROM (
    SELECT l.rowid AS number
    FROM (
      SELECT rowid AS number
      FROM bets INDEXED BY idx_bets_user
      WHERE user_id = ?1
        AND rowid < coalesce((SELECT rowid FROM bets WHERE id >= ?4 ORDER BY id LIMIT 1), 1 << 62)
      ORDER BY rowid DESC
      LIMIT -1
    ) found
    CROSS JOIN bets b ON b.rowid = found.number
    CROSS JOIN transaction_ledger l
      ON l.ref_type = 'BET' AND l.ref_id = b.id AND l.user_id = ?1
    LIMIT ?5
  )
  UNION ALL
  SELECT * FROM (
    SELECT rowid
    FROM transaction_ledger
    WHERE user_id = ?1 AND ref_type <> 'BET' AND (created_at, id) < (?2, ?3)
    ORDER BY created_at DESC, id DESC
    LIMIT ?5
  )
) found CROSS JOIN transaction_ledger l ON l.rowid = found.number
ORDER BY id DESC
LIMIT ?5
"""
_ARCHIVED_ENTRIES = """
SELECT id, amount, balance_after, ref_type, ref_id, created_at
FROM transaction_ledger INDEXED BY idx_ledger_user
WHERE user_id = ? AND id < ?
ORDER BY id DESC
LIMIT ?
"""
_BET = """
SELECT id, cell_id, amount, status, reward_rate_bps, payout_amount, placed_at, resolved_at
FROM bets
WHERE id = ? AND user_id = ?
"""
_ANY_BET = """
SELECT id, cell_id, amount, status, reward_rate_bps, payout_amount, placed_at, resolved_at
FROM bets
WHERE id = ?
"""


def bets(
    connection: apsw.Connection,
    user_id: str,
    *,
    status: str | None = None,
    cursor: Cursor | None = None,
    limit: int = USUAL_PAGE,
) -> Page[Bet]:
    """A page of a user's bets, of one status or of all."""
    below = row_from(connection, cursor.item_id) if cursor else None
    found = bets_below(connection, user_id, below, status=status, limit=limit + 1)
    return bet_page([each for _, each in found], limit)


def bets_below(
    connection: apsw.Connection,
    user_id: str,
    below: int | None,
    *,
    status: str | None,
    limit: int,
) -> list[tuple[int, Bet]]:
    """The last bets of a user in rows below a number, or of all rows, with the rows' numbers."""
    rows = connection.execute(_BETS, (user_id, below or _NO_ROW, status, limit))
    return [(number, Bet(*row)) for number, *row in rows]


def row_of(connection: apsw.Connection, bet_id: str) -> int | None:
    """The row of a bet, whoever's it is; None when there is none of this id."""
    row = connection.execute("SELECT rowid FROM bets WHERE id = ?", (bet_id,)).get
    return None if row is None else int(row)


def row_from(connection: apsw.Connection, bet_id: str) -> int | None:
    """The row of the first bet, of anyone, that is not before this one; None when all are."""
    row = connection.execute(
        "SELECT rowid FROM bets WHERE id >= ? ORDER BY id LIMIT 1", (bet_id,)
    ).get
    return None if row is None else int(row)


def bet_page(found: list[Bet], limit: int) -> Page[Bet]:
    """The page of bets of which one more than `limit` was asked for."""
    last = found[limit - 1] if len(found) > limit else None
    return Page(found[:limit], Cursor(last.placed_at, last.bet_id) if last else None)


def entries(
    connection: apsw.Connection,
    user_id: str,
    *,
    cursor: Cursor | None = None,
    limit: int = USUAL_PAGE,
) -> Page[Entry]:
    """A page of a user's ledger entries."""
    return entry_page(entries_below(connection, user_id, cursor, limit=limit + 1), limit)


def entries_below(
    connection: apsw.Connection, user_id: str, cursor: Cursor | None, *, limit: int
) -> list[Entry]:
    """The last entries of a user before the cursor's, or of all."""
    time, item_id = cursor or _START
    # A stake's entry is named after its bet.
    bet_id = f"bet_{item_id.removeprefix('led_').removesuffix('u')}"
    rows = connection.execute(_ENTRIES, (user_id, time, item_id, bet_id, limit))
    return [Entry(*row) for row in rows]


def archived_entries_below(
    archive: apsw.Connection, user_id: str, cursor: Cursor | None, *, limit: int
) -> list[Entry]:
    """The like of an archive, where a bet may be in another file than its stake's entry."""
    rows = archive.execute(_ARCHIVED_ENTRIES, (user_id, (cursor or _START).item_id, limit))
    return [Entry(*row) for row in rows]


def entry_page(found: list[Entry], limit: int) -> Page[Entry]:
    """The page of entries of which one more than `limit` was asked for."""
    last = found[limit - 1] if len(found) > limit else None
    return Page(found[:limit], Cursor(last.created_at, last.entry_id) if last else None)


def bet(connection: apsw.Connection, user_id: str, bet_id: str) -> Bet | None:
    """A bet of this user; None when it is anyone else's or nobody's."""
    row = connection.execute(_BET, (bet_id, user_id)).fetchone()
    return Bet(*row) if row else None


def any_bet(connection: apsw.Connection, bet_id: str) -> Bet | None:
    """A bet, whoever's it is; None when there is none of this id."""
    row = connection.execute(_ANY_BET, (bet_id,)).fetchone()
    return Bet(*row) if row else None


def placed_between(connection: apsw.Connection, begin: int, end: int) -> Iterator[str]:
    """The ids of all bets placed inside [begin, end), in Unix ms; ids begin with their time."""
    rows = connection.execute(
        "SELECT id FROM present_bets WHERE id >= ? AND id < ? ORDER BY id",
        (f"bet_{begin:012x}", f"bet_{end:012x}"),
    )
    return (bet_id for (bet_id,) in rows)


def balance(connection: apsw.Connection, user_id: str) -> int | None:
    """A user's balance in cents; None when there is no such account."""
    row = connection.execute("SELECT balance FROM users WHERE id = ?", (user_id,)).fetchone()
    return row[0] if row else None


def placed_at(bet_id: str) -> int | None:
    """When the bet of an id was placed, Unix ms; None when it is no id of a bet."""
    match = _BET_ID.match(bet_id)
    return int(match[1], 16) if match else None


def oldest_bet(connection: apsw.Connection) -> int | None:
    """When the oldest bet of these books was placed, Unix ms; None when there is none."""
    row = connection.execute("SELECT placed_at FROM bets ORDER BY rowid LIMIT 1").fetchone()
    return row[0] if row else None
