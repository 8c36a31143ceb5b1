"""Redis: waiting for it, probing it, and subscriptions that outlive it."""

import asyncio
from pathlib import Path

import pytest
from tests.conftest import RedisServer

from tap_trading.base import background
from tap_trading.base.config import Address
from tap_trading.base.errors import StartupError
from tap_trading.base.redis import Redis, RedisError, Subscription, connect, probe, wait_until_ready


async def test_probe_writes_and_reads(redis: Redis) -> None:
    assert await probe(redis, "api") == "ok"
    assert 0 < await redis.ttl("health:api") <= 60


async def test_a_missing_redis_ends_the_start_with_a_sentence(tmp_path: Path) -> None:
    address = Address(path=str(tmp_path / "none.sock"))
    client = connect(address)
    with pytest.raises(
        StartupError, match=r"Redis at unix:.*none\.sock does not answer after 0.2 s"
    ):
        await wait_until_ready(client, address, 0.2)
    await client.aclose()


async def test_tcp_addresses_work_too() -> None:
    client = connect(Address("127.0.0.1", 1))
    with pytest.raises((RedisError, OSError)):
        await probe(client, "api")
    await client.aclose()


async def test_a_subscription_survives_a_restart(redis: Redis, redis_server: RedisServer) -> None:
    subscription = Subscription(redis, "news")
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def follow() -> None:
        async for message in subscription.messages():
            got.put_nowait(message)

    task = asyncio.create_task(follow())

    async def next_message() -> bytes:
        async with asyncio.timeout(10):
            while True:
                try:
                    await redis.publish("news", "hello")
                    async with asyncio.timeout(0.1):
                        return await got.get()
                except (TimeoutError, RedisError, OSError):
                    continue

    assert await next_message() == b"hello"
    assert await subscription.check() == "ok"
    redis_server.stop()
    async with asyncio.timeout(5):
        while subscription.connected:
            await asyncio.sleep(0.01)
    with pytest.raises(RedisError, match="not subscribed to news"):
        await subscription.check()
    redis_server.start()
    assert await next_message() == b"hello"
    await background.end(task)
