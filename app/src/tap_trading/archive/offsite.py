"""Copies off the machine: every one that is not there yet is sent, and read back before it
counts. What fails harms no copy on the machine, and is tried again by the next run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tap_trading.archive.backup import Copy, copies_in, copies_of
from tap_trading.archive.contents import NAMES, Name
from tap_trading.archive.objects import AlteredError, ObjectStore, StoredObject, StoreError
from tap_trading.archive.retention import Retention, kept
from tap_trading.archive.scratch import NoScratchError, alone_in
from tap_trading.base.files import sha256_of

PREFIX = "backups/"
#: Those from before migrations have a folder of their own, here and there.
BEFORE_MIGRATIONS = "before-migrations"

#: Beside the copies: which of them were read back, and with which SHA-256.
_PROVEN = ".offsite.json"


@dataclass(slots=True)
class Report:
    """What came of sending copies."""

    sent: list[str] = field(default_factory=list)  # keys that are proven there since this run
    newest: dict[Name, Copy] = field(default_factory=dict)  # the newest that is proven there
    pending: list[str] = field(default_factory=list)  # keys that are not there yet
    removed: list[str] = field(default_factory=list)
    may_not_remove: bool = False
    problems: list[str] = field(default_factory=list)  # a sentence each


def key_of(copy: Copy, prefix: str = PREFIX) -> str:
    """Where a copy is in the storage."""
    return f"{prefix}{copy.database}/{copy.name}"


def stored_copies(stored: Mapping[str, StoredObject], database: Name) -> list[Copy]:
    """The copies of a database among the objects under `PREFIX`, by key; oldest first."""
    folder = f"{PREFIX}{database}/"
    return copies_of(
        database, [key.removeprefix(folder) for key in stored if key.startswith(folder)]
    )


def send(folder: Path, store: ObjectStore, retentions: Mapping[Name, Retention]) -> Report:
    """Send what is not there yet, newest first, and remove what is there for too long.

    Be alone in `folder`. It raises nothing: what went wrong is in the report.
    """
    report = Report()
    stored, copies = _send(folder, store, PREFIX, report)
    try:
        for name in NAMES if stored is not None else ():
            _remove_old(name, copies, store, stored or {}, retentions[name], report)
    except StoreError as error:
        report.problems.append(str(error))
    return report


def send_before_migrations(folder: Path, store: ObjectStore, report: Report) -> None:
    """Send the copies from before migrations too, which lie in a folder inside `folder`. Nothing
    is removed there: they are few, and the bucket's rules end them.

    It raises nothing: what went wrong is in the report.
    """
    inside = folder / BEFORE_MIGRATIONS
    if not inside.is_dir():
        return
    found = Report()
    try:
        with alone_in(inside):
            _send(inside, store, f"{PREFIX}{BEFORE_MIGRATIONS}/", found)
    except NoScratchError:
        return  # a deployment is making one; the next run sends it
    except OSError as error:
        found.problems.append(f"{inside}: {error.strerror}")
    report.sent += found.sent
    report.pending += found.pending
    report.problems += found.problems


def _send(
    folder: Path, store: ObjectStore, prefix: str, report: Report
) -> tuple[dict[str, StoredObject] | None, list[Copy]]:
    """Send what is in the folder; what the storage had before, None if something failed."""
    copies = sorted(
        (copy for name in NAMES for copy in copies_in(folder, name)),
        key=lambda copy: copy.taken,
        reverse=True,  # after a long failure the newest are worth the most
    )
    keys = {copy: key_of(copy, prefix) for copy in copies}
    report.pending = list(keys.values())
    proven = _Proven(folder)
    stored = None
    try:
        found = {item.key: item for item in store.list(prefix)}
        for copy, key in keys.items():
            _bring(folder / copy.name, copy, key, store, found, proven, report)
        stored = found
    except (StoreError, OSError) as error:
        report.problems.append(str(error))
    proven.forget_all_but(report, set(keys.values()))
    return stored, copies


def prune(folder: Path, store: ObjectStore) -> list[Copy]:
    """Remove copies here that were read back from the storage and are still listed there, and
    return them. The newest of each database stays.

    Be alone in `folder`. Raises StoreError or OSError.
    """
    proven = _Proven(folder)
    stored = {item.key: item.size for item in store.list(PREFIX)}
    removed = []
    for name in NAMES:
        for copy in copies_in(folder, name)[:-1]:
            path, key = folder / copy.name, key_of(copy)
            if key in proven and stored.get(key) == path.stat().st_size:
                path.unlink()
                removed.append(copy)
    return removed


class _Proven:
    """What is known to be there unharmed; without it, everything is read back once more."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _PROVEN
        self._sums: dict[str, str] = {}
        try:
            found = json.loads(self._path.read_text("utf-8"))
            self._sums = {str(key): str(value) for key, value in found.items()}
        except (OSError, ValueError, AttributeError):
            pass

    def __contains__(self, key: str) -> bool:
        return key in self._sums

    def add(self, key: str, sha256: str) -> None:
        """Raises OSError."""
        self._sums[key] = sha256
        self._write()

    def forget_all_but(self, report: Report, wanted: set[str]) -> None:
        """Copies that are no longer here need no note."""
        if set(self._sums) <= wanted:
            return
        self._sums = {key: value for key, value in self._sums.items() if key in wanted}
        try:
            self._write()
        except OSError as error:
            report.problems.append(f"{self._path}: {error.strerror}")

    def _write(self) -> None:
        written = self._path.with_name(f"{_PROVEN}.new")
        written.write_text(json.dumps(self._sums, indent=1))
        written.replace(self._path)


def _bring(
    path: Path,
    copy: Copy,
    key: str,
    store: ObjectStore,
    stored: Mapping[str, StoredObject],
    proven: _Proven,
    report: Report,
) -> None:
    """Make sure that a copy is there. Raises StoreError when others would fare no better."""
    there = key in stored and stored[key].size == path.stat().st_size
    try:
        if not there or key not in proven:
            sha256 = sha256_of(path)
            if not (there and _is_whole(store, key, sha256)):
                store.put(path, key, "STANDARD")
                store.verify(key, sha256)
            proven.add(key, sha256)
            report.sent.append(key)
    except AlteredError as error:
        report.problems.append(str(error))
        return
    report.pending.remove(key)
    if copy.database not in report.newest:
        report.newest[copy.database] = copy


def _is_whole(store: ObjectStore, key: str, sha256: str) -> bool:
    """Whether it is there already, put by a run that was ended before it had read it back."""
    try:
        store.verify(key, sha256)
    except AlteredError:
        return False
    return True


def _remove_old(
    name: Name,
    copies: list[Copy],
    store: ObjectStore,
    stored: Mapping[str, StoredObject],
    retention: Retention,
    report: Report,
) -> None:
    """Keep there what is kept here. Raises StoreError."""
    mine = [copy for copy in copies if copy.database == name]
    here = {key_of(copy) for copy in mine}
    if not here or here & set(report.pending):
        return  # first what is missing, then what is too much
    there = stored_copies(stored, name)
    stays = kept([copy.taken for copy in (*there, *mine)], retention)
    for copy in there:
        if copy.taken in stays or key_of(copy) in here or report.may_not_remove:
            continue
        if store.remove(key_of(copy)):
            report.removed.append(key_of(copy))
        else:
            report.may_not_remove = True
