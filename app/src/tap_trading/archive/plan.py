"""What of the books belongs to a closed week.

The books are cut between two journal entries, so that what is before and what is after each
add up to zero. A bet goes with its week when it was over, all its entries included, before the
cut; one that was not stays, and is carried over.
"""

from dataclasses import dataclass

import apsw

from tap_trading.archive.errors import ArchiveError
from tap_trading.archive.weeks import Week
from tap_trading.ledger.accounts import HOUSE

#: The same bets and entries were written in the same transactions, so rows on the wrong side of
#: a cut would be close to it: so many are looked at.
_NEIGHBOURS = 20_000

#: Whether a bet of the table `b` is over and has no entry after the cut: a condition with the
#: parameters :bets and :entries, the last rows before the cut, and :ends_at, in Unix ms.
#: `{schema}` is where the books are.
BELONGS = """
b.rowid <= :bets AND (
  b.status = 'insufficient_funds'
  OR (b.status = 'lost' AND b.resolved_at < :ends_at)
  OR (b.status IN ('won', 'void') AND EXISTS (
    SELECT 1 FROM {schema}.transaction_ledger l
    WHERE l.ref_type = CASE b.status WHEN 'won' THEN 'PAYOUT' ELSE 'REFUND' END
      AND l.ref_id = b.id AND l.user_id = b.user_id AND l.rowid <= :entries
  ))
)
"""


@dataclass(frozen=True, slots=True)
class Cut:
    """The end of a week in the books."""

    week: Week
    bets: int  # the last row of bets before it
    entries: int  # the last row of the ledger before it, one of the house's

    @property
    def parameters(self) -> dict[str, int | str]:
        """Of the statements that need it."""
        return {
            "bets": self.bets,
            "entries": self.entries,
            "week": self.week.name,
            "ends_at": self.week.ends_at,
        }


def next_week(books: apsw.Connection, until: int) -> Week | None:
    """The oldest week of which there is something in the books and which ended by `until` (Unix
    ms); None when there is none.
    """
    first = books.execute(
        "SELECT min(created_at) FROM (SELECT created_at FROM present_entries ORDER BY number LIMIT 1)"
    ).get
    if first is None:
        return None
    week = Week.of(first)
    done = books.execute("SELECT week FROM horizon").get
    if done and week.name <= done:  # entries of a clock that was set back
        week = Week.parse(done).next
    return week if week.ends_at <= until else None


def cut(books: apsw.Connection, week: Week) -> Cut:
    """Where the books have to be cut at the end of `week`.

    Raises ArchiveError as long as a column of it is not settled with all that belongs to it.
    """
    waits = books.execute(
        "SELECT start || ':' || width FROM settlements"
        " WHERE released IS NOT NULL AND (start + width) * 1000 <= ? LIMIT 1",
        (week.ends_at,),
    ).get
    if waits is not None:
        raise ArchiveError(f"{week.name}: the column {waits} is not settled to its end yet")
    # Ids begin with their time.
    after = books.execute(
        "SELECT rowid FROM transaction_ledger WHERE id >= ? ORDER BY id LIMIT 1",
        (f"led_{week.ends_at:012x}",),
    ).get
    entries = books.execute(
        "SELECT rowid FROM transaction_ledger WHERE user_id = ? AND rowid < ?"
        " ORDER BY rowid DESC LIMIT 1",
        (HOUSE, 1 << 62 if after is None else after),
    ).get
    if entries is None:
        raise ArchiveError(f"{week.name}: there is nothing of it in the books")
    bets = books.execute(
        "SELECT b.rowid FROM transaction_ledger l JOIN bets b ON b.id = l.ref_id"
        " WHERE l.ref_type = 'BET' AND l.user_id <> ? AND l.rowid < ?"
        " ORDER BY l.rowid DESC LIMIT 1",
        (HOUSE, entries),
    ).get
    begins = books.execute("SELECT bets FROM horizon").get
    made = Cut(week, max(bets or 0, begins), entries)
    _check(books, made)
    return made


def _check(books: apsw.Connection, made: Cut) -> None:
    """No bet may be on one side of the cut, and its stake on the other."""
    wrong = books.execute(
        "SELECT b.id FROM transaction_ledger l JOIN bets b ON b.id = l.ref_id"
        " WHERE l.rowid BETWEEN :entries - :near AND :entries + :near AND l.ref_type = 'BET'"
        " AND (l.rowid <= :entries) <> (b.rowid <= :bets)"
        " AND NOT EXISTS (SELECT 1 FROM carried_bets c WHERE c.bet_id = b.id) LIMIT 1",
        {"entries": made.entries, "bets": made.bets, "near": _NEIGHBOURS},
    ).get
    if wrong is not None:
        raise ArchiveError(
            f"{made.week.name}: the bet {wrong} and its stake are on two sides of the week's end"
        )
