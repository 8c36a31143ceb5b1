"""The database that cannot be written for a while, Redis that is gone, a clock that is set
back: what is told then, what is never lost, and that it mends without hands.
"""

import asyncio
import contextlib
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient
from tests.conftest import RedisServer, process_environment, python
from tests.faults.disk import small_file_system
from tests.faults.load import Site, faults, faults_at_the_end, under_load
from tests.faults.site import Api, audited
from tests.integration import signed_in
from tests.integration.conftest import Serve, problem
from tests.integration.signed_in import Trader, live_price, sign_in

import live_market
from tap_trading.base import db
from tap_trading.base.clock import system_clock
from tap_trading.base.db import WriterLock, open_reader, open_writer
from tap_trading.base.redis import Redis
from tap_trading.game import grid
from tap_trading.ledger import migrations
from tap_trading.ledger.batcher import Batcher, StorageUnavailableError
from tap_trading.services import api

GEOMETRY = grid.Geometry(width_s=60, columns=8, rows=50)
GRID = {"TAP_GRID_WIDTH_S": "60"}
CREDIT = 100_000

#: Whoever waits behind a batch that waits: twice the 5 s for a lock, and a bit.
PATIENCE_S = 12.0


@pytest.fixture
async def client(serve: Serve, redis: Redis) -> AsyncIterator[TestClient]:
    """The API with a live price."""
    async with serve(api.build, **GRID) as client, live_price(client, redis, GEOMETRY):
        yield client


def cells(now: int | None = None) -> list[str]:
    """Cells that are offered now and stay so for a minute."""
    return [cell.cell_id for cell in live_market.cells(GEOMETRY, now)][GEOMETRY.rows :]


async def refused(answer: ClientResponse) -> tuple[int, str]:
    return answer.status, str((await problem(answer))["code"])


def kept(database: Path) -> dict[str, str]:
    """The ids of all bets by their keys."""
    connection = open_reader(database)
    found = dict(connection.execute("SELECT idempotency_key, id FROM bets").fetchall())
    connection.close()
    return found


async def placed(trader: Trader, cell_id: str, key: str, within_s: float = 15.0) -> dict[str, Any]:
    """The 202 of this bet, asked for until it comes."""
    async with asyncio.timeout(within_s):
        while (answer := await trader.bet(cell_id, 500, key)).status == 503:
            await asyncio.sleep(0.05)
    assert answer.status == 202, await answer.text()
    return dict(await answer.json())


# Somebody else has the database.


def _lock_of_sqlite(database: Path) -> str:
    return (
        "import apsw, sys\n"
        f"connection = apsw.Connection({str(database)!r})\n"
        "connection.execute('BEGIN EXCLUSIVE')\n"
    )


def _lock_of_the_writer(database: Path) -> str:
    return (
        "import sys\n"
        "from pathlib import Path\n"
        "from tap_trading.base.db import WriterLock\n"
        f"holding = WriterLock(Path({str(database)!r})).held()\n"
        "holding.__enter__()\n"
    )


