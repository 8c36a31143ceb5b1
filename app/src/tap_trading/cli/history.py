"""`tap history` and what belongs to it: what an account did in an archived week, from here or from
cold storage; which archives there are, and fewer of them here.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw

from tap_trading.archive import cold
from tap_trading.archive.errors import ArchiveError
from tap_trading.archive.objects import ObjectStore
from tap_trading.archive.sealing import Key
from tap_trading.archive.shelf import Shelf
from tap_trading.archive.weeks import Week
from tap_trading.base.config import Settings
from tap_trading.base.logger import rfc3339_ms
from tap_trading.cli import amounts
from tap_trading.cli.command import Add, RefusedError, books
from tap_trading.ledger import accounts, queries
from tap_trading.ledger.queries import LARGEST_PAGE, Bet, Entry

#: What the command raises when it did not do what it was asked.
ERRORS = (ArchiveError,)


def add_to(add: Add) -> None:
    """Add the commands."""
    command = add(
        "history",
        _history,
        "Show a user's bets and ledger entries of an archived week, fetched from cold storage when"
        " the archive is not on this machine any more.",
    )
    command.add_argument("week", type=_week, metavar="WEEK", help="such as 2026_w47")
    command.add_argument("user", metavar="USER", help="user id or wallet address")
    add("archives", _archives, "List all archives: what is in them, and where they are.")
    command = add(
        "archive-prune",
        _prune,
        "Remove all archives here but the newest, each proven in cold storage first: for a disk"
        " that is nearly full.",
    )
    command.add_argument(
        "--keep", type=int, choices=range(1, cold.KEPT + 1), default=1, help="how many stay here"
    )


def _history(settings: Settings, args: argparse.Namespace) -> int:
    week: Week = args.week
    with _archive(settings, week) as archive:
        account = accounts.find(archive, args.user)
        if account is None:
            raise RefusedError(
                f"nobody with the id or address {args.user} was there in {week.name}"
            )
        print(f"{account.user_id} ({account.address}) in {week.name}")
        for bet in _bets(archive, account.user_id):
            rate = "-" if bet.reward_rate_bps is None else f"{bet.reward_rate_bps / 10_000:.4f}"
            paid = "-" if bet.payout_amount is None else amounts.dollars(bet.payout_amount)
            print(
                f"  {rfc3339_ms(bet.placed_at)}  {bet.status:<18}  {amounts.dollars(bet.amount)}"
                f" at {rate}, paid {paid}  {bet.cell_id}  {bet.bet_id}"
            )
        for entry in _entries(archive, account.user_id):
            print(
                f"  {rfc3339_ms(entry.created_at)}  {entry.ref_type:<18}"
                f"  {amounts.shown(entry.amount)}, then {amounts.dollars(entry.balance_after)}"
                f"  {entry.ref_id}"
            )
    return 0


def _bets(archive: apsw.Connection, user_id: str) -> Iterator[Bet]:
    """All of a user's bets, newest first."""
    below = None
    while found := queries.bets_below(archive, user_id, below, status=None, limit=LARGEST_PAGE):
        yield from (bet for _, bet in found)
        below = found[-1][0]


def _entries(archive: apsw.Connection, user_id: str) -> Iterator[Entry]:
    """All of a user's entries, newest first."""
    cursor = None
    while found := queries.archived_entries_below(archive, user_id, cursor, limit=LARGEST_PAGE):
        yield from found
        cursor = queries.Cursor(found[-1].created_at, found[-1].entry_id)


def _archives(settings: Settings, _args: argparse.Namespace) -> int:
    with books(settings.db_path) as connection:
        rows: list[tuple[Any, ...]] = connection.execute(
            "SELECT week, bets, entries, size, archived_at, stored_at, is_local FROM archives"
            " ORDER BY week DESC"
        ).fetchall()
    for week, bets, entries, size, archived_at, stored_at, is_local in rows:
        made = datetime.fromtimestamp(archived_at / 1000, UTC)
        places = [*(["here"] if is_local else []), *(["cold storage"] if stored_at else [])]
        print(
            f"{week}  {bets:>9} bets  {entries:>9} entries  {size / 1e6:>8.1f} MB"
            f"  made {made:%Y-%m-%d}  {' and '.join(places)}"
        )
    if not rows:
        print("no week was archived yet")
    return 0


def _prune(settings: Settings, args: argparse.Namespace) -> int:
    store = ObjectStore.of(settings)
    if store is None:
        raise RefusedError(
            "no cold storage is configured (there is no TAP_S3_BUCKET), so no archive was removed"
        )
    shelf, now = Shelf(settings.archive_dir), time.time_ns() // 10**6
    report = cold.store(settings.db_path, shelf, store, Key.of(settings), now, keep=args.keep)
    for week in report.removed:
        print(f"{shelf.path(week)} removed; it is in {store}")
    print(f"{len(report.removed)} archives removed")
    return 0


@contextmanager
def _archive(settings: Settings, week: Week) -> Iterator[apsw.Connection]:
    """The archive of a week, wherever it is. Raises ArchiveError, DatabaseError, StoreError."""
    shelf = Shelf(settings.archive_dir)
    if shelf.path(week).exists():
        with shelf.open(week) as archive:
            yield archive
        return
    if all(each.week != week for each in cold.known(settings.db_path)):
        raise RefusedError(f"{week.name} is not archived; its bets, if any, are in the books")
    store = ObjectStore.of(settings)
    if store is None:
        raise RefusedError(f"{shelf.path(week)} is missing, and no cold storage is configured")
    with tempfile.TemporaryDirectory(prefix=".history-", dir=shelf.folder) as folder:
        fetched = Shelf(Path(folder))
        cold.fetch(settings.db_path, week, store, Key.of(settings), fetched.path(week))
        with fetched.open(week) as archive:
            yield archive


def _week(text: str) -> Week:
    try:
        return Week.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
