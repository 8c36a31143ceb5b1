"""Archives in cold storage: every one gets there, is read back, and only then may be missing
here.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from tap_trading.archive import sealing
from tap_trading.archive.checking import check
from tap_trading.archive.errors import ArchiveError
from tap_trading.archive.moving import Mover
from tap_trading.archive.objects import ObjectStore, StoreError
from tap_trading.archive.scratch import scratch
from tap_trading.archive.sealing import Key, SealError
from tap_trading.archive.shelf import Shelf
from tap_trading.archive.weeks import Week
from tap_trading.base.db import DatabaseError, open_reader
from tap_trading.base.files import sha256_of

#: So many archives stay on the machine; older ones are in cold storage alone.
KEPT = 4

_SCRATCH = ".cold-"
_ALL = "SELECT week, sha256, stored_at IS NOT NULL, is_local FROM archives ORDER BY week"


@dataclass(frozen=True, slots=True)
class Known:
    """An archive as the books know it."""

    week: Week
    sha256: str
    is_stored: bool  # in cold storage, and read back from there
    is_local: bool


@dataclass(slots=True)
class Report:
    """What was done."""

    stored: list[Week] = field(default_factory=list)
    removed: list[Week] = field(default_factory=list)  # from this machine


def known(books: Path) -> list[Known]:
    """All archives, the oldest first. Raises ArchiveError."""
    try:
        with closing(open_reader(books)) as connection:
            return [
                Known(Week.parse(week), sha256, bool(is_stored), bool(is_local))
                for week, sha256, is_stored, is_local in connection.execute(_ALL)
            ]
    except (apsw.Error, DatabaseError, ValueError) as error:
        raise ArchiveError(f"{books}: {error}") from error


def key_of(week: Week, key: Key | None) -> str:
    """Under which key an archive is stored."""
    return f"archive/bets_{week.name}.db{sealing.suffix(key)}"


def store(
    books: Path,
    shelf: Shelf,
    store: ObjectStore,
    key: Key | None,
    now: int,
    *,
    keep: int = KEPT,
) -> Report:
    """Bring every archive to cold storage, and remove those from here that are older than the
    newest `keep`, each proven once more by reading it back. `now` is in Unix ms.

    Raises ArchiveError; what is not proven stays here.
    """
    report = Report()
    with Mover(books) as mover:
        for each in known(books):
            if not each.is_stored:
                _bring(each, shelf, store, key)
                mover.mark_stored(each.week, now)
                report.stored.append(each.week)
        for each in known(books)[:-keep]:
            path = shelf.path(each.week)
            if each.is_local:
                _prove(each, shelf, store, key)
                mover.mark_removed(each.week)
                report.removed.append(each.week)
            path.unlink(missing_ok=True)
    return report


def fetch(books: Path, week: Week, store: ObjectStore, key: Key | None, target: Path) -> None:
    """Make `target` the archive of a week from cold storage, proven. Raises ArchiveError."""
    found = [each for each in known(books) if each.week == week]
    if not found:
        raise ArchiveError(f"{week.name} was never archived")
    with _told(), scratch(target.parent, _SCRATCH) as folder:
        unsealed = _fetched(found[0], store, key, folder)
        check(unsealed)
        unsealed.rename(target)


def _bring(each: Known, shelf: Shelf, store: ObjectStore, key: Key | None) -> None:
    path = shelf.path(each.week)
    if not path.exists():
        raise ArchiveError(f"{path} is missing, and was never brought to {store}")
    if sha256_of(path) != each.sha256:
        raise ArchiveError(f"{path} is not what it was when it was made")
    with _told(), scratch(shelf.folder, _SCRATCH) as folder:
        sealed = folder / path.name
        sealing.seal(path, sealed, key, label=each.week.name.encode())
        store.put(sealed, key_of(each.week, key), "STANDARD_IA")
    _prove(each, shelf, store, key)


def _prove(each: Known, shelf: Shelf, store: ObjectStore, key: Key | None) -> None:
    """Read it back."""
    with _told(), scratch(shelf.folder, _SCRATCH) as folder:
        _fetched(each, store, key, folder)


def _fetched(each: Known, store: ObjectStore, key: Key | None, folder: Path) -> Path:
    stored, unsealed = folder / "stored", folder / "unsealed"
    name = key_of(each.week, key)
    store.fetch(name, stored)
    opened = sealing.unseal(stored, unsealed, key)
    stored.unlink()
    if opened.sha256 != each.sha256:
        raise ArchiveError(f"{store}{name} is not the archive that was stored there")
    return unsealed


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (StoreError, SealError, OSError) as error:
        raise ArchiveError(str(error)) from error
