"""The one write path: durable, isolated, ordered, and honest about what was not written."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import apsw
import pytest

from tap_trading.base import db
from tap_trading.base.db import DatabaseError, WriterLock, open_reader, open_writer
from tap_trading.ledger import batcher as batcher_module
from tap_trading.ledger.batcher import Batcher, OverloadedError, StorageUnavailableError

#: A batcher that is given functions only.
Jobs = Batcher[None, None]


@pytest.fixture
async def batcher(database: Path) -> AsyncIterator[Jobs]:
    batcher: Jobs = Batcher(database)
    await batcher.open()
    yield batcher
    await batcher.close()


def add_user(name: str) -> object:
    def work(connection: apsw.Connection) -> str:
        connection.execute("INSERT INTO users VALUES (?, ?, 0, 1, 0, 0, 0, 0)", (name, name))
        return name

    return work


def users(path: Path) -> set[str]:
    connection = open_reader(path)
    names = {row[0] for row in connection.execute("SELECT id FROM users WHERE id <> 'house'")}
    connection.close()
    return names


async def test_an_answer_means_it_is_written(batcher: Jobs, database: Path) -> None:
    assert await batcher.run(add_user("ada")) == "ada"
    assert users(database) == {"ada"}


async def test_many_jobs_share_a_batch_and_each_gets_its_own_answer(
    batcher: Jobs, database: Path
) -> None:
    names = [f"user{i}" for i in range(1000)]
    assert await asyncio.gather(*(batcher.run(add_user(name)) for name in names)) == names
    assert users(database) == set(names)


async def test_a_job_that_fails_takes_nobody_along(batcher: Jobs, database: Path) -> None:
    def half_done(connection: apsw.Connection) -> None:
        connection.execute("INSERT INTO users VALUES ('ghost', 'ghost', 0, 1, 0, 0, 0, 0)")
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


async def test_a_client_that_vanished_costs_nobody_an_answer(batcher: Jobs, database: Path) -> None:
    tasks = [asyncio.create_task(batcher.run(add_user(f"u{i}"))) for i in range(50)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for i, result in enumerate(results):
        assert result == f"u{i}" or (i % 3 == 0 and isinstance(result, asyncio.CancelledError))
    assert {f"u{i}" for i in range(50) if i % 3} <= users(database)


async def test_closing_finishes_what_was_taken(database: Path) -> None:
    batcher: Jobs = Batcher(database)
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
    batcher: Jobs = Batcher(database, max_waiting=5)
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
    batcher: Jobs, database: Path
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
    batcher: Jobs, database: Path, monkeypatch: pytest.MonkeyPatch
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


async def test_the_health_check_really_writes(batcher: Jobs, database: Path) -> None:
    def beats() -> int:
        connection = open_reader(database)
        (count,) = connection.execute("SELECT beats FROM write_probe").fetchone()
        connection.close()
        return int(count)

    before = beats()
    assert await batcher.check() == "ok"
    assert beats() == before + 1


async def test_a_batch_that_cannot_be_opened_is_survived(
    batcher: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batcher, "_connect", lambda _: 1 / 0)
    with pytest.raises(StorageUnavailableError, match="division by zero"):
        await batcher.check()
    monkeypatch.undo()
    assert await batcher.check() == "ok"


async def test_a_failed_open_leaves_nothing_to_close_twice(tmp_path: Path) -> None:
    batcher: Jobs = Batcher(tmp_path / "no.db")
    with pytest.raises(DatabaseError, match="there is no database"):
        await batcher.open()
    await batcher.close()


async def test_a_missing_database_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="there is no database"):
        await Batcher(tmp_path / "no.db").open()


class Names:
    """Handles items by adding a user of that name for each, all in one statement."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, connection: apsw.Connection, items: Sequence[str]) -> list[str]:
        self.sizes.append(len(items))
        connection.execute(
            "INSERT INTO users (id, wallet_address, created_at, updated_at)"
            " SELECT value, value, 0, 0 FROM json_each(?)",
            (json.dumps(items),),
        )
        return [f"added {item}" for item in items]


async def test_items_of_a_batch_are_handled_together(database: Path) -> None:
    names = Names()
    batcher = Batcher[str, str](database, names)
    await batcher.open()
    wanted = [f"u{i}" for i in range(100)]
    answers = await asyncio.gather(*(batcher.handle(name) for name in wanted))
    assert answers == [f"added {name}" for name in wanted]
    assert names.sizes == [100]
    await batcher.close()
    assert users(database) == set(wanted)


async def test_a_bad_item_costs_only_itself(database: Path) -> None:
    names = Names()
    batcher = Batcher[str, str](database, names)
    await batcher.open()
    wanted = ["ada", "bob", "house", "cyd"]  # the house is there already
    answers = await asyncio.gather(
        *(batcher.handle(name) for name in wanted), return_exceptions=True
    )
    await batcher.close()
    assert answers[:2] == ["added ada", "added bob"]
    assert isinstance(answers[2], apsw.ConstraintError)
    assert answers[3] == "added cyd"
    assert users(database) == {"ada", "bob", "cyd"}


