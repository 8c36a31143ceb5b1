"""The one write path: durable, isolated, ordered, and honest about what was not written."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from tap_trading.base.db import DatabaseError, WriterLock, open_reader
from tap_trading.ledger.batcher import Batcher, OverloadedError, StorageUnavailableError


@pytest.fixture
async def batcher(database: Path) -> AsyncIterator[Batcher]:
    batcher = Batcher(database)
    await batcher.open()
    yield batcher
    await batcher.close()


def add_user(name: str) -> object:
    def work(connection: apsw.Connection) -> str:
        connection.execute("INSERT INTO users VALUES (?, ?, 0, 1, 0, 0)", (name, name))
        return name

    return work


def users(path: Path) -> set[str]:
    connection = open_reader(path)
    names = {row[0] for row in connection.execute("SELECT id FROM users WHERE id <> 'house'")}
    connection.close()
    return names


async def test_an_answer_means_it_is_written(batcher: Batcher, database: Path) -> None:
    assert await batcher.run(add_user("ada")) == "ada"
    assert users(database) == {"ada"}


async def test_many_jobs_share_a_batch_and_each_gets_its_own_answer(
    batcher: Batcher, database: Path
) -> None:
    names = [f"user{i}" for i in range(1000)]
    assert await asyncio.gather(*(batcher.run(add_user(name)) for name in names)) == names
    assert users(database) == set(names)


async def test_a_job_that_fails_takes_nobody_along(batcher: Batcher, database: Path) -> None:
    def half_done(connection: apsw.Connection) -> None:
        connection.execute("INSERT INTO users VALUES ('ghost', 'ghost', 0, 1, 0, 0)")
        raise ValueError("changed my mind")

    jobs = [batcher.run(add_user("ada")), batcher.run(half_done), batcher.run(add_user("bob"))]
    jobs += [batcher.run(add_user("ada")), batcher.run(add_user("cyd"))]
    results = await asyncio.gather(*jobs, return_exceptions=True)
    assert results[0] == "ada"
    assert isinstance(results[1], ValueError)
    assert results[2] == "bob"
    assert isinstance(results[3], apsw.ConstraintError)
    assert results[4] == "cyd"
    assert users(database) == {"ada", "bob", "cyd"}


async def test_a_client_that_vanished_costs_nobody_an_answer(
    batcher: Batcher, database: Path
) -> None:
    tasks = [asyncio.create_task(batcher.run(add_user(f"u{i}"))) for i in range(50)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for i, result in enumerate(results):
        assert result == f"u{i}" or (i % 3 == 0 and isinstance(result, asyncio.CancelledError))
    assert {f"u{i}" for i in range(50) if i % 3} <= users(database)


async def test_closing_finishes_what_was_taken(database: Path) -> None:
    batcher = Batcher(database)
    await batcher.open()
    tasks = [asyncio.create_task(batcher.run(add_user(f"u{i}"))) for i in range(200)]
    await asyncio.sleep(0)
    await batcher.close()
    await batcher.close()
    assert len(await asyncio.gather(*tasks)) == 200
    assert len(users(database)) == 200
    with pytest.raises(OverloadedError, match="stopping"):
        await batcher.run(add_user("late"))


async def test_too_many_waiting_jobs_are_refused_not_queued(database: Path) -> None:
    batcher = Batcher(database, max_waiting=5)
    await batcher.open()
    lock = WriterLock(database)
    with lock.held():  # nothing can be written meanwhile
        tasks = [asyncio.create_task(batcher.run(add_user(f"u{i}"))) for i in range(50)]
        await asyncio.sleep(0.05)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    lock.close()
    await batcher.close()
    refused = [r for r in results if isinstance(r, OverloadedError)]
    written = {r for r in results if isinstance(r, str)}
    assert refused
    assert len(refused) + len(written) == 50
    assert users(database) == written


async def test_a_full_disk_refuses_the_batch_and_keeps_what_was_there(
    batcher: Batcher, database: Path
) -> None:
    await batcher.run(add_user("ada"))

    def fill(connection: apsw.Connection) -> None:
        pages = connection.pragma("page_count")
        connection.pragma("max_page_count", pages)
        connection.execute("CREATE TABLE big (x)")
        connection.execute("INSERT INTO big VALUES (zeroblob(10000000))")

    with pytest.raises(StorageUnavailableError, match="full"):
        await batcher.run(fill)
    assert users(database) == {"ada"}
    assert await batcher.run(add_user("bob")) == "bob"


async def test_a_folder_that_becomes_read_only_is_survived(
    batcher: Batcher, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = True
    original = Batcher._connect

    def connect(self: Batcher) -> apsw.Connection:
        if broken:
            raise DatabaseError("attempt to write a readonly database")
        return original(self)

    monkeypatch.setattr(Batcher, "_connect", connect)
    with pytest.raises(StorageUnavailableError, match="readonly"):
        await batcher.run(add_user("ada"))
    with pytest.raises(StorageUnavailableError, match="readonly"):
        await batcher.check()
    broken = False
    assert await batcher.run(add_user("ada")) == "ada"
    assert await batcher.check() == "ok"
    assert users(database) == {"ada"}


async def test_the_health_check_really_writes(batcher: Batcher, database: Path) -> None:
    def beats() -> int:
        connection = open_reader(database)
        (count,) = connection.execute("SELECT beats FROM write_probe").fetchone()
        connection.close()
        return int(count)

    before = beats()
    assert await batcher.check() == "ok"
    assert beats() == before + 1


async def test_a_batch_that_cannot_be_opened_is_survived(
    batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batcher, "_connect", lambda _: 1 / 0)
    with pytest.raises(StorageUnavailableError, match="division by zero"):
        await batcher.check()
    monkeypatch.undo()
    assert await batcher.check() == "ok"


async def test_a_failed_open_leaves_nothing_to_close_twice(tmp_path: Path) -> None:
    batcher = Batcher(tmp_path / "no.db")
    with pytest.raises(DatabaseError, match="there is no database"):
        await batcher.open()
    await batcher.close()


async def test_a_missing_database_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="there is no database"):
        await Batcher(tmp_path / "no.db").open()
