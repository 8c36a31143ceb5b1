"""The price service: sources → index → bars on disk → channels, and what is offered."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.conftest import RedisServer
from tests.integration.conftest import Serve, Tap

from price_history import ENOUGH, bars, bars_until, closes, write
from tap_trading.base import background, config
from tap_trading.base.clock import system_clock
from tap_trading.base.db import DatabaseError, WriterLock, open_reader, open_writer
from tap_trading.base.errors import StartupError
from tap_trading.base.redis import Redis
from tap_trading.game import cell as cells
from tap_trading.game import grid
from tap_trading.game.volatility import VolatilityModel
from tap_trading.market import price_store, restart, retention
from tap_trading.market.bars import Bar
from tap_trading.market.feeds import replay
from tap_trading.market.offer import OFFER_CHANNEL, OFFER_KEY, Offer
from tap_trading.market.offer import decode as decode_offer
from tap_trading.market.point import (
    CHANNEL,
    HISTORY_KEY,
    LATEST_KEY,
    PricePoint,
    decode,
    number_of,
)
from tap_trading.market.publisher import HISTORY_TTL_S, LATEST_TTL_S, Publisher
from tap_trading.market.state import MarketState
from tap_trading.services import price
from tap_trading.settlement import models

GEOMETRY = grid.Geometry(width_s=5, columns=8, rows=12)
START = 4_200_000  # cents


@pytest.fixture(autouse=True)
def _with_prices(environment: dict[str, str], prices: Path) -> None:
    environment["PRICES_DB_PATH"] = str(prices)


@asynccontextmanager
async def channel(redis: Redis, name: str) -> AsyncIterator[asyncio.Queue[bytes]]:
    """What is published inside the block."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen() -> None:
        async with redis.pubsub() as pubsub:
            await pubsub.subscribe(name)
            async for message in pubsub.listen():
                if message["type"] == "message":
                    heard.put_nowait(message["data"])
                else:
                    subscribed.set()

    subscribed = asyncio.Event()
    task = asyncio.create_task(listen())
    try:
        async with asyncio.timeout(10):
            await subscribed.wait()
        yield heard
    finally:
        await background.end(task)


async def published(redis: Redis, count: int) -> list[PricePoint]:
    """The next prices."""
    async with channel(redis, CHANNEL) as heard, asyncio.timeout(20):
        return [decode(await heard.get()) for _ in range(count)]


async def offers(redis: Redis, count: int) -> list[Offer]:
    """The next offers."""
    async with channel(redis, OFFER_CHANNEL) as heard, asyncio.timeout(20):
        return [decode_offer(await heard.get()) for _ in range(count)]


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


# Prices.


async def test_ten_prices_a_second_with_stamps_and_sequence(serve: Serve, redis: Redis) -> None:
    async with serve(price.build) as client:
        points = await published(redis, 15)
        assert all(point.t % 100 == 0 for point in points)
        assert all(b.seq == a.seq + 1 for a, b in pairwise(points))
        assert all(b.t > a.t for a, b in pairwise(points))
        assert abs(points[-1].t + 100 - system_clock()) < 1000
        assert len({point.price for point in points}) > 5
        latest = await redis.get(LATEST_KEY)
        assert latest is not None
        assert latest.decode().count(".") == 1
        assert LATEST_TTL_S - 5 <= await redis.ttl(LATEST_KEY) <= LATEST_TTL_S
        assert HISTORY_TTL_S - 5 <= await redis.ttl(HISTORY_KEY) <= HISTORY_TTL_S
        answer = await client.get("/healthz")
        assert answer.status == 200
        assert (await answer.json())["checks"] == {
            "redis": "ok",
            "publishing": "ok",
            "source": "ok",
            "storing": "leading",
            "market": "suspended: settling",
        }
        text = await (await client.get("/metrics")).text()
        assert 'tap_prices_published_total{source="mock"}' in text
        assert 'tap_market_state{state="suspended"} 1.0' in text


