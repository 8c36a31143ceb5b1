"""Connections: the plan's pragmas hold, old SQLite is refused, one writer at a time."""

import asyncio
import sqlite3
import subprocess
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
        "busy_timeout": 5000,
        "cache_size": -64000,
        "temp_store": 2,
        "mmap_size": 268435456,
    }


async def test_a_reader_has_its_pragmas_and_cannot_write(database: Path) -> None:
    reader = await open_reader(database)
    for name, wanted in db.READER_PRAGMAS.items():
        async with reader.execute(f"PRAGMA {name}") as cursor:
            assert await cursor.fetchone() == (wanted,)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await reader.execute("DELETE FROM users")
    await reader.close()


def test_a_file_without_incremental_vacuum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
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


async def test_a_missing_database_is_said_so(tmp_path: Path) -> None:
    for opened in (
        open_reader(tmp_path / "no.db"),
        asyncio.to_thread(open_writer, tmp_path / "no.db"),
    ):
        with pytest.raises(DatabaseError, match=r"there is no database at .*no\.db; create it"):
            await opened
    assert not (tmp_path / "no.db").exists()


async def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "bets.db"
    path.write_bytes(b"this is not a database at all, whatever its name" * 100)
    with pytest.raises(DatabaseError, match="not a database"):
        open_writer(path)


async def test_the_pool_lends_each_connection_once(database: Path) -> None:
    pool = ReaderPool(database, size=2)
    await pool.open()
    async with pool.connection() as one, pool.connection() as two:
        assert one is not two
        waiting = asyncio.create_task(_borrow(pool))
        await asyncio.sleep(0.02)
        assert not waiting.done()
    assert await waiting in (one, two)
    await pool.close()


async def _borrow(pool: ReaderPool) -> object:
    async with pool.connection() as connection:
        return connection


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
