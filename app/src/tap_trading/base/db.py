"""SQLite connections: one factory for the writer, one for readers, and the writers' lock.

All of them use `apsw`, which carries a current SQLite: releases before 3.51.3 can lose
committed data in WAL mode, and two copies of SQLite in one process do not see each
other's locks, so not even a reader may use the standard library's. Both factories set
the plan's pragmas and read each one back, because SQLite ignores some of them silently.
"""

import asyncio
import fcntl
import os
import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import apsw

T = TypeVar("T")

#: The first release without the WAL-reset bug.
OLDEST_SAFE_SQLITE = (3, 51, 3)

_WAL_FULL = 2  # synchronous=FULL: an acknowledged commit survives a power cut
_INCREMENTAL = 2

#: Per connection, in the order they are set. auto_vacuum comes first: on a new file it
#: must be there before WAL is, else it stays off without a word.
WRITER_PRAGMAS: dict[str, int | str] = {
    "auto_vacuum": _INCREMENTAL,
    "journal_mode": "wal",
    "synchronous": _WAL_FULL,
    "foreign_keys": 1,
    "recursive_triggers": 1,  # REPLACE deletes, and the ledger's trigger has to hear of it
    "busy_timeout": 5000,  # ms
    "cache_size": -64000,  # KiB when negative
    "temp_store": 2,  # memory
    "mmap_size": 268435456,  # bytes
}
READER_PRAGMAS: dict[str, int | str] = {
    "query_only": 1,
    "busy_timeout": 5000,
    "cache_size": -64000,
    "temp_store": 2,
    "mmap_size": 268435456,
}

_CACHED_STATEMENTS = 256
_LOCK_WAIT_S = 5.0
#: A writer that waits for another one's transaction looks this often at least.
_LONGEST_PAUSE_S = 0.002


class DatabaseError(Exception):
    """The database cannot be opened, read or written; the text says why."""


def _why(path: Path, error: Exception) -> str:
    if not path.exists():
        return f"there is no database at {path}; create it with: tap migrate"
    return f"{path}: {error}"


def check_sqlite_version(version: str) -> None:
    """Refuse a SQLite that could lose data. Raises DatabaseError."""
    found = tuple(int(part) for part in version.split("."))
    if found < OLDEST_SAFE_SQLITE:
        wanted = ".".join(map(str, OLDEST_SAFE_SQLITE))
        raise DatabaseError(f"SQLite {version} can lose data in WAL mode; {wanted} is needed")


def open_writer(path: Path, *, create: bool = False) -> apsw.Connection:
    """Open `path` for writing, all pragmas set and verified.

    Hold the `WriterLock` of the same path around every transaction, checkpoint and the
    connection's closing. Raises DatabaseError.
    """
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    return _open(path, flags, WRITER_PRAGMAS)


def _verify(path: Path, name: str, found: object, wanted: int | str) -> None:
    if found != wanted:
        raise DatabaseError(f"{path}: PRAGMA {name} is {found!r}, not {wanted!r}")


def open_reader(path: Path) -> apsw.Connection:
    """Open `path` for reading only, all pragmas set and verified. Raises DatabaseError."""
    return _open(path, apsw.SQLITE_OPEN_READONLY, READER_PRAGMAS)


def _open(path: Path, flags: int, pragmas: dict[str, int | str]) -> apsw.Connection:
    check_sqlite_version(apsw.sqlite_lib_version())
    try:
        connection = apsw.Connection(str(path), flags=flags, statementcachesize=_CACHED_STATEMENTS)
    except apsw.Error as error:
        raise DatabaseError(_why(path, error)) from error
    try:
        for name, wanted in pragmas.items():
            # Setting auto_vacuum writes, even when it is what it was: another writer may be at it.
            if connection.pragma(name) != wanted:
                connection.pragma(name, wanted)
            _verify(path, name, connection.pragma(name), wanted)
    except apsw.Error as error:
        connection.close()
        raise DatabaseError(_why(path, error)) from error
    except DatabaseError:
        connection.close()
        raise
    return connection


class ReaderPool:
    """A few read-only connections, each in a thread of its own, so that no question blocks
    the event loop or the writer.
    """

    def __init__(self, path: Path, size: int = 2) -> None:
        self._path = path
        self._size = size
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="reader")
        self._idle: queue.LifoQueue[apsw.Connection] = queue.LifoQueue()

    async def open(self) -> None:
        """Open all connections. Raises DatabaseError."""
        for _ in range(self._size):
            self._idle.put(await asyncio.to_thread(open_reader, self._path))

    async def close(self) -> None:
        """Close them all."""
        self._threads.shutdown()
        while not self._idle.empty():
            connection = self._idle.get_nowait()
            try:
                connection.close()
            except apsw.Error:  # it only read: nothing is lost with it
                connection.close(force=True)

    async def run(self, question: Callable[[apsw.Connection], T]) -> T:
        """Ask `question` on a connection of the pool.

        Raises DatabaseError when the database cannot be read.
        """

        def ask() -> T:
            connection = self._idle.get()
            try:
                return question(connection)
            except apsw.Error as error:
                raise DatabaseError(_why(self._path, error)) from error
            finally:
                self._idle.put(connection)

        return await asyncio.get_running_loop().run_in_executor(self._threads, ask)


class WriterLock:
    """Exactly one writer of a database at any time, across processes.

    An exclusive flock on `<database>.lock`: the kernel gives it up with the process, so
    a killed writer can neither keep it nor come back with it. Held per batch, that is
    around BEGIN … COMMIT and any checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".lock")
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        except OSError as error:
            raise DatabaseError(f"{self._path}: {error.strerror}") from error

    def close(self) -> None:
        """Forget the lock file; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @contextmanager
    def held(self, wait_s: float = _LOCK_WAIT_S) -> Iterator[None]:
        """Hold the lock; blocks the thread for up to `wait_s` seconds.

        Raises DatabaseError when another process still holds it then.
        """
        deadline = time.monotonic() + wait_s
        pause = 0.0005
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise DatabaseError(
                        f"another process has held {self._path} for {wait_s:g} s"
                    ) from None
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
