"""Copies made databases again, and proven to be what was copied."""

from dataclasses import dataclass
from pathlib import Path

from tap_trading.archive import sealing
from tap_trading.archive.backup import Copy, copies_in
from tap_trading.archive.contents import Contents, Name, UnprovenError, compare, contents_of, prove
from tap_trading.archive.objects import ObjectStore, StoreError
from tap_trading.archive.offsite import PREFIX, key_of, stored_copies
from tap_trading.archive.scratch import NoScratchError, require_room, scratch
from tap_trading.archive.sealing import Key, SealError
from tap_trading.base.files import sync

_SCRATCH = ".restore-"


class RestoreError(Exception):
    """Nothing was restored; the text names the copy and says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where copies are restored from."""

    folder: Path  # of the copies on the machine
    store: ObjectStore | None  # None: from that folder, else from the storage

    def copies(self, database: Name) -> list[Copy]:
        """All copies of a database, oldest first. Raises RestoreError."""
        if self.store is None:
            return copies_in(self.folder, database)
        try:
            stored = {item.key: item for item in self.store.list(PREFIX)}
        except StoreError as error:
            raise RestoreError(str(error)) from error
        return stored_copies(stored, database)

    def __str__(self) -> str:
        return str(self.folder if self.store is None else self.store)


def newest(source: Source, database: Name) -> Copy:
    """The newest copy of a database. Raises RestoreError when there is none."""
    copies = source.copies(database)
    if not copies:
        raise RestoreError(f"there is no copy of {database} in {source}")
    return copies[-1]


def restore(source: Source, copy: Copy, target: Path, key: Key | None) -> Contents:
    """Make the copy a database at `target`, where nothing may be; it is there once it is proven.

    Raises RestoreError; nothing is at `target` then.
    """
    where = source.folder / copy.name if source.store is None else f"{source}{key_of(copy)}"
    if target.exists():
        raise RestoreError(f"{target} is there already; name a new file")
    try:
        with scratch(target.parent, f"{_SCRATCH}{target.name}-") as place:
            restored = place / "restored.db"
            contents = _restored(source, copy, restored, key)
            restored.rename(target)
        sync(target.parent)
    except UnprovenError as error:
        raise RestoreError(f"{where} {error}") from error
    except (SealError, StoreError, NoScratchError) as error:
        raise RestoreError(f"{where}: {error}") from error
    except OSError as error:
        raise RestoreError(f"{where}: {target}: {error.strerror or error}") from error
    return contents


def _restored(source: Source, copy: Copy, restored: Path, key: Key | None) -> Contents:
    sealed = source.folder / copy.name
    if source.store is not None:
        sealed = restored.with_name(copy.name)
        head = source.store.head(key_of(copy))
        require_room(sealed.parent, head[0].size if head else 0)
        source.store.fetch(key_of(copy), sealed)
    said = Contents.from_label(sealing.check(sealed, key).label)
    taken_at = int(copy.taken.timestamp()) * 1000
    if (said.database, said.taken_at) != (copy.database, taken_at):
        raise UnprovenError(
            f"is another copy than its name says: of {said.database}, taken at"
            f" {said.taken_at} (Unix ms)"
        )
    require_room(restored.parent, said.size)
    sealing.unseal(sealed, restored, key)
    prove(restored, copy.database)
    compare(said, contents_of(restored, copy.database, taken_at))
    return said
