"""What a user may read of the books and of the archives on this machine, as one list.

The books are read first: what is moved to an archive meanwhile is in both, and shown once.
An archive is opened only when a page reaches back to its week.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import apsw

from tap_trading.archive.shelf import Shelf
from tap_trading.archive.weeks import Week
from tap_trading.ledger import queries
from tap_trading.ledger.queries import USUAL_PAGE, Bet, Cursor, Entry, Page

#: A bet of a week is in its archive, or in one of the next weeks if it was open for so long; a
#: clock that was set may be wrong by so much. Unix ms.
_SLACK_MS = 3600 * 1000


@dataclass(frozen=True, slots=True)
class History:
    """The books and the archives, for one question."""

    books: apsw.Connection
    shelf: Shelf

    def bets(
        self,
        user_id: str,
        *,
        status: str | None = None,
        cursor: Cursor | None = None,
        limit: int = USUAL_PAGE,
    ) -> Page[Bet]:
        """A page of a user's bets, of one status or of all. Raises DatabaseError."""
        row = self._row(cursor.item_id) if cursor else None

        def read(connection: apsw.Connection) -> dict[int, Bet]:
            below = row
            if cursor is not None and row is None:  # of an archive that is not here any more
                below = queries.row_from(connection, cursor.item_id)
            return dict(
                queries.bets_below(connection, user_id, below, status=status, limit=limit + 1)
            )

        found = read(self.books)
        for week in self.shelf.weeks():
            ordered = sorted(found, reverse=True)
            if len(ordered) > limit and not _reaches(found[ordered[limit]].placed_at, week):
                break
            with self.shelf.open(week) as archive:
                found = {**read(archive), **found}
        newest_first = sorted(found.items(), reverse=True)
        return queries.bet_page([bet for _, bet in newest_first], limit)

    def entries(
        self, user_id: str, *, cursor: Cursor | None = None, limit: int = USUAL_PAGE
    ) -> Page[Entry]:
        """A page of a user's ledger entries. Raises DatabaseError."""
        found = queries.entries_below(self.books, user_id, cursor, limit=limit + 1)
        for week in self.shelf.weeks():
            if len(found) > limit and not _reaches(found[limit].created_at, week):
                break
            with self.shelf.open(week) as archive:
                more = queries.archived_entries_below(archive, user_id, cursor, limit=limit + 1)
            both = {entry.entry_id: entry for entry in (*more, *found)}
            found = [both[entry_id] for entry_id in sorted(both, reverse=True)]
        return queries.entry_page(found, limit)

    def _row(self, bet_id: str) -> int | None:
        """The row of a bet, wherever it is."""
        with self.where(bet_id) as connection:
            return None if connection is None else queries.row_of(connection, bet_id)

    @contextmanager
    def where(self, bet_id: str) -> Iterator[apsw.Connection | None]:
        """Where a bet is: the books or an archive; None when it is in none of them.

        Raises DatabaseError.
        """
        placed_at = queries.placed_at(bet_id)
        if placed_at is None or queries.row_of(self.books, bet_id) is not None:
            yield self.books
            return
        # From the oldest on: a bet is seldom open for longer than its week.
        for week in reversed(self.shelf.weeks()):
            if not _reaches(placed_at, week):
                continue
            with self.shelf.open(week) as archive:
                if queries.row_of(archive, bet_id) is not None:
                    yield archive
                    return
        yield None

    def archived_before(self) -> int | None:
        """What is older is in cold storage only, Unix ms; None: nothing is."""
        moment = self.books.execute("SELECT max(ends_at) FROM archives WHERE is_local = 0").get
        return None if moment is None else int(moment)


def _reaches(at: int, week: Week) -> bool:
    """Whether what is as old as this moment (Unix ms), or older, may be in the week's archive."""
    return at < week.ends_at + _SLACK_MS
