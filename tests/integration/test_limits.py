"""Limits of a wallet's requests, over processes that share a real Redis."""

import asyncio

import pytest
from tests.conftest import RedisServer

from tap_trading.auth import limits
from tap_trading.auth.limits import WalletLimits
from tap_trading.base import background
from tap_trading.base.redis import Redis

MINUTE = 60_000


class Now:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.ms = 1000 * MINUTE + 20_500

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share counts twenty times a second."""
    monkeypatch.setattr(limits, "_SHARE_EVERY_S", 0.05)


def taken(wallet: WalletLimits, times: int, user: str = "ada") -> int:
    """How many of so many requests are let through."""
    return sum(wallet.take(user) is None for _ in range(times))


async def learns(wallet: WalletLimits, count: int, user: str = "ada") -> None:
    """Wait until a process has heard from Redis what all have counted together."""
    async with asyncio.timeout(30):
        while wallet._known.get(user) != count:
            await asyncio.sleep(0.01)


async def test_a_wallet_has_its_requests_each_minute(redis: Redis, now: Now) -> None:
    wallet = WalletLimits(redis, now, 10)
    assert taken(wallet, 15) == 10
    assert wallet.take("ada") == 39  # whole seconds until the minute is over
    assert taken(wallet, 5, "bob") == 5
    now.ms += 39_400
    assert wallet.take("ada") == 1
    now.ms += 100
    assert taken(wallet, 15) == 10


async def test_processes_share_what_they_count(redis: Redis, now: Now) -> None:
    one, two = WalletLimits(redis, now, 10), WalletLimits(redis, now, 10)
    tasks = [asyncio.create_task(process.share()) for process in (one, two)]
    assert taken(one, 6) == 6
    await learns(one, 6)
    assert taken(two, 1) == 1  # learns of the others when it counts itself
    await learns(two, 7)
    assert taken(two, 10) == 3
    assert 0 < await redis.ttl("rate:1000") <= 60
    for task in tasks:
        await background.end(task)


async def test_without_redis_each_counts_for_itself_and_forgets_nothing(
    redis: Redis, redis_server: RedisServer, now: Now
) -> None:
    one, two = WalletLimits(redis, now, 10), WalletLimits(redis, now, 10)
    redis_server.stop()
    tasks = [asyncio.create_task(process.share()) for process in (one, two)]
    assert taken(one, 6) == 6
    await asyncio.sleep(0.4)
    assert taken(one, 10) == 4
    redis_server.start()
    await learns(one, 10)
    assert taken(two, 1) == 1
    await learns(two, 11)
    assert taken(two, 10) == 0
    for task in tasks:
        await background.end(task)


async def test_counts_of_a_minute_that_ended_are_not_taken_over(redis: Redis, now: Now) -> None:
    wallet = WalletLimits(redis, now, 10)
    assert taken(wallet, 10) == 10
    exchanging = asyncio.create_task(wallet._exchange())
    await asyncio.sleep(0)
    now.ms += MINUTE
    assert taken(wallet, 4) == 4
    await exchanging
    assert taken(wallet, 10) == 6
    exchanging = asyncio.create_task(wallet._exchange())
    await asyncio.sleep(0)
    assert taken(wallet, 10) == 0  # what is on its way to Redis counts
    await exchanging
    await wallet._exchange()  # nothing new
    assert await redis.hget("rate:1001", "ada") == b"10"


async def test_an_emptied_redis_forgives_nothing(redis: Redis, now: Now) -> None:
    wallet = WalletLimits(redis, now, 10)
    assert taken(wallet, 7) == 7
    await wallet._exchange()
    await redis.flushall()
    assert taken(wallet, 1) == 1
    await wallet._exchange()
    assert taken(wallet, 10) == 2


async def test_thousands_of_wallets_are_shared_at_once(redis: Redis, now: Now) -> None:
    one, two = WalletLimits(redis, now, 10), WalletLimits(redis, now, 10)
    for process in (one, two):
        assert all(process.take(f"user_{i}") is None for i in range(5000))
        await process._exchange()
    assert taken(two, 10, "user_4321") == 8
    assert await redis.hlen("rate:1000") == 5000
