"""Connections: the plan's pragmas hold, old SQLite is refused, one writer at a time."""

import asyncio
import subprocess
import threading
from pathlib import Path

import apsw
import pytest
from tests.conftest import process_environment, python

from tap_trading.base import db
from tap_trading.base.db import DatabaseError, ReaderPool, WriterLock, open_reader, open_writer


def test_a_writer_has_every_pragma_of_the_plan(tmp_path: Path) -> None:
    connection = open_writer(tmp_path / "new.db", create=True)
    found = {name: connection.pragma(name) for name in db.WRITER_PRAGMAS}
    connection.close()
    assert found == {
        "auto_vacuum": 2,
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "recursive_triggers": 1,
        "busy_timeout": 5000,
        "cache_size": -64000,
        "temp_store": 2,
        "mmap_size": 268435456,
    }


def test_a_reader_has_its_pragmas_and_cannot_write(database: Path) -> None:
    reader = open_reader(database)
    for name, wanted in db.READER_PRAGMAS.items():
        assert reader.pragma(name) == wanted
    with pytest.raises(apsw.ReadOnlyError):
        reader.execute("DELETE FROM users")
    reader.close()


def test_opening_waits_for_no_other_writer_and_writes_nothing(database: Path) -> None:
    other = open_writer(database)
    other.execute("BEGIN IMMEDIATE")
    version = other.pragma("data_version")
    open_writer(database).close()
    open_reader(database).close()
    other.execute("ROLLBACK")
    assert other.pragma("data_version") == version
    other.close()


def test_a_file_without_incremental_vacuum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(DatabaseError, match="PRAGMA auto_vacuum is 0, not 2"):
        open_writer(path)


@pytest.mark.parametrize("version", ["3.40.1", "3.51.2", "3.7.17"])
def test_a_sqlite_that_can_lose_data_is_refused(version: str) -> None:
    with pytest.raises(DatabaseError, match=rf"SQLite {version} can lose data"):
        db.check_sqlite_version(version)


def test_our_sqlite_is_safe() -> None:
    db.check_sqlite_version("3.51.3")
    db.check_sqlite_version(apsw.sqlite_lib_version())


def test_a_missing_database_is_said_so(tmp_path: Path) -> None:
    for opened in (open_reader, open_writer):
        with pytest.raises(DatabaseError, match=r"there is no database at .*no\.db; create it"):
            opened(tmp_path / "no.db")
    assert not (tmp_path / "no.db").exists()


async def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "bets.db"
    path.write_bytes(b"this is not a database at all, whatever its name" * 100)
    with pytest.raises(DatabaseError, match="not a database"):
        open_writer(path)


async def test_the_pool_asks_on_all_its_connections_at_once(database: Path) -> None:
    pool = ReaderPool(database, size=2)
    await pool.open()
    both = threading.Barrier(2, timeout=5)

    def ask(connection: apsw.Connection) -> object:
        both.wait()
        return connection.execute("SELECT count(*) FROM users").fetchone()

    assert await asyncio.gather(pool.run(ask), pool.run(ask)) == [(1,), (1,)]
    with pytest.raises(DatabaseError, match="no such table"):
        await pool.run(lambda connection: connection.execute("SELECT * FROM nope").fetchall())
    await pool.close()


async def test_readers_see_every_commit_also_after_the_writer_was_reopened(database: Path) -> None:
    """Two copies of SQLite in a process made readers blind once the writer had closed."""
    pool = ReaderPool(database, size=1)
    await pool.open()

    def count(connection: apsw.Connection) -> object:
        return connection.execute("SELECT count(*) FROM users").fetchone()[0]

    for number in range(3):
        writer = open_writer(database)
        writer.execute(
            "INSERT INTO users VALUES (?, ?, 0, 1, 0, 0, 0, 0)", (f"u{number}", f"u{number}")
        )
        writer.close()
        assert await pool.run(count) == number + 2
    await pool.close()


def test_closing_a_lock_twice_closes_nobody_elses_file(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path / "bets.db")
    lock.close()
    with (tmp_path / "other").open("w") as other:
        lock.close()
        other.write("still open")


HOLD = """
import sys, time
from pathlib import Path
from tap_trading.base.db import WriterLock
with WriterLock(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_keeps_other_processes_out_and_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "bets.db"
    with subprocess.Popen(
        python("-c", HOLD, str(path)), stdout=subprocess.PIPE, env=process_environment({})
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        lock = WriterLock(path)
        with pytest.raises(DatabaseError, match="another process has held"), lock.held(wait_s=0.1):
            pass
        holder.kill()
        with lock.held(wait_s=5):
            pass
        lock.close()


def test_a_lock_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="No such file or directory"):
        WriterLock(tmp_path / "nowhere" / "bets.db")