async def test_one_member_a_second_goes_into_the_sorted_set(serve: Serve, redis: Redis) -> None:
    async with serve(price.build):
        await published(redis, 25)
    members = await redis.zrange(HISTORY_KEY, 0, -1, withscores=True)
    points = [decode(member) for member, _ in members]
    assert [point.t for point in points] == [score for _, score in members]
    seconds = [point.t // 1000 for point in points]
    assert 2 <= len(seconds) == len(set(seconds)) <= 5


async def test_history_older_than_seven_days_is_forgotten(serve: Serve, redis: Redis) -> None:
    now = system_clock()
    old, kept = now - (HISTORY_TTL_S + 60) * 1000, now - (HISTORY_TTL_S - 60) * 1000
    await redis.zadd(HISTORY_KEY, {f"{old}:1:1.00": old, f"{kept}:2:1.00": kept})
    async with serve(price.build):
        points = await published(redis, 2)
    assert points[0].seq > 2  # the sequence goes on
    members = await redis.zrange(HISTORY_KEY, 0, -1)
    assert f"{kept}:2:1.00".encode() in members
    assert f"{old}:1:1.00".encode() not in members


async def test_real_trades_are_shown(serve: Serve, redis: Redis, market_data: Path) -> None:
    file = market_data / "replay" / "binance_BTCUSDT_trades_2024-08-08.csv"
    async with serve(
        price.build,
        TAP_PRICE_SOURCE="replay",
        TAP_REPLAY_FILE=str(file),
        TAP_REPLAY_SPEED="20",
    ):
        points = await published(redis, 30)
    real = set(replay.read(file).prices)
    assert {point.price for point in points} <= real
    assert len({point.price for point in points}) > 3
    assert abs(points[-1].t - system_clock()) < 1500


async def test_two_sources_never_share_a_history(redis: Redis) -> None:
    now = system_clock()
    await redis.zadd(HISTORY_KEY, {f"{now}:7:100.00": now})
    for source, kept in (("one", 2), ("one", 3), ("another", 1)):
        publisher = Publisher(source, redis, system_clock)
        t = now - now % 1000 + kept * 1000
        async with (
            channel(redis, CHANNEL) as heard,
            background.running(publisher.run(), "publisher", asyncio.Future()),
        ):
            publisher.price(Bar(t, 100, 100, 100, 100))
            assert decode(await heard.get()) == PricePoint(t, number_of(t), 100)
            await redis.ping()
        assert await redis.zcard(HISTORY_KEY) == kept


async def test_a_recording_that_cannot_be_played_ends_the_start(
    serve: Serve, tmp_path: Path
) -> None:
    with pytest.raises(StartupError, match=r"TAP_REPLAY_FILE: .*none\.csv: No such file"):
        async with serve(
            price.build, TAP_PRICE_SOURCE="replay", TAP_REPLAY_FILE=str(tmp_path / "none.csv")
        ):
            pass


async def test_a_database_without_schema_ends_the_start(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="tap migrate"):
        async with serve(price.build, PRICES_DB_PATH=str(tmp_path / "none.db")):
            pass


async def test_bars_go_on_while_redis_is_away(
    serve: Serve, redis: Redis, redis_server: RedisServer, prices: Path
) -> None:
    async with serve(price.build) as client:
        await published(redis, 2)
        redis_server.stop()
        before = len(bars(prices))
        async with asyncio.timeout(10):
            while (await client.get("/healthz")).status == 200:
                await asyncio.sleep(0.3)
        await until(lambda: len(bars(prices)) > before + 20)
        redis_server.start()
        async with asyncio.timeout(10):
            while (await client.get("/healthz")).status != 200:
                await asyncio.sleep(0.3)
        await published(redis, 2)
    stamps = [bar.t for bar in bars(prices)]
    assert len(stamps) >= (stamps[-1] - stamps[0]) / 100 * 0.9


# Bars on disk.


async def test_what_is_published_is_on_disk_and_can_be_replayed(
    serve: Serve, redis: Redis, prices: Path
) -> None:
    async with serve(price.build), channel(redis, CHANNEL) as heard, asyncio.timeout(20):
        for _ in range(20):
            point = decode(await heard.get())
            stored = bars(prices)
            assert (stored[-1].t, stored[-1].close) == (point.t, point.price) or any(
                (bar.t, bar.close) == (point.t, point.price) for bar in stored
            )
            assert bars_until(prices) >= point.t + 100
    stored = bars(prices)
    for before, bar in pairwise(stored):
        assert bar.t > before.t
        assert bar.low <= before.close <= bar.high
        assert bar.low <= bar.close <= bar.high
    first, *rest = stored
    model = VolatilityModel()
    state = model.start(first.t, first.close)
    states = [state, *model.follow(state, ((bar.t, bar.close) for bar in rest))]
    assert [bar.state for bar in stored] == states
    assert {bar.sigma for bar in stored} == {None}  # too young to be bet on


async def test_final_bars_stay_as_they_are(prices: Path) -> None:
    write(prices, 1_764_000_000_000, closes(10, START))
    connection = open_writer(prices)
    model = VolatilityModel()
    late = Bar(1_763_999_999_000 - 500, START, START, START, START)
    state = model.start(late.t, late.close)
    with pytest.raises(apsw.ConstraintError, match="final"):
        price_store.write_bar(connection, late, model, state)
    with pytest.raises(apsw.ConstraintError, match="never change"):
        connection.execute("UPDATE bars SET close = close + 1")
    connection.close()


async def test_nothing_is_published_that_is_not_stored(
    serve: Serve, redis: Redis, prices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(prices, system_clock(), closes(ENOUGH, START))
    broken = False
    real = price._Running.__call__

    async def run(self: Any, work: Any) -> Any:
        if broken:
            raise DatabaseError("the disk is full")
        return await real(self, work)

    monkeypatch.setattr(price._Running, "__call__", run)
    async with serve(price.build) as client:
        await published(redis, 3)
        broken = True
        await asyncio.sleep(0.3)
        async with channel(redis, CHANNEL) as heard, channel(redis, OFFER_CHANNEL) as offered:
            await asyncio.sleep(1.2)
            assert (heard.empty(), offered.empty()) == (True, True)
            report = await (await client.get("/healthz")).json()
            assert "the disk is full" in report["checks"]["storing"]
            broken = False
            async with asyncio.timeout(5):
                point = decode(await heard.get())
                await offered.get()
        async with asyncio.timeout(5):  # an answer is good for a quarter of a second
            while (await client.get("/healthz")).status != 200:
                await asyncio.sleep(0.1)
    stored = bars(prices)
    gap = next(bar for bar in stored if bar.t == point.t)
    before = stored[stored.index(gap) - 1]
    assert gap.t - before.t > 1000
    assert gap.low <= before.close <= gap.high  # the last that is stored, not the last made
    model = VolatilityModel()
    assert gap.state == model.advance(before.state, gap.t, gap.close)


# A restart, and another process.


async def test_a_restart_continues_the_market(serve: Serve, redis: Redis, prices: Path) -> None:
    write(prices, system_clock() - 300, closes(ENOUGH, START))
    async with serve(price.build):
        (first,) = [o for o in await offers(redis, 2) if o.cells][:1]
        await published(redis, 3)
    await asyncio.sleep(0.4)
    async with serve(price.build):
        again = (await offers(redis, 2))[-1]
    assert first.state is again.state is MarketState.OPEN
    steps = {column.start: column.step for column in first.columns}
    assert all(steps.get(c.start, c.step) == c.step for c in again.columns)
    stored = bars(prices)
    model = VolatilityModel()
    for before, bar in pairwise(stored):
        assert bar.t > before.t
        assert bar.state == model.advance(before.state, bar.t, bar.close)
        assert bar.low <= before.close <= bar.high
    assert stored[-1].sigma is not None


async def test_of_two_processes_one_makes_bars_and_the_other_stands_by(
    serve: Serve, redis: Redis, prices: Path
) -> None:
    async with serve(price.build) as first:
        await published(redis, 2)
        async with serve(price.build) as second:
            await published(redis, 20)
            for client, storing in ((first, "leading"), (second, "standing by")):
                answer = await client.get("/healthz")
                assert answer.status == 200
                assert (await answer.json())["checks"]["storing"] == storing
    points = [bar.t for bar in bars(prices)]
    assert points == sorted(set(points))
    assert len(points) >= (points[-1] - points[0]) / 100 / 2  # a busy machine leaves some out


async def test_a_lease_that_is_released_is_taken_at_once(
    redis: Redis, environment: dict[str, str], serve: Serve, prices: Path
) -> None:
    failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    leading = price.build(config.load(environment), failed)
    await leading.__aenter__()
    await published(redis, 2)
    async with serve(price.build):
        await asyncio.sleep(0.5)
        await leading.__aexit__(None, None, None)
        released = system_clock()
        await until(lambda: bars(prices)[-1].t > released)
        assert next(bar.t for bar in bars(prices) if bar.t > released) - released < 1000
    stored = [bar.t for bar in bars(prices)]
    assert stored == sorted(set(stored))


def _read(path: Path, source: str, model: VolatilityModel, now: int) -> restart.Continuation:
    connection = open_reader(path)
    try:
        return restart.read(connection, source, model, 5, now)
    finally:
        connection.close()


def test_another_source_is_another_market(prices: Path) -> None:
    now = 1_764_000_000_000
    write(prices, now, closes(20, START), source="mock")
    model = VolatilityModel()
    same, other = _read(prices, "mock", model, now), _read(prices, "venues", model, now)
    assert same.last
    assert (same.last.t, same.after) == (now - 100, now - 100)
    assert same.breaker["state"] == "suspended"
    assert (other.last, other.state, other.breaker) == (None, None, {})
    # The first bar comes 1.1 s after the last one's end at the earliest: columns are void.
    assert other.after == now - 100 + 1100


def test_an_estimate_of_another_model_is_made_anew_from_the_bars(prices: Path) -> None:
    now = 1_764_000_000_000
    old = VolatilityModel(version="of old", prior=1e-4)
    write(prices, now, closes(200, START), model=old)
    assert _read(prices, "mock", old, now).state == bars(prices)[-1].state
    model = VolatilityModel()
    first, *rest = [(bar.t, bar.close) for bar in bars(prices)]
    expected = [*model.follow(model.start(*first), rest)][-1]
    assert _read(prices, "mock", model, now).state == expected


# Offers.


async def test_offers_are_what_the_model_says_of_the_bar(
    serve: Serve, redis: Redis, prices: Path
) -> None:
    write(prices, system_clock() - 200, closes(ENOUGH, START))
    async with serve(price.build):
        made = [offer for offer in await offers(redis, 6) if offer.cells]
    assert len(made) >= 5
    by_stamp = {bar.t: bar for bar in bars(prices)}
    compared = 0
    for offer in made:
        bar = by_stamp[offer.t]
        assert bar.sigma is not None
        assert bar.spread is not None
        end = offer.t + 100
        assert [c.start for c in offer.columns] == list(grid.starts(GEOMETRY, end))
        expected = {}
        for column in offer.columns:
            for low in grid.rows(column, bar.close, GEOMETRY.rows):
                chance = models.RATES.probability(
                    *(bar.close, bar.sigma, bar.spread, column.start - end / 1000, 5),
                    *(low, low + column.step),
                )
                rate = int(models.RATES.rate_bps(chance))
                cell = cells.Cell(column.start, 5, low, low + column.step)
                if rate:
                    expected[cell.cell_id] = rate
        assert offer.cells == expected
        compared += len(expected)
    assert compared > 200
    halves = [(offer.t + 100) // 500 for offer in made]
    assert len(set(halves)) == len(halves)  # at most two a second
    kept = await redis.get(OFFER_KEY)
    assert kept
    assert decode_offer(kept).t >= made[-1].t
    assert 0 < await redis.ttl(OFFER_KEY) <= 3600


async def test_steps_are_stored_before_they_are_offered_and_stay(
    serve: Serve, redis: Redis, prices: Path
) -> None:
    write(prices, system_clock() - 200, closes(ENOUGH, START))
    seen: dict[int, int] = {}
    async with serve(price.build), channel(redis, OFFER_CHANNEL) as heard, asyncio.timeout(20):
        for _ in range(13):
            offer = decode_offer(await heard.get())
            connection = open_reader(prices)
            stored = {c.start: c.step for c in price_store.offered_columns(connection, 0)}
            connection.close()
            for column in offer.columns:
                assert stored[column.start] == column.step
                assert seen.setdefault(column.start, column.step) == column.step
    assert len(seen) > 8  # columns have rolled


async def test_nothing_is_offered_before_there_is_a_volatility(serve: Serve, redis: Redis) -> None:
    async with serve(price.build):
        for offer in await offers(redis, 4):
            assert offer.state is MarketState.SUSPENDED
            assert (offer.columns, offer.cells) == ((), {})
            assert offer.reason in ("starting", "settling")


# By hand.


async def test_ops_suspend_and_release(
    serve: Serve,
    redis: Redis,
    prices: Path,
    environment: dict[str, str],
    run_tap: Tap,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(prices, system_clock() - 200, closes(ENOUGH, START))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    async def changed(offered: asyncio.Queue[bytes], state: MarketState) -> Offer:
        async with asyncio.timeout(10):
            while True:
                offer = decode_offer(await offered.get())
                if offer.state is state:
                    return offer

    async def tap(*words: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(run_tap, *words)

    async with serve(price.build), channel(redis, OFFER_CHANNEL) as offered:
        assert (await changed(offered, MarketState.OPEN)).cells
        words = ("--reason", "looks odd", "--operator", "ada", "--yes")
        code, out, _ = await tap("market", "suspend", *words)
        assert (code, "in force within a second" in out) == (0, True)
        began = system_clock()
        suspended = await changed(offered, MarketState.SUSPENDED)
        assert (suspended.reason, suspended.cells, suspended.columns) == ("manual", {}, ())
        assert suspended.t - began < 1500
        assert "already" in (await tap("market", "suspend", *words))[1]
        code, out, _ = await tap("market", "release", "--reason", "fine", "--yes")
        assert code == 0
        assert (await changed(offered, MarketState.OPEN)).cells
        status = (await tap("market", "status"))[1]
        assert "not suspended" in status
        assert "ada: looks odd" in status
        assert status.index("release") < status.index("suspend ")
    connection = open_writer(prices)
    with pytest.raises(apsw.ConstraintError, match="append-only"):
        connection.execute("DELETE FROM overrides")
    connection.close()


async def test_a_suspension_outlives_a_restart(serve: Serve, redis: Redis, prices: Path) -> None:
    write(prices, system_clock() - 200, closes(ENOUGH, START))
    connection, lock = open_writer(prices), WriterLock(prices)
    with lock.held(), connection:
        price_store.write_override(
            connection, price_store.Override("suspend", "maintenance", "ada", 1)
        )
    connection.close()
    lock.close()
    async with serve(price.build):
        for offer in await offers(redis, 2):
            assert (offer.state, offer.reason) == (MarketState.SUSPENDED, "manual")


# A week.


async def test_bars_older_than_a_week_are_dropped_unless_a_bet_needs_them() -> None:
    week = retention.KEPT_MS
    assert retention.droppable_before(10 * week, None) == 9 * week
    assert retention.droppable_before(10 * week, 10 * week - 5) == 9 * week
    assert retention.droppable_before(10 * week, 3 * week) == 3 * week - 3_600_000


async def test_old_bars_are_dropped_step_by_step(serve: Serve, redis: Redis, prices: Path) -> None:
    now = system_clock()
    write(prices, now - retention.KEPT_MS - 60_000, closes(600, START))
    async with serve(price.build):
        await published(redis, 2)
        await until(lambda: all(bar.t > now - retention.KEPT_MS for bar in bars(prices)))


def test_the_configured_source_is_made() -> None:
    assert config.load({}).price_source == "mock"
