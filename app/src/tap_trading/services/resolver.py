"""The resolver service: fixes rates, settles columns, and tells the traders. Port 8091."""

import asyncio
import os
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import web
from prometheus_client import Gauge

from tap_trading.base import background, logger
from tap_trading.base.clock import system_clock
from tap_trading.base.config import Settings
from tap_trading.base.db import ReaderPool
from tap_trading.base.health import Health
from tap_trading.base.metrics import ERRORS
from tap_trading.base.migrations import check_schema
from tap_trading.base.redis import Redis, RedisError, connect, probe
from tap_trading.ledger import migrations
from tap_trading.ledger.batcher import Batcher
from tap_trading.ledger.resolving import Changes
from tap_trading.market import price_store
from tap_trading.services import http, runtime
from tap_trading.settlement import changes, models
from tap_trading.settlement.resolver import Books, Resolver, do_each

#: Transactions that may wait to be published; the oldest is dropped for one more. Nothing is
#: lost with it: whoever misses a change finds it in the books.
_MOST_WAITING = 2000

_WAITING = Gauge("tap_changes_waiting", "Transactions that wait to be told to the traders.")


class Herald:
    """Publishes what has been changed, in its order."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: deque[Changes] = deque(maxlen=_MOST_WAITING)
        self._wake = asyncio.Event()
        _WAITING.set_function(lambda: len(self._waiting))

    def tell(self, changed: Changes) -> None:
        """Publish this soon."""
        self._waiting.append(changed)
        self._wake.set()

    async def publish(self) -> None:
        """Publish for ever; what Redis does not take is dropped."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                message = changes.encode(self._waiting.popleft())
                try:
                    await self._redis.publish(changes.CHANNEL, message)
                except (RedisError, OSError) as error:
                    ERRORS.labels("changes_publish").inc()
                    logger.get().warning("changes not published", error=str(error))


@asynccontextmanager
async def build(
    settings: Settings, failed: asyncio.Future[BaseException]
) -> AsyncIterator[web.Application]:
    """Open books, prices and Redis, and resolve from one to the other."""
    async with AsyncExitStack() as stack:
        health = Health("resolver")
        readers = await _readers(settings.db_path, stack)
        prices = await _readers(settings.prices_db_path, stack)
        await migrations.check_schema(readers)
        await check_schema(prices, price_store.available())
        books: Books = Batcher(settings.db_path, do_each)
        stack.push_async_callback(books.close)
        await books.open()
        redis = _redis(settings, health, stack)

        resolver = Resolver(
            books=books,
            readers=readers,
            prices=prices,
            rates=models.RATES,
            speed_bump_ms=settings.speed_bump_ms,
            clock=system_clock,
            holder=f"{socket.gethostname()}:{os.getpid()}",
        )
        stack.push_async_callback(resolver.release)
        herald = Herald(redis)
        resolver.on_changes = herald.tell
        for work, name in ((herald.publish(), "herald"), (resolver.run(), "resolver")):
            await stack.enter_async_context(background.running(work, name, failed))
        health.add("resolver", resolver.check)
        yield http.application(health)


def _redis(settings: Settings, health: Health, stack: AsyncExitStack) -> Redis:
    """Redis, which this service can work without: nobody is told then, but all are paid."""
    redis = connect(settings.redis_addr)
    stack.push_async_callback(redis.aclose)

    async def check() -> str:
        return await probe(redis, health.component)

    health.add("redis", check, vital=False)
    return redis


async def _readers(path: Path, stack: AsyncExitStack) -> ReaderPool:
    readers = ReaderPool(path)
    stack.push_async_callback(readers.close)
    await readers.open()
    return readers


def main() -> None:
    """Entry point of `resolver`."""
    runtime.run("resolver", lambda settings: settings.resolver_listen, build)


if __name__ == "__main__":
    main()
