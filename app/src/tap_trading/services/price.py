"""The price service: from exchanges to bars, and to what is offered. Port 8090."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple, TypeVar

import aiohttp
import apsw
from aiohttp import web

from tap_trading.base import background, migrations
from tap_trading.base.clock import system_clock
from tap_trading.base.config import Settings
from tap_trading.base.db import DatabaseError, ReaderPool
from tap_trading.base.errors import StartupError
from tap_trading.base.health import Health
from tap_trading.base.live import live_of
from tap_trading.ledger import queries
from tap_trading.ledger.batcher import Batcher, OverloadedError, StorageUnavailableError
from tap_trading.market import price_store, retention
from tap_trading.market.bar_maker import BarMaker
from tap_trading.market.engine import MarketRules, PriceEngine
from tap_trading.market.feeds import replay
from tap_trading.market.feeds.connection import VenueSource, open_session
from tap_trading.market.feeds.mock import MockSource
from tap_trading.market.feeds.replay import ReplaySource
from tap_trading.market.feeds.source import PriceSource
from tap_trading.market.feeds.venues import VENUES
from tap_trading.market.index import IndexRules, single
from tap_trading.market.publisher import Publisher
from tap_trading.services import http, runtime, wiring
from tap_trading.settlement import models

T = TypeVar("T")


class Sources(NamedTuple):
    """Where the prices come from."""

    name: str
    venues: tuple[PriceSource, ...]
    rules: IndexRules
    cross_check: PriceSource | None = None


async def sources_of(settings: Settings, stack: AsyncExitStack) -> Sources:
    """The configured sources. Raises StartupError when their file cannot be replayed."""
    match settings.price_source:
        case "venues":
            session = await stack.enter_async_context(open_session())
            return _venues_of(settings, session)
        case "replay" if settings.replay_file is not None:
            try:
                recording = await asyncio.to_thread(replay.read, settings.replay_file)
            except replay.ReplayError as error:
                raise StartupError(f"TAP_REPLAY_FILE: {error}") from error
            return _alone(ReplaySource(recording, settings.replay_speed, system_clock))
        case _:
            return _alone(MockSource(settings.mock_seed, settings.mock_start, system_clock))


def _alone(source: PriceSource) -> Sources:
    return Sources(source.name, (source,), single(source.name))


def _venues_of(settings: Settings, session: aiohttp.ClientSession) -> Sources:
    urls: Mapping[str, str] = {
        "coinbase": settings.coinbase_url,
        "kraken": settings.kraken_url,
        "bitstamp": settings.bitstamp_url,
        "gemini": settings.gemini_url,
        "binance": settings.binance_url,
    }

    def source(name: str) -> PriceSource:
        venue = VENUES[name](url=urls[name]) if urls[name] else VENUES[name]()
        return VenueSource(venue, session, system_clock)

    return Sources(
        name="venues",
        venues=tuple(map(source, settings.venues)),
        rules=IndexRules(settings.venues, quorum=settings.quorum),
        cross_check=source(settings.cross_check) if settings.cross_check else None,
    )


@asynccontextmanager
async def build(
    settings: Settings, failed: asyncio.Future[BaseException]
) -> AsyncIterator[web.Application]:
    """Open the sources, the price database and Redis, and make the market."""
    async with AsyncExitStack() as stack:
        health = Health("price")
        sources = await sources_of(settings, stack)
        batcher = await _open_prices(settings, stack)
        redis = await wiring.open_redis(settings, health, stack)
        publisher = Publisher(sources.name, redis, system_clock)
        maker = BarMaker(sources.venues, sources.rules, system_clock)
        rules = MarketRules(
            source=sources.name,
            geometry=wiring.geometry(settings),
            rates=models.RATES,
            volatility=models.VOLATILITY,
        )
        engine = PriceEngine(
            rules,
            maker,
            _Running(batcher),
            publisher,
            system_clock,
            secrets.token_hex(8),
            live_of(settings.live_link, settings.release_link),
        )
        stack.push_async_callback(engine.release)
        works = [
            (publisher.run(), "price publisher"),
            *((maker.follow(each), f"{each.name} feed") for each in sources.venues),
            (engine.run(), "market"),
            (maker.keep_time(), "bars"),
            (
                retention.keep_a_week(engine.drop_bars, _oldest_bet(settings), system_clock),
                "retention",
            ),
        ]
        if sources.cross_check is not None:
            works.append((maker.follow_cross_check(sources.cross_check), "cross-check feed"))
        for work, name in works:
            await stack.enter_async_context(background.running(work, name, failed))

        health.add("publishing", publisher.check)
        health.add("source", maker.check)
        health.add("storing", engine.check)
        health.add("market", engine.market, vital=False)
        health.add_readiness("write", batcher.check_rolled_back)
        yield http.application(health)


async def _open_prices(settings: Settings, stack: AsyncExitStack) -> Batcher[None, None]:
    """The writer of the price database. Raises DatabaseError."""
    readers = ReaderPool(settings.prices_db_path, size=1)
    try:
        await readers.open()
        await migrations.check_schema(readers, price_store.available())
    finally:
        await readers.close()
    batcher: Batcher[None, None] = Batcher(settings.prices_db_path)
    stack.push_async_callback(batcher.close)
    await batcher.open()
    return batcher


class _Running:
    """The engine's way into the price database."""

    def __init__(self, batcher: Batcher[None, None]) -> None:
        self._batcher = batcher

    async def __call__(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run `work` in a durable transaction. Raises DatabaseError, and what `work` raises."""
        try:
            return await self._batcher.run(work)
        except (OverloadedError, StorageUnavailableError) as error:
            raise DatabaseError(str(error)) from error


def _oldest_bet(settings: Settings) -> Callable[[], Awaitable[int | None]]:
    """Asks the books; opened for each question, which is one an hour."""

    async def ask() -> int | None:
        readers = ReaderPool(settings.db_path, size=1)
        try:
            await readers.open()
            return await readers.run(queries.oldest_bet)
        finally:
            await readers.close()

    return ask


def main() -> None:
    """Entry point of `price`."""
    runtime.run("price", lambda settings: settings.price_listen, build)


if __name__ == "__main__":
    main()
