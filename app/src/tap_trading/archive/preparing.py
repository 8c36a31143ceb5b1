"""Copies made ready to take the place of the site's databases, and what would be lost by it.

Everything is made and proven in a folder beside the site, which goes on meanwhile: databases with
this release's schema, and those archives of the last weeks that are not on the machine. What then
stops the site and moves them in is the machine's (`release restore`).
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import apsw

from tap_trading.archive import cold
from tap_trading.archive.backup import Copy
from tap_trading.archive.contents import NAMES, Name
from tap_trading.archive.errors import ArchiveError
from tap_trading.archive.moving import Mover
from tap_trading.archive.objects import ObjectStore
from tap_trading.archive.restore import RestoreError, Source, newest, restore
from tap_trading.archive.scratch import NoScratchError, alone_in
from tap_trading.archive.sealing import Key
from tap_trading.archive.shelf import Shelf
from tap_trading.base.db import DatabaseError, open_reader
from tap_trading.base.files import sha256_of, sync
from tap_trading.ledger import migrations
from tap_trading.market import price_store

#: What says that everything is ready; the last that is written and the first that is removed.
PLAN = "plan.json"
_ARCHIVES = "archive"

_LAST_ENTRY = """
SELECT coalesce((SELECT max(rowid) FROM transaction_ledger), 0), (SELECT entries FROM horizon)
"""
_ENTRY = "SELECT id, created_at FROM transaction_ledger WHERE rowid = ?"
_LAST_BAR = "SELECT t, close FROM bars ORDER BY t DESC LIMIT 1"


@dataclass(slots=True)
class Plan:
    """What is ready, and what belongs to it."""

    copies: dict[Name, str] = field(default_factory=dict)  # by database, the copy's name
    rows: dict[Name, int] = field(default_factory=dict)
    #: Files of archives: those that were fetched, those here that these books do not know, and
    #: weeks that are neither here nor in cold storage.
    fetched: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Change:
    """What it would mean to put what is ready in the place of what is there."""

    #: Entries of the ledger that the copy of the books has not; None: nobody can tell.
    lost_entries: int | None
    last_entry: str  # of those, and when it was written; or why nobody can tell
    #: The machine's prices go on where the copy's end, so they stay.
    keeps_prices: bool


def prepare(
    source: Source, names: Mapping[Name, str | None], key: Key | None, folder: Path, shelf: Shelf
) -> Plan:
    """Make copies ready in `folder`: those named, or the newest where a name is None.

    Raises RestoreError; nothing is ready then.
    """
    plan = Plan()
    try:
        with alone_in(folder):
            _clear(folder)
            for database in NAMES:
                copy = _chosen(source, database, names[database])
                contents = restore(source, copy, folder / f"{database}.db", key)
                plan.copies[database] = copy.name
                plan.rows[database] = sum(contents.rows.values())
            migrations.migrate(folder / "bets.db")
            price_store.migrate(folder / "prices.db")
            _match_archives(plan, folder, shelf, source.store, key)
            _write(plan, folder)
    except (NoScratchError, DatabaseError, ArchiveError) as error:
        raise RestoreError(str(error)) from error
    except OSError as error:
        raise RestoreError(f"{folder}: {error.strerror or error}") from error
    return plan


def _clear(folder: Path) -> None:
    (folder / PLAN).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _chosen(source: Source, database: Name, name: str | None) -> Copy:
    if name is None:
        return newest(source, database)
    found = {copy.name: copy for copy in source.copies(database)}
    if name not in found:
        last = ", ".join(sorted(found)[-3:]) or "none"
        raise RestoreError(f"{source} has no copy {name} of {database}; the last ones are: {last}")
    return found[name]


def _match_archives(
    plan: Plan, folder: Path, shelf: Shelf, store: ObjectStore | None, key: Key | None
) -> None:
    """Have the archives here that the prepared books say are here, and none that they do not know.

    Raises ArchiveError, StoreError and OSError.
    """
    books = folder / "bets.db"
    known = {each.week: each for each in cold.known(books)}
    weeks = shelf.weeks()
    here = {
        week
        for week in weeks
        if week in known and sha256_of(shelf.path(week)) == known[week].sha256
    }
    plan.unknown = [shelf.path(week).name for week in weeks if week not in here]
    with Mover(books) as mover:
        for week, each in known.items():
            if not each.is_local or week in here:
                continue
            target = Shelf(folder / _ARCHIVES).path(week)
            target.parent.mkdir(exist_ok=True)
            if store is not None and store.head(cold.key_of(week, key)) is not None:
                cold.fetch(books, week, store, key, target)
                plan.fetched.append(target.name)
            else:
                mover.mark_missing(week)
                plan.missing.append(week.name)


def _write(plan: Plan, folder: Path) -> None:
    """Raises RestoreError when a database is not one file by now, and OSError."""
    for database in NAMES:
        path = folder / f"{database}.db"
        if (log := path.with_name(f"{path.name}-wal")).exists():
            raise RestoreError(f"{log} was left behind")
        sync(path)
    for name in plan.fetched:
        sync(folder / _ARCHIVES / name)
    unfinished = folder / f"{PLAN}.new"
    unfinished.write_text(json.dumps(asdict(plan)))
    sync(unfinished)
    unfinished.rename(folder / PLAN)
    sync(folder)


def compare(books: Path, prices: Path, folder: Path) -> Change:
    """What is ready in `folder` beside the databases of the site. Raises RestoreError."""
    if not (folder / PLAN).exists():
        raise RestoreError(f"nothing is ready in {folder}")
    try:
        lost, last = _lost(books, folder / "bets.db")
    except DatabaseError as error:
        lost, last = None, str(error)
    return Change(lost, last, _goes_on(prices, folder / "prices.db"))


def _lost(books: Path, prepared: Path) -> tuple[int, str]:
    """How many entries the books have that the prepared ones have not, and the last of them.

    Raises DatabaseError when the books cannot be read.
    """
    if not books.exists():
        return 0, ""
    try:
        with closing(open_reader(prepared)) as connection:
            [[copied, behind]] = connection.execute(_LAST_ENTRY)
            copied = max(copied, behind)
            last_copied = connection.execute(_ENTRY, (copied,)).fetchall()
        with closing(open_reader(books)) as connection:
            [[written, behind]] = connection.execute(_LAST_ENTRY)
            written = max(written, behind)
            is_same = copied <= behind or (
                connection.execute(_ENTRY, (copied,)).fetchall() == last_copied
            )
            lost = written - copied if is_same else written
            if lost <= 0:
                return 0, ""
            last = connection.execute(_ENTRY, (written,)).fetchall()
    except apsw.Error as error:
        raise DatabaseError(f"{books}: {error}") from error
    return lost, f"{last[0][0]}, written at {last[0][1]} (Unix ms)" if last else "archived"


def _goes_on(prices: Path, prepared: Path) -> bool:
    """Whether the machine's prices have what the prepared ones have, and what came after it."""
    try:
        with closing(open_reader(prepared)) as connection:
            last = connection.execute(_LAST_BAR).fetchall()
        with closing(open_reader(prices)) as connection:
            return bool(last) and bool(
                connection.execute("SELECT 1 FROM bars WHERE t = ? AND close = ?", last[0]).get
            )
    except (apsw.Error, DatabaseError):
        return False  # such as none, or damaged
