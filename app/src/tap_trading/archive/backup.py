"""Consistent copies of the database, taken while bets go on.

The copy is made inside a read transaction of the release's own SQLite: it sees one
moment, waits for nobody and is not restarted by writers. It counts as a backup only
after its integrity check and the audit of its ledger, and appears under its name in one
step: a damaged database never pushes out the copies from before the damage.
"""

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import apsw
import zstandard

from tap_trading.base.db import DatabaseError, check_sqlite_version, open_reader
from tap_trading.ledger.audit import audit

_SCRATCH = ".backup-"


class BackupError(Exception):
    """No backup was made; the text says why."""


@dataclass(frozen=True, slots=True)
class Backup:
    """A finished copy."""

    path: Path
    size: int  # bytes, compressed
    removed: tuple[Path, ...]  # older copies beyond the number to keep


def back_up(
    database: Path, folder: Path, keep: int, now: datetime, *, audited: bool = True
) -> Backup:
    """Copy `database` to `folder/<name>-<UTC stamp>.db.zst`, and keep the newest `keep`.

    Only a database of bets has books to audit.
    Raises BackupError; a failed attempt leaves nothing behind.
    """
    stamp = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    target = folder / f"{database.stem}-{stamp}.db.zst"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_SCRATCH}*"):  # of an attempt that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=folder) as scratch:
            copy, packed = Path(scratch, "copy.db"), Path(scratch, "copy.db.zst")
            _copy(database, copy)
            if audited:
                _audit(database, copy)
            _pack(copy, packed)
            packed.rename(target)
        _sync(folder)
        removed = tuple(sorted(folder.glob(f"{database.stem}-*.db.zst"))[:-keep])
        for old in removed:
            old.unlink()
        return Backup(target, target.stat().st_size, removed)
    except OSError as error:
        raise BackupError(f"{folder}: {error.strerror or error}") from error


def _sync(folder: Path) -> None:
    """Make sure that the new name is on disk as well."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pack(copy: Path, packed: Path) -> None:
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    with copy.open("rb") as source, packed.open("wb") as target:
        compressor.copy_stream(source, target)
        target.flush()
        os.fsync(target.fileno())


def _copy(database: Path, copy: Path) -> None:
    try:
        check_sqlite_version(apsw.sqlite_lib_version())
        # Read-only: it can neither write nor checkpoint, whatever happens.
        source = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
        with contextlib.closing(source), contextlib.closing(apsw.Connection(str(copy))) as target:
            source.pragma("busy_timeout", 5000)
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchall()
            with target.backup("main", source, "main") as backup:
                backup.step()
            source.execute("COMMIT")
            # A copy is one file that opens anywhere, without -wal and -shm beside it.
            target.pragma("journal_mode", "delete")
            verdict = target.pragma("integrity_check")
            if verdict != "ok":
                raise BackupError(f"the copy of {database} failed its integrity check: {verdict}")
    except (apsw.Error, DatabaseError) as error:
        reason = error if database.exists() else "there is no such database"
        raise BackupError(f"{database}: {reason}") from error


def _audit(database: Path, copy: Path) -> None:
    try:
        with contextlib.closing(open_reader(copy)) as checked:
            report = audit(checked)
    except (apsw.Error, DatabaseError) as error:
        raise BackupError(f"{database}: {error}") from error
    if not report.clean:
        raise BackupError(
            f"the copy of {database} failed its audit (findings: {report.found}), the first:"
            f" {report.findings[0]}; see all with: tap audit"
        )
