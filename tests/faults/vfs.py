"""What a power cut leaves of a SQLite database: every write recorded, every loss allowed.

`Recorder` is a VFS that lets SQLite work as usual and notes, in order, what it writes,
truncates, syncs, creates and deletes. `Disk` walks along such a record and tells what may
be on the disk when the power fails there: all that was synced, and of the rest any part, in
any order, each write torn between any two sectors.
"""
# SQLite's names for what a VFS does.
# The methods have the names that apsw gives them.
# ruff: noqa: N802

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import apsw

_SECTOR = 512  # bytes that a disk writes wholly or not at all

_RECORDED = apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL

FileName = str | apsw.URIFilename | None


class Write(NamedTuple):
    """Bytes written to a file, which has a number like an inode's."""

    file: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    """A file cut to `size` bytes."""

    file: int
    size: int


class Sync(NamedTuple):
    """Everything done to a file before this is on the disk."""

    file: int


class Create(NamedTuple):
    """A new, empty file under this name."""

    file: int
    name: str


class Delete(NamedTuple):
    """The name is gone; with `synced`, on the disk as well."""

    name: str
    synced: bool


Change = Write | Truncate
Step = Change | Sync | Create | Delete


class Recorder(apsw.VFS):
    """Records what is done to the databases of `folder`; it is SQLite's default VFS until it
    is unregistered.

    Its files have no xFetch, so SQLite does not map them; what is written is the same. Shared
    memory is the base VFS's: nothing of it outlives a power cut.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[Step] = []
        #: Held from before a step until it is noted: the record has them in their real order.
        self.lock = threading.Lock()
        self._number_of: dict[str, int] = {}
        self._files = 0
        #: Number, name and content of the files that were on the disk at the beginning.
        self.before = [
            (self._new(path.name), path.name, path.read_bytes())
            for path in folder.iterdir()
            if path.is_file()
        ]
        super().__init__(f"recorder {folder}", base="unix", makedefault=True)

    def xOpen(self, name: FileName, flags: list[int]) -> apsw.VFSFile:
        """SQLite opens a file, creating it if need be."""
        path = Path(name.filename() if isinstance(name, apsw.URIFilename) else name or "")
        if path.parent != self.folder or not flags[0] & _RECORDED:
            return apsw.VFSFile("unix", name, flags)
        with self.lock:
            existed = path.exists()
            file = _RecordedFile(self, name, flags)
            if not existed:
                self.steps.append(Create(self._new(path.name), path.name))
            file.number = self._number_of[path.name]
        return file

    def xDelete(self, filename: str, syncdir: bool) -> None:
        """SQLite deletes a file."""
        with self.lock:
            super().xDelete(filename, syncdir)
            self.steps.append(Delete(Path(filename).name, synced=syncdir))

    def _new(self, name: str) -> int:
        self._files += 1
        self._number_of[name] = self._files
        return self._files


class _RecordedFile(apsw.VFSFile):
    def __init__(self, recorder: Recorder, name: FileName, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self._recorder = recorder
        self.number = 0

    def xWrite(self, data: bytes, offset: int) -> None:
        with self._recorder.lock:
            super().xWrite(data, offset)
            self._recorder.steps.append(Write(self.number, offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:
        with self._recorder.lock:
            super().xTruncate(newsize)
            self._recorder.steps.append(Truncate(self.number, newsize))

    def xSync(self, flags: int) -> None:
        with self._recorder.lock:
            super().xSync(flags)
            self._recorder.steps.append(Sync(self.number))


@dataclass(slots=True)
class _File:
    """A file: what is surely on the disk, and what was done to it since."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Change] = field(default_factory=list)

    def sync(self) -> None:
        _apply(self.durable, self.pending)
        self.pending.clear()


