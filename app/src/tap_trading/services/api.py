"""The API service: takes bets and answers questions. Port 8080."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from tap_trading.base import background
from tap_trading.base.clock import system_clock
from tap_trading.base.config import Settings
from tap_trading.base.db import ReaderPool
from tap_trading.base.health import Health
from tap_trading.ledger import practice
from tap_trading.ledger.batcher import Batcher
from tap_trading.ledger.migrations import check_schema
from tap_trading.market.watch import PriceWatch
from tap_trading.services import http, runtime, wiring
from tap_trading.services.bets import BetRoutes


@asynccontextmanager
async def build(
    settings: Settings, failed: asyncio.Future[BaseException]
) -> AsyncIterator[web.Application]:
    """Open the database, Redis and the price, and wire them into the API."""
    async with AsyncExitStack() as stack:
        health = Health("api")
        readers = ReaderPool(settings.db_path)
        stack.push_async_callback(readers.close)
        await readers.open()
        schema = await check_schema(readers)
        batcher = Batcher(settings.db_path)
        stack.push_async_callback(batcher.close)
        await batcher.open()
        health.add("sqlite", batcher.check)
        await batcher.run(lambda connection: practice.ensure_user(connection, system_clock()))

        redis = await wiring.open_redis(settings, health, stack)
        watch = PriceWatch(redis, system_clock)
        await watch.load_history()
        await stack.enter_async_context(background.running(watch.follow(), "price watch", failed))

        wiring.tell_market_state(watch, health)

        async def schema_check() -> str:
            return f"version {schema}"

        health.add("schema", schema_check)

        app = http.application(health, origins=settings.allowed_origins)
        routes = BetRoutes(
            batcher=batcher,
            watch=watch,
            geometry=wiring.geometry(settings),
            stakes=settings.stakes,
            clock=system_clock,
        )
        app.router.add_get("/api/healthz", http.healthz)
        app.router.add_get("/api/version", http.show_version)
        app.router.add_post("/api/bets", routes.place)
        yield app


def main() -> None:
    """Entry point of `api`."""
    runtime.run("api", lambda settings: settings.api_listen, build)


if __name__ == "__main__":
    main()
