"""The price service: source → bars → channel, key and sorted set."""

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest
from tests.conftest import RedisServer
from tests.integration.conftest import Serve

from tap_trading.base import background, config
from tap_trading.base.clock import system_clock
from tap_trading.base.errors import StartupError
from tap_trading.base.redis import Redis
from tap_trading.market.feeds import replay
from tap_trading.market.feeds.mock import MockSource
from tap_trading.market.point import CHANNEL, HISTORY_KEY, LATEST_KEY, PricePoint, decode, dollars
from tap_trading.market.publisher import HISTORY_TTL_S, LATEST_TTL_S, Publisher
from tap_trading.market.watch import MarketState, PriceWatch
from tap_trading.services import price


async def published(redis: Redis, count: int) -> list[PricePoint]:
    points = []
    async with redis.pubsub() as pubsub, asyncio.timeout(20):
        await pubsub.subscribe(CHANNEL)
        async for message in pubsub.listen():
            if message["type"] == "message":
                points.append(decode(message["data"]))
            if len(points) == count:
                break
    return points


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
        assert (await answer.json())["checks"] == {"redis": "ok", "source": "ok"}
        text = await (await client.get("/metrics")).text()
        assert 'tap_prices_published_total{source="mock"}' in text


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
    await Publisher(MockSource(1, 100, system_clock), redis, system_clock).resume()
    assert await redis.zcard(HISTORY_KEY) == 1  # whose it is was not known: kept
    recording = replay.Recording("trades.csv", [1], [100])
    other = Publisher(replay.ReplaySource(recording, 1, system_clock), redis, system_clock)
    await other.resume()
    assert await redis.zcard(HISTORY_KEY) == 0
    assert other._seq > 7


async def test_a_recording_that_cannot_be_played_ends_the_start(
    serve: Serve, tmp_path: Path
) -> None:
    with pytest.raises(StartupError, match=r"TAP_REPLAY_FILE: .*none\.csv: No such file"):
        async with serve(
            price.build, TAP_PRICE_SOURCE="replay", TAP_REPLAY_FILE=str(tmp_path / "none.csv")
        ):
            pass


async def test_publishing_goes_on_after_redis_was_away(
    redis: Redis, redis_server: RedisServer
) -> None:
    publisher = Publisher(MockSource(1, 4_200_000, system_clock), redis, system_clock)
    tasks = [
        asyncio.create_task(publisher.take_ticks()),
        asyncio.create_task(publisher.publish_bars()),
    ]
    await published(redis, 2)
    redis_server.stop()
    async with asyncio.timeout(10):
        while not publisher._outage:
            await asyncio.sleep(0.05)
    with pytest.raises(RuntimeError, match="cannot be published"):
        await publisher.check()
    redis_server.start()
    async with asyncio.timeout(10):
        while publisher._outage:
            await asyncio.sleep(0.05)
    assert await publisher.check() == "ok"
    for task in tasks:
        await background.end(task)


async def test_before_the_first_tick_the_source_is_not_well(redis: Redis) -> None:
    publisher = Publisher(MockSource(1, 100, system_clock), redis, system_clock)
    with pytest.raises(RuntimeError, match="no price from mock yet"):
        await publisher.check()


async def test_a_watch_takes_history_and_channel_and_skips_nonsense(redis: Redis) -> None:
    now = 1_764_000_000_000
    await redis.zadd(HISTORY_KEY, {f"{now - 1000}:1:100.00": now - 1000, "nonsense": now})
    clock = now
    watch = PriceWatch(redis, lambda: clock, history=3)
    assert watch.state() is MarketState.SUSPENDED
    await watch.load_history()
    assert watch.latest == PricePoint(now - 1000, 1, 10000)
    seen: list[PricePoint] = []
    watch.on_price = seen.append
    task = asyncio.create_task(watch.follow())
    async with asyncio.timeout(5):
        while len(seen) < 3:
            for wire in ("junk", f"{now}:2:{dollars(10100)}", f"{now + 100}:3:102.00"):
                await redis.publish(CHANNEL, wire)
            await asyncio.sleep(0.01)
    assert {point.price for point in watch.history} <= {10000, 10100, 10200}
    assert watch.state() is MarketState.OPEN
    clock = watch.history[-1].t + 5000
    assert watch.state() is MarketState.DEGRADED
    clock += 5000
    assert watch.state() is MarketState.SUSPENDED
    await background.end(task)


def test_the_configured_source_is_made() -> None:
    assert price.source_of(config.load({})).name == "mock"
