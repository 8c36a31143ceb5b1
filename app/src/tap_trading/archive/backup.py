"""Consistent copies of the databases, taken while bets go on.

The copy is made inside a read transaction of the release's own SQLite: it sees one
moment, waits for nobody and is not restarted by writers. It counts as a backup only
after its integrity check, the audit of its ledger and a look into the sealed file, and
appears under its name in one step: a damaged database never pushes out the copies from
before the damage.
"""

import contextlib
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apsw

from tap_trading.archive import sealing
from tap_trading.archive.contents import (
    Contents,
    Name,
    UnprovenError,
    contents_of,
    last_written,
    prove,
)
from tap_trading.archive.scratch import NoScratchError, alone_in, require_room, scratch, size_of
from tap_trading.archive.sealing import Key, SealError
from tap_trading.base.db import DatabaseError, check_sqlite_version
from tap_trading.base.files import sha256_of, sync

_SCRATCH = ".backup-"
#: So much of a database is read without a call for each page, in bytes: a third less to do.
_MAPPED = 1 << 31
_STAMP = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"(bets|prices)-(\d{8}T\d{6}Z)\.db\.zst(?:\.sealed)?")


class BackupError(Exception):
    """No backup was made; the text says why."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy as its name tells of it."""

    database: Name
    taken: datetime  # UTC, whole seconds
    name: str  # of its file

    @classmethod
    def named(cls, name: str) -> "Copy | None":
        """None when it is no copy's name."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        try:
            taken = datetime.strptime(match[2], _STAMP).replace(tzinfo=UTC)
        except ValueError:
            return None
        return cls("bets" if match[1] == "bets" else "prices", taken, name)


@dataclass(frozen=True, slots=True)
class Backup:
    """A finished copy."""

    path: Path
    contents: Contents
    size: int  # bytes, sealed
    copied_s: float  # how long the databases' own state was read, seconds
    seconds: float  # how long all of it took
    removed: tuple[Path, ...] = ()  # older copies beyond the number to keep


def copies_of(database: Name, names: Iterable[str]) -> list[Copy]:
    """The copies of a database among the names, oldest first."""
    found = [copy for name in names if (copy := Copy.named(name)) and copy.database == database]
    return sorted(found, key=lambda copy: (copy.taken, copy.name))


def copies_in(folder: Path, database: Name) -> list[Copy]:
    """The copies of a database in a folder, oldest first; none if there is no folder."""
    if not folder.is_dir():
        return []
    return copies_of(database, [path.name for path in folder.iterdir()])


def back_up(
    path: Path, database: Name, folder: Path, keep: int, now: datetime, key: Key | None = None
) -> Backup:
    """Copy the database at `path` into `folder`, and keep the newest `keep` copies of it.

    Raises BackupError; a failed attempt leaves nothing behind.
    """
    try:
        with alone_in(folder):
            made = copy_into(folder, path, database, now, key)
            removed = tuple(folder / copy.name for copy in copies_in(folder, database)[:-keep])
            for old in removed:
                old.unlink()
    except NoScratchError as error:
        raise BackupError(str(error)) from error
    except OSError as error:
        raise BackupError(f"{folder}: {error.strerror or error}") from error
    return Backup(made.path, made.contents, made.size, made.copied_s, made.seconds, removed)


def copy_into(folder: Path, path: Path, database: Name, now: datetime, key: Key | None) -> Backup:
    """Copy the database at `path` to `<database>-<UTC stamp>.db.zst` in `folder`, `.sealed` if
    there is a key. Be alone there.

    Raises BackupError; a failed attempt leaves nothing behind.
    """
    began = time.perf_counter()
    taken = now.astimezone(UTC).replace(microsecond=0)
    # A name is given once: what is off the machine under it is known by it.
    while (target := _named(folder, database, taken, key)).exists():
        taken += timedelta(seconds=1)
    try:
        with scratch(folder, _SCRATCH) as place:
            copy, sealed = place / "copy.db", place / target.name
            copied_s = _copy(path, database, copy)
            prove(copy, database)
            contents = contents_of(copy, database, int(taken.timestamp()) * 1000)
            sealing.seal(copy, sealed, key, contents.as_label())
            _look_into(sealed, copy, key)
            size = sealed.stat().st_size
            sealed.rename(target)
        sync(folder)
    except UnprovenError as error:
        raise BackupError(f"the copy of {path} {error}") from error
    except (SealError, NoScratchError) as error:
        raise BackupError(f"{path}: {error}") from error
    except OSError as error:
        raise BackupError(f"{folder}: {error.strerror or error}") from error
    return Backup(target, contents, size, copied_s, time.perf_counter() - began)


def _named(folder: Path, database: Name, taken: datetime, key: Key | None) -> Path:
    return folder / f"{database}-{taken.strftime(_STAMP)}.db{sealing.suffix(key)}"


def _copy(path: Path, database: Name, copy: Path) -> float:
    """Copy the database to a new file; how long that took, in s."""
    try:
        check_sqlite_version(apsw.sqlite_lib_version())
        require_room(copy.parent, 2 * size_of(path))
        # Read-only: it can neither write nor checkpoint, whatever happens.
        source = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        with contextlib.closing(source), contextlib.closing(apsw.Connection(str(copy))) as target:
            source.pragma("busy_timeout", 5000)
            source.pragma("mmap_size", _MAPPED)
            target.pragma("synchronous", "off")  # it is worth nothing until it is sealed
            before = last_written(source, database)
            began = time.perf_counter()
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchall()
            with target.backup("main", source, "main") as backup:
                backup.step()
            source.execute("COMMIT")
            took = time.perf_counter() - began
            # A copy is one file that opens anywhere, without -wal and -shm beside it.
            target.pragma("journal_mode", "delete")
            if last_written(target, database) < before:
                raise UnprovenError("lacks what had been written before it was begun")
    except (apsw.Error, DatabaseError) as error:
        reason = error if path.exists() else "there is no such database"
        raise BackupError(f"{path}: {reason}") from error
    return took


def _look_into(sealed: Path, copy: Path, key: Key | None) -> None:
    """Raises UnprovenError or SealError when the sealed file does not hold the copy."""
    if sealing.check(sealed, key).sha256 != sha256_of(copy):
        raise UnprovenError("is another one after it was sealed")