@contextmanager
def held_by_another_process(script: str) -> Iterator[None]:
    wait = "print('held', flush=True)\nsys.stdin.read()\n"
    with subprocess.Popen(
        python("-c", script + wait),
        env=process_environment({}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        try:
            assert holder.stdout
            assert holder.stdout.readline() == b"held\n"
            yield
        finally:
            holder.kill()


@pytest.mark.parametrize("lock", [_lock_of_sqlite, _lock_of_the_writer])
async def test_a_lock_that_is_not_given_back_is_503_until_it_is(
    lock: Callable[[Path], str],
    client: TestClient,
    database: Path,
    measured: Callable[[str], None],
) -> None:
    traders = [await sign_in(client) for _ in range(10)]
    offered = cells()
    first = await placed(traders[0], offered[-1], "before")
    with held_by_another_process(lock(database)):
        began = time.monotonic()
        asked = [
            asyncio.create_task(trader.bet(offered[number], 500, f"key-{number}"))
            for number, trader in enumerate(traders)
        ]
        await asyncio.sleep(0.5)
        assert (await traders[0].json("/api/me"))["balance"] == CREDIT - 500  # reading goes on
        assert (await client.get("/healthz")).status == 503
        for answer in await asyncio.gather(*asked):
            assert await refused(answer) == (503, "storage_unavailable")
        took = time.monotonic() - began
        assert took < PATIENCE_S
        assert kept(database) == {"before": first["bet_id"]}
    name = lock.__name__.replace("_", " ").strip()
    measured(f"{name} held by another process: 503 after {took:.1f} s at most")
    again = [
        await placed(trader, offered[number], f"key-{number}")
        for number, trader in enumerate(traders)
    ]
    assert [answer["balance"] for answer in again] == [CREDIT - 1000] + [CREDIT - 500] * 9
    assert len(kept(database)) == 11
    assert (await client.get("/healthz")).status == 200


async def test_a_long_queue_does_not_wait_for_the_lock_again_and_again(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real 5 s, 2,000 waiting bets would be told after up to 40; Nginx gives up at 30."""
    monkeypatch.setattr(WriterLock.held.__wrapped__, "__defaults__", (1.0,))
    batcher: Batcher[None, None] = Batcher(database)
    await batcher.open()
    lock = WriterLock(database)
    with lock.held():
        began = time.monotonic()
        asked = [batcher.check() for _ in range(2000)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        took = time.monotonic() - began
    lock.close()
    await batcher.close()
    assert {type(answer) for answer in answers} == {StorageUnavailableError}
    assert took < 4.0  # one after the other, the eight batches take eight seconds


async def test_a_service_that_starts_waits_for_the_one_that_writes(database: Path) -> None:
    lock = WriterLock(database)
    with lock.held():
        other = open_writer(database)
        other.execute("BEGIN IMMEDIATE")
        batcher: Batcher[None, None] = Batcher(database)
        opening = asyncio.create_task(batcher.open())
        await asyncio.sleep(0.3)
        other.execute("COMMIT")
        other.close()
    lock.close()
    await opening
    assert await batcher.check() == "ok"
    await batcher.close()


# The disk takes no more.


class SmallDisk:
    """A file system of its own that is soon full."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "bets.db"
        self._ballast = folder / "ballast"

    @contextmanager
    def full(self, _site: Site) -> Iterator[None]:
        with self._ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        try:
            yield
        finally:
            self._ballast.unlink()


class SizeLimit:
    """A process that may not make files any larger."""

    def __init__(self, database: Path) -> None:
        self.database = database

    @contextmanager
    def full(self, site: Site) -> Iterator[None]:
        wal = self.database.with_name("bets.db-wal")
        _, most = resource.prlimit(site.api.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(site.api.pid, resource.RLIMIT_FSIZE, (wal.stat().st_size, most))
        try:
            yield
        finally:
            resource.prlimit(site.api.pid, resource.RLIMIT_FSIZE, (most, most))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "data"
    with small_file_system(folder, megabytes=4):
        migrations.migrate(folder / "bets.db")
        yield SmallDisk(folder)


@pytest.fixture
def size_limit(database: Path) -> SizeLimit:
    return SizeLimit(database)


@pytest.fixture(params=["small_disk", "size_limit"])
def disk(request: pytest.FixtureRequest) -> SmallDisk | SizeLimit:
    """A disk that can be full, for the superuser and for everybody."""
    found: SmallDisk | SizeLimit = request.getfixturevalue(request.param)
    return found


async def _until(site: Site, status: str, more: int) -> float:
    """Wait for so many more answers of this kind; how long it took, in s."""
    began, wanted = time.monotonic(), site.crowd.statuses[status] + more
    try:
        async with asyncio.timeout(30):
            while site.crowd.statuses[status] < wanted:
                await site.crowd.answered()
    except TimeoutError:
        pytest.fail(f"no {status}, but {site.crowd.statuses}")
    return time.monotonic() - began


async def test_a_full_disk_is_503_and_nothing_is_half_written(
    disk: SmallDisk | SizeLimit,
    environment: dict[str, str],
    redis: Redis,
    measured: Callable[[str], None],
) -> None:
    environment = environment | {"DB_PATH": str(disk.database)}
    # The log goes nowhere: it must not be what is too large.
    server = Api(environment, Path(os.devnull))
    async with under_load(server, disk.database, redis, random.Random(1)) as site:
        await site.restart()
        took = []
        for _ in range(3):
            await _until(site, "202", 50)
            with disk.full(site):
                await _until(site, "503 storage_unavailable", 50)
                assert await faults(site) == []
            took.append(await _until(site, "202", 50))
        await site.crowd.end()
        assert await faults_at_the_end(site) == []
        measured(
            f"a full disk ({type(disk).__name__}): {dict(site.crowd.statuses)}, 50 bets placed"
            f" {max(took):.2f} s after there was space again"
        )


async def test_killed_on_a_full_disk_it_comes_back_once_there_is_space(
    small_disk: SmallDisk, environment: dict[str, str], redis: Redis, tmp_path: Path
) -> None:
    environment = environment | {"DB_PATH": str(small_disk.database)}
    server = Api(environment, tmp_path / "api.log")
    async with under_load(server, small_disk.database, redis, random.Random(2)) as site:
        await site.restart()
        await _until(site, "202", 50)
        with small_disk.full(site):
            await _until(site, "503 storage_unavailable", 50)
            server.kill()
            server.start()
            # It says why it cannot, for systemd to try again, unless the WAL has room left.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    while not server.ended():
                        await asyncio.sleep(0.05)
                assert '"level":"critical"' in server.log().splitlines()[-1]
        await site.restart()
        await site.crowd.end()
        assert await faults_at_the_end(site) == []


# The disk fails.


class FailingDisk(apsw.VFS):
    """The usual VFS, but while it `fails` no WAL can be synced."""

    def __init__(self) -> None:
        self.fails = False
        super().__init__("failing disk", base="unix", makedefault=True)

    def xOpen(  # noqa: N802 - the name is apsw's
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        wal = bool(flags[0] & apsw.SQLITE_OPEN_WAL)
        return _FailingFile(self, name, flags) if wal else apsw.VFSFile("unix", name, flags)


class _FailingFile(apsw.VFSFile):
    def __init__(
        self, disk: FailingDisk, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> None:
        super().__init__("unix", name, flags)
        self._disk = disk

    def xSync(self, flags: int) -> None:  # noqa: N802 - the name is apsw's
        if self._disk.fails:
            raise apsw.IOError("the disk does not sync")
        super().xSync(flags)


@pytest.fixture
def failing_disk(database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FailingDisk]:
    for pragmas in (db.WRITER_PRAGMAS, db.READER_PRAGMAS):
        monkeypatch.setitem(pragmas, "mmap_size", 0)  # its files cannot be mapped
    disk = FailingDisk()
    # Closing the last connection takes a lock that a reader cannot have; SQLite shrugs, but a
    # VFS in Python tells it as an error. This one is the last.
    last = apsw.Connection(str(database), vfs="unix")
    last.execute("SELECT count(*) FROM bets").fetchall()
    yield disk
    disk.unregister()
    last.close()


async def test_what_cannot_be_synced_is_not_acknowledged(
    failing_disk: FailingDisk, client: TestClient, database: Path, tmp_path: Path
) -> None:
    trader, offered = await sign_in(client), cells()
    before = await placed(trader, offered[0], "before")
    failing_disk.fails = True
    for number in range(1, 4):
        answer = await trader.bet(offered[number], 500, f"key-{number}")
        assert await refused(answer) == (503, "storage_unavailable")
        assert (await trader.json("/api/me"))["balance"] == CREDIT - 500
        for suffix in ("", "-wal"):  # as if it were killed now
            shutil.copyfile(f"{database}{suffix}", tmp_path / f"killed-{number}.db{suffix}")
    assert kept(database) == {"before": before["bet_id"]}
    failing_disk.fails = False
    for number in range(1, 4):
        again = await placed(trader, offered[number], f"key-{number}")
        assert again["balance"] == CREDIT - 500 * (number + 1)
    assert len(kept(database)) == 4
    failing_disk.unregister()
    for number in range(1, 4):
        # Then the refused bet may have got through, but only in full: its retry finds it.
        killed = tmp_path / f"killed-{number}.db"
        open_writer(killed).close()
        assert audited(killed) == ()
        assert set(kept(killed)) in ({"before"}, {"before", f"key-{number}"})


# Redis.


async def test_bets_in_flight_do_not_need_redis(
    client: TestClient, database: Path, redis_server: RedisServer, redis: Redis
) -> None:
    kept_session, lost_session = await sign_in(client), await sign_in(client)
    traders = [kept_session, lost_session]
    offered = cells()
    for number, trader in enumerate(traders):
        await placed(trader, offered[-1 - number], f"before-{number}")
    hashes = await redis.keys("session:*")
    values = dict(zip(hashes, await redis.mget(hashes), strict=True))
    writing = WriterLock(database)
    with writing.held():  # so that they are in flight for sure
        asked = [
            asyncio.create_task(traders[number % 2].bet(offered[number], 500, f"key-{number}"))
            for number in range(20)
        ]
        await asyncio.sleep(0.3)
        redis_server.stop()
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in asked)
    writing.close()
    answers = await asyncio.gather(*asked)
    assert [answer.status for answer in answers] == [202] * 20
    assert kept(database).keys() >= {f"key-{number}" for number in range(20)}

    challenge = await client.post("/api/auth/challenge", json={"address": kept_session.address})
    assert await refused(challenge) == (503, "unavailable")
    stranger = Trader(client, "", "", "a" * 43)
    assert await refused(await stranger.bet(offered[0], 500, "k")) == (503, "unavailable")

    # It comes back without one of the sessions, as if that had been revoked meanwhile.
    redis_server.start()
    for key, value in values.items():
        if kept_session.user_id.encode() in value:
            await redis.set(key, value)
    async with asyncio.timeout(15):
        while (await client.get("/healthz")).status != 200 or (
            (await (await client.get("/healthz")).json())["checks"]["revocations"] != "ok"
        ):
            await asyncio.sleep(0.05)
    answer = await lost_session.bet(offered[1], 500, "key-1")
    assert await refused(answer) == (401, "unauthenticated")
    again = await placed(kept_session, offered[0], "key-0")
    assert again == await answers[0].json()
    newcomer = await sign_in(client)
    assert (await newcomer.json("/api/me"))["balance"] == CREDIT


async def test_a_flush_with_bets_in_flight_loses_none(
    client: TestClient, database: Path, redis: Redis
) -> None:
    trader, offered = await sign_in(client), cells()
    writing = WriterLock(database)
    with writing.held():
        asked = [
            asyncio.create_task(trader.bet(offered[number], 500, f"key-{number}"))
            for number in range(20)
        ]
        await asyncio.sleep(0.3)
        await redis.flushall()
    writing.close()
    answers = [await (await task).json() for task in asked]
    assert {answer["bet_id"] for answer in answers} == set(kept(database).values())
    # Used nonces and limits are gone too: nothing that money needs was there.
    newcomer = await sign_in(client)
    assert (await newcomer.bet(offered[0], 500, "key-0")).status == 202


# The clock.


class SetClock:
    """The machine's clock, set wrong by some ms."""

    def __init__(self) -> None:
        self.wrong_ms = 0

    def __call__(self) -> int:
        return system_clock() + self.wrong_ms


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """The clock of this machine: of the price, and of an API that is built after this."""
    clock = SetClock()
    monkeypatch.setattr(signed_in, "system_clock", clock)
    monkeypatch.setattr(api, "system_clock", clock)
    return clock


@pytest.mark.parametrize("step_ms", [-3_600_000, -61_000, -1, 61_000])
async def test_a_clock_that_is_set_loses_and_doubles_nothing(
    clock: SetClock, client: TestClient, database: Path, step_ms: int
) -> None:
    trader = await sign_in(client)
    before = [(cell_id, f"before-{n}") for n, cell_id in enumerate(cells()[:5])]
    answers = [await placed(trader, *bet) for bet in before]
    clock.wrong_ms = step_ms
    # The same requests get the same answers, whatever their columns are now.
    assert [await placed(trader, *bet) for bet in before] == answers
    after = [(cell_id, f"after-{n}") for n, cell_id in enumerate(cells(clock())[10:15])]
    answers += [await placed(trader, *bet) for bet in after]
    assert answers[-1]["balance"] == CREDIT - 10 * 500
    clock.wrong_ms = 0
    assert [await placed(trader, *bet) for bet in before + after] == answers
    seen = [bet["bet_id"] for bet in await _all_pages(trader)]
    assert sorted(seen) == sorted(answer["bet_id"] for answer in answers)
    assert len(kept(database)) == 10


async def test_a_feed_that_died_is_noticed_though_the_clock_was_set_back(
    clock: SetClock, serve: Serve, redis: Redis
) -> None:
    async with serve(api.build, **GRID) as client:
        async with live_price(client, redis, GEOMETRY):
            trader = await sign_in(client)
        clock.wrong_ms = -3_600_000
        await asyncio.sleep(0.2)
        clock.wrong_ms += 11_000  # no price for 11 s
        answer = await trader.bet(cells(clock())[0], 500, "key")
        assert answer.status == 503


async def test_limits_hold_though_the_clock_was_wrong_for_a_while(
    clock: SetClock, serve: Serve, redis: Redis, database: Path
) -> None:
    async with (
        serve(api.build, **GRID, TAP_MAX_COLUMN_STAKE="1000") as client,
        live_price(client, redis, GEOMETRY),
    ):
        trader, column = await sign_in(client), cells()[:3]
        await placed(trader, column[0], "key-0")
        await placed(trader, column[1], "key-1")
        full = await trader.bet(column[2], 500, "key-2")
        assert await refused(full) == (422, "limit_exceeded")
        clock.wrong_ms = 7_200_000
        await placed(trader, cells(clock())[0], "key-3")
        clock.wrong_ms = 0
        await asyncio.sleep(0.2)
        still_full = await trader.bet(column[2], 500, "key-2")
        assert still_full.status == 422


async def _all_pages(trader: Trader) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    asked = {"limit": "3"}
    while True:
        page = await trader.json("/api/bets", **asked)
        items += page["items"]
        if page["next_cursor"] is None:
            return items
        asked["cursor"] = page["next_cursor"]
