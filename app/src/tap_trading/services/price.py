"""The price service: takes ticks from its source and publishes prices. Port 8090."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from tap_trading.base import background
from tap_trading.base.clock import system_clock
from tap_trading.base.config import Settings
from tap_trading.base.errors import StartupError
from tap_trading.base.health import Health
from tap_trading.market.feeds import replay
from tap_trading.market.feeds.mock import MockSource
from tap_trading.market.feeds.replay import ReplaySource
from tap_trading.market.feeds.source import PriceSource
from tap_trading.market.publisher import Publisher
from tap_trading.services import http, runtime, wiring


def source_of(settings: Settings) -> PriceSource:
    """The configured source. Raises StartupError when its file cannot be replayed."""
    if settings.price_source == "mock" or settings.replay_file is None:
        return MockSource(settings.mock_seed, settings.mock_start, system_clock)
    try:
        recording = replay.read(settings.replay_file)
    except replay.ReplayError as error:
        raise StartupError(f"TAP_REPLAY_FILE: {error}") from error
    return ReplaySource(recording, settings.replay_speed, system_clock)


@asynccontextmanager
async def build(
    settings: Settings, failed: asyncio.Future[BaseException]
) -> AsyncIterator[web.Application]:
    """Open the source and Redis, and publish from one to the other."""
    async with AsyncExitStack() as stack:
        source = source_of(settings)
        health = Health("price")
        redis = await wiring.open_redis(settings, health, stack)
        publisher = Publisher(source, redis, system_clock)
        await publisher.resume()
        for work, name in (
            (publisher.take_ticks(), "price source"),
            (publisher.publish_bars(), "price publisher"),
        ):
            await stack.enter_async_context(background.running(work, name, failed))

        health.add("source", publisher.check)
        yield http.application(health)


def main() -> None:
    """Entry point of `price`."""
    runtime.run("price", lambda settings: settings.price_listen, build)


if __name__ == "__main__":
    main()
