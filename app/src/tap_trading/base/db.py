"""SQLite connections: one factory for the writer, one for readers, and the writers' lock.

Whoever writes or checkpoints does it through `apsw`, which carries a current SQLite:
releases before 3.51.3 can lose committed data in WAL mode. Readers open the file
read-only with the standard library (through aiosqlite). Both factories set the plan's
pragmas and read each one back, because SQLite ignores some of them silently.
"""

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import quote

import aiosqlite
import apsw

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
    check_sqlite_version(apsw.sqlite_lib_version())
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    try:
        connection = apsw.Connection(str(path), flags=flags, statementcachesize=_CACHED_STATEMENTS)
    except apsw.Error as error:
        raise DatabaseError(_why(path, error)) from error
    try:
        for name, wanted in WRITER_PRAGMAS.items():
            connection.pragma(name, wanted)
            _verify(path, name, connection.pragma(name), wanted)
    except apsw.Error as error:
        connection.close()
        raise DatabaseError(_why(path, error)) from error
    except DatabaseError:
        connection.close()
        raise
    return connection


def _verify(path: Path, name: str, found: object, wanted: int | str) -> None:
    if found != wanted:
        raise DatabaseError(f"{path}: PRAGMA {name} is {found!r}, not {wanted!r}")


async def open_reader(path: Path) -> aiosqlite.Connection:
    """Open `path` for reading only, pragmas set and verified. Raises DatabaseError."""
    uri = f"file:{quote(str(path))}?mode=ro"
    try:
        # First without a thread: aiosqlite leaves its own behind when it cannot open the file,
        # and that one complains on standard error once the event loop is gone.
        sqlite3.connect(uri, uri=True).close()
        connection = await aiosqlite.connect(
            uri, uri=True, isolation_level=None, cached_statements=_CACHED_STATEMENTS
        )
    except aiosqlite.Error as error:
        raise DatabaseError(_why(path, error)) from error
    try:
        for name, wanted in READER_PRAGMAS.items():
            await connection.execute(f"PRAGMA {name} = {wanted}")
            async with connection.execute(f"PRAGMA {name}") as cursor:
                row = await cursor.fetchone()
            _verify(path, name, row[0] if row else None, wanted)
    except aiosqlite.Error as error:
        await connection.close()
        raise DatabaseError(_why(path, error)) from error
    except DatabaseError:
        await connection.close()
        raise
    return connection


class ReaderPool:
    """A few read-only connections, each lent to one question at a time."""

    def __init__(self, path: Path, size: int = 2) -> None:
        self._path = path
        self._size = size
        self._idle: asyncio.LifoQueue[aiosqlite.Connection] = asyncio.LifoQueue()
        self._opened: list[aiosqlite.Connection] = []

    async def open(self) -> None:
        """Open all connections. Raises DatabaseError."""
        for _ in range(self._size):
            connection = await open_reader(self._path)
            self._opened.append(connection)
            self._idle.put_nowait(connection)

    async def close(self) -> None:
        """Close them all."""
        for connection in self._opened:
            await connection.close()
        self._opened.clear()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[aiosqlite.Connection]:
        """Borrow a connection; waits while all are lent."""
        connection = await self._idle.get()
        try:
            yield connection
        finally:
            self._idle.put_nowait(connection)


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
        """Forget the lock file."""
        os.close(self._fd)

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
                pause = min(pause * 2, 0.02)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