async def test_an_answer_that_cannot_be_delivered_costs_no_neighbour_its_own(
    database: Path,
) -> None:
    batcher = Batcher[str, str](database, Names())
    await batcher.open()
    heard: list[object] = []

    def vanished(_answer: object) -> None:
        raise ConnectionResetError("the client has gone")

    for i in range(50):
        batcher.submit(partial(str, f"u{i}"), vanished if i % 3 == 0 else heard.append)
    await batcher.close()
    assert heard == [f"added u{i}" for i in range(50) if i % 3]
    assert users(database) == {f"u{i}" for i in range(50)}


async def test_what_cannot_be_prepared_costs_no_neighbour_its_answer(database: Path) -> None:
    batcher = Batcher[str, str](database, Names())
    await batcher.open()
    heard: list[object] = []

    def refused() -> str:
        raise ValueError("no such name")

    for prepare in (refused, partial(str, "ada"), lambda: None, partial(str, "bob"), refused):
        batcher.submit(prepare, heard.append)
    batcher.submit(lambda: None, heard.append)
    await batcher.close()
    assert [str(answer) for answer in heard] == [
        *("no such name", "no such name", "added ada", "added bob"),
    ]
    assert users(database) == {"ada", "bob"}


async def test_a_batch_of_nothing_that_can_be_prepared_makes_way(database: Path) -> None:
    batcher = Batcher[str, str](database, Names(), max_batch=1)
    await batcher.open()
    heard: list[object] = []
    for prepare in (lambda: None, lambda: None, partial(str, "ada"), lambda: None):
        batcher.submit(prepare, heard.append)
    async with asyncio.timeout(10):
        await batcher.close()
    assert heard == ["added ada"]


async def test_a_crowd_is_not_collected_for_longer_than_until_half_of_all_wait(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "_TICK_S", 10.0)  # any further look would show
    names = Names()
    batcher = Batcher[str, str](database, names, window_s=10.0)
    await batcher.open()
    batcher.clients = 20

    async def client(number: int) -> None:
        for i in range(5):
            await batcher.handle(f"u{number}-{i}")

    async with asyncio.timeout(5):
        await asyncio.gather(*(client(number) for number in range(20)))
    await batcher.close()
    assert sum(names.sizes) == 100


async def test_crowds_are_collected_and_single_jobs_are_not(database: Path) -> None:
    names = Names()
    batcher = Batcher[str, str](database, names, window_s=10.0)
    await batcher.open()
    # One after the other: with a window of ten seconds, any waiting would show.
    async with asyncio.timeout(5):
        for i in range(20):
            await batcher.handle(f"single{i}")
    assert names.sizes == [1] * 20
    names.sizes.clear()
    # A crowd, then stragglers that come while it is written: they are collected together.
    tasks = [asyncio.create_task(batcher.handle(f"crowd{i}")) for i in range(20)]
    for i in range(20):
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(batcher.handle(f"straggler{i}")))
    async with asyncio.timeout(5):  # they stop coming, so nobody waits for the window
        await asyncio.gather(*tasks)
    assert sum(names.sizes) == 40
    assert len(names.sizes) <= 4
    await batcher.close()


async def test_a_batch_never_grows_beyond_its_bound(database: Path) -> None:
    names = Names()
    batcher = Batcher[str, str](database, names, max_batch=10)
    await batcher.open()
    await asyncio.gather(*(batcher.handle(f"u{i}") for i in range(95)))
    await batcher.close()
    assert max(names.sizes) == 10
    assert sum(names.sizes) == 95


async def test_a_foreign_lock_on_the_database_is_survived(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(db.WRITER_PRAGMAS, "busy_timeout", 50)
    batcher: Jobs = Batcher(database)
    await batcher.open()
    foreign = open_writer(database)
    foreign.execute("BEGIN EXCLUSIVE")  # somebody who does not know the writer's lock
    with pytest.raises(StorageUnavailableError, match="locked"):
        await batcher.run(add_user("ada"))
    foreign.execute("ROLLBACK")
    foreign.close()
    assert await batcher.run(add_user("ada")) == "ada"
    await batcher.close()


async def test_what_is_no_item_of_this_batcher_is_refused(batcher: Jobs) -> None:
    with pytest.raises(TypeError, match="not told how"):
        await batcher.handle(None)
    assert await batcher.check() == "ok"


async def test_a_long_wal_is_copied_into_the_database(database: Path) -> None:
    def grown() -> bool:
        return database.stat().st_size > size

    size = database.stat().st_size
    for pages, copied in ((10_000, False), (4, True)):
        batcher: Jobs = Batcher(database, checkpoint_pages=pages)
        await batcher.open()
        await asyncio.gather(*(batcher.run(add_user(f"{pages}_{i}" * 40)) for i in range(500)))
        await batcher.run(add_user(f"{pages} after the checkpoint"))
        assert grown() is copied
        await batcher.close()  # copies what is left
        size = database.stat().st_size


async def test_a_wal_that_cannot_be_copied_costs_no_answer(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = batcher_module._FAILED_CHECKPOINTS._value.get
    before = failed()
    batcher: Jobs = Batcher(database, checkpoint_pages=1)
    await batcher.open()
    with monkeypatch.context() as broken:
        broken.setattr(apsw, "SQLITE_CHECKPOINT_PASSIVE", 99)  # which SQLite does not know
        assert await batcher.run(add_user("ada")) == "ada"
        assert await batcher.run(add_user("bob")) == "bob"
    await batcher.close()
    assert failed() > before
    assert users(database) == {"ada", "bob"}
