"""The resolver service: fixes rates, settles columns, and tells the traders. Port 8091."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import web

from tap_trading.base import background
from tap_trading.base.clock import system_clock
from tap_trading.base.config import Settings
from tap_trading.base.db import ReaderPool
from tap_trading.base.health import Check, Health
from tap_trading.base.live import live_of
from tap_trading.base.migrations import check_schema
from tap_trading.base.redis import Redis, connect, probe
from tap_trading.ledger import migrations
from tap_trading.ledger.batcher import Batcher
from tap_trading.market import price_store
from tap_trading.services import http, runtime
from tap_trading.settlement import models
from tap_trading.settlement.herald import Herald
from tap_trading.settlement.history import History
from tap_trading.settlement.resolver import Books, Resolver, do_each


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
        resolver.live = live_of(settings.live_link, settings.release_link)
        herald = Herald(History(redis))
        resolver.on_changes, resolver.on_missed = herald.tell, herald.missed
        resolver.on_lead, resolver.on_release = herald.lead, herald.flush
        await stack.enter_async_context(background.running(herald.publish(), "herald", failed))
        # At the end the other way round: the herald hears of the last transaction.
        stack.push_async_callback(resolver.release)
        await stack.enter_async_context(background.running(resolver.run(), "resolver", failed))
        health.add("resolver", resolver.check)
        health.add_readiness("write", books.check_rolled_back)
        health.add_readiness("bars", _bars_of(prices))
        yield http.application(health)


def _redis(settings: Settings, health: Health, stack: AsyncExitStack) -> Redis:
    """Redis, which this service can work without: nobody is told then, but all are paid."""
    redis = connect(settings.redis_addr, retries=0)  # what the herald says must not come twice
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


def _bars_of(prices: ReaderPool) -> Check:
    """Readiness check: the bars can be read."""

    async def check() -> str:
        return f"final until {await prices.run(price_store.bars_until)}"

    return check


def main() -> None:
    """Entry point of `resolver`."""
    runtime.run("resolver", lambda settings: settings.resolver_listen, build)


if __name__ == "__main__":
    main()
