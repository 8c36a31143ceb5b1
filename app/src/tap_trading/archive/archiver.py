"""Archives closed weeks, one after the other, and goes on where it was cut off."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw

from tap_trading.archive import plan
from tap_trading.archive.checking import Checked, check, compare
from tap_trading.archive.copying import copy
from tap_trading.archive.errors import ArchiveError
from tap_trading.archive.moving import Mover
from tap_trading.archive.plan import Cut
from tap_trading.archive.scratch import NoScratchError, require_room, size_of
from tap_trading.archive.shelf import Shelf
from tap_trading.archive.weeks import Week
from tap_trading.base.db import DatabaseError, open_reader
from tap_trading.base.files import sync

#: A week is left alone for so long after its end: its last columns are settled by then, and the
#: clock may have been wrong by some seconds.
_LEFT_ALONE_MS = 3600 * 1000

_READ_ONLY = 0o440


@dataclass(frozen=True, slots=True)
class Archived:
    """A week that was moved."""

    week: Week
    path: Path
    bets: int
    entries: int
    size: int  # bytes


def archive(books: Path, prices: Path, shelf: Shelf, now: int) -> Iterator[Archived]:
    """Move every week that was over for an hour at `now` (Unix ms) into a file on the shelf.

    What an earlier run left is finished first. Raises ArchiveError.
    """
    shelf.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    with _alone(shelf.folder), _mover(books) as mover:
        mover.clear()
        while cut := _next_cut(books, now - _LEFT_ALONE_MS):
            path = shelf.path(cut.week)
            checked = _made(path, cut, books, prices)
            mover.begin_behind(cut, path, checked, now)
            mover.clear()
            yield Archived(cut.week, path, checked.bets, checked.entries, checked.size)


def _mover(books: Path) -> Mover:
    try:
        return Mover(books)
    except DatabaseError as error:
        raise ArchiveError(str(error)) from error


def _next_cut(books: Path, until: int) -> Cut | None:
    try:
        with closing(open_reader(books)) as connection:
            week = plan.next_week(connection, until)
            return plan.cut(connection, week) if week else None
    except (apsw.Error, DatabaseError) as error:
        raise ArchiveError(f"{books}: {error}") from error


def _made(path: Path, cut: Cut, books: Path, prices: Path) -> Checked:
    """The archive of the week, made unless it is there; proven to be whole."""
    if path.exists():  # the run that made it was cut off, or an older backup was restored
        checked = check(path)
        compare(path, cut, books)
        return checked
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        # What an earlier run has copied has its room already.
        most = size_of(books) + size_of(prices) - size_of(unfinished)
        require_room(path.parent, max(most, 0))
    except NoScratchError as error:
        raise ArchiveError(str(error)) from error
    copy(unfinished, cut, books, prices)
    sync(unfinished)
    checked = check(unfinished)
    compare(unfinished, cut, books)
    unfinished.chmod(_READ_ONLY)
    unfinished.rename(path)
    sync(path.parent)
    return checked


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One archiver at a time; the kernel gives the lock up with the process."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArchiveError("another process is archiving at this moment") from None
        yield
    finally:
        os.close(descriptor)