class Disk:
    """What the disk may hold, at one point of a record after the other."""

    def __init__(self, recorder: Recorder) -> None:
        self._steps = recorder.steps
        self._at = 0
        self._files = {number: _File(bytearray(data)) for number, _, data in recorder.before}
        self._names: dict[str, int | None] = {name: number for number, name, _ in recorder.before}
        self._pending_names: list[Create | Delete] = []

    def advance(self, position: int) -> None:
        """Go on until so many steps were done."""
        for step in self._steps[self._at : position]:
            self._do(step)
        self._at = position

    def after_power_cut(self, chance: random.Random) -> dict[str, bytes]:
        """One of the many states the disk may be in when the power fails now: file contents
        by name.
        """
        lose = chance.choice(_LOSSES)
        state = {}
        for name, number in self._some_names(chance).items():
            if number is None:
                continue
            file = self._files[number]
            content = bytearray(file.durable)
            # Half of the time each file fares differently: one whole, another without a byte.
            lost = lose if chance.random() < 0.5 else chance.choice(_LOSSES)
            _apply(content, lost(file.pending, chance))
            state[name] = bytes(content)
        return state

    def _do(self, step: Step) -> None:
        match step:
            case Write() | Truncate():
                self._files[step.file].pending.append(step)
            case Sync():
                self._files[step.file].sync()
                # SQLite syncs a new file's folder together with the file.
                if any(c.file == step.file for c in self._pending_names if isinstance(c, Create)):
                    self._sync_names()
            case Create():
                self._files[step.file] = _File()
                self._pending_names.append(step)
            case Delete():
                self._pending_names.append(step)
                if step.synced:
                    self._sync_names()

    def _sync_names(self) -> None:
        for change in self._pending_names:
            self._names[change.name] = change.file if isinstance(change, Create) else None
        self._pending_names.clear()

    def _some_names(self, chance: random.Random) -> dict[str, int | None]:
        """Each name with the file it stood for at some moment since it was surely on disk."""
        histories = {name: [number] for name, number in self._names.items()}
        for change in self._pending_names:
            number = change.file if isinstance(change, Create) else None
            histories.setdefault(change.name, [None]).append(number)
        return {name: chance.choice(history) for name, history in histories.items()}


def _apply(content: bytearray, changes: Iterable[Change]) -> None:
    for change in changes:
        if isinstance(change, Truncate):
            del content[change.size :]
            content.extend(bytes(change.size - len(content)))
            continue
        end = change.offset + len(change.data)
        if len(content) < change.offset:
            content.extend(bytes(change.offset - len(content)))
        content[change.offset : end] = change.data


# What of the changes that nobody waited for reaches the disk, and in which order.

Loss = Callable[[Sequence[Change], random.Random], Iterable[Change]]


def _all(pending: Sequence[Change], _chance: random.Random) -> Iterable[Change]:
    return ()


def _nothing(pending: Sequence[Change], _chance: random.Random) -> Iterable[Change]:
    return pending


def _the_end(pending: Sequence[Change], chance: random.Random) -> Iterable[Change]:
    """The last ones; the one before them is torn."""
    kept = chance.randint(0, len(pending))
    torn = [*_sectors(pending[kept : kept + 1])]
    return [*pending[:kept], *torn[: chance.randint(0, len(torn))]]


def _some_writes(pending: Sequence[Change], chance: random.Random) -> Iterable[Change]:
    return _some(list(pending), chance)


def _some_sectors(pending: Sequence[Change], chance: random.Random) -> Iterable[Change]:
    return _some(list(_sectors(pending)), chance)


def _some(changes: list[Change], chance: random.Random) -> Iterable[Change]:
    share = chance.choice((0.1, 0.5, 0.9))
    kept = [change for change in changes if chance.random() < share]
    if chance.random() < 0.5:
        chance.shuffle(kept)
    return kept


def _sectors(changes: Iterable[Change]) -> Iterator[Change]:
    """The same changes, the writes cut at the disk's sectors."""
    for change in changes:
        if isinstance(change, Truncate):
            yield change
            continue
        done = 0
        while done < len(change.data):
            at = change.offset + done
            size = _SECTOR - at % _SECTOR
            yield Write(change.file, at, change.data[done : done + size])
            done += size


_LOSSES: tuple[Loss, ...] = (_all, _nothing, _the_end, _some_writes, _some_sectors)
