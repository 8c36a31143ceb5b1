"""The API service: signs wallets in, takes bets and answers questions. Port 8080."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import apsw
from aiohttp import web

from tap_trading.archive.shelf import Shelf
from tap_trading.auth.challenge import Challenges
from tap_trading.auth.limits import WalletLimits
from tap_trading.auth.sessions import Sessions
from tap_trading.auth.signature import Ed25519
from tap_trading.base import background, logger
from tap_trading.base.clock import system_clock
from tap_trading.base.config import Settings
from tap_trading.base.db import ReaderPool
from tap_trading.base.disk import DiskGuard
from tap_trading.base.health import Health
from tap_trading.base.live import Live, live_of
from tap_trading.base.redis import Redis, RedisError
from tap_trading.ledger import accounts
from tap_trading.ledger.batcher import Batcher, OverloadedError, StorageUnavailableError
from tap_trading.ledger.bets import BetBooks
from tap_trading.ledger.migrations import check_schema
from tap_trading.ledger.placing import BetRequest, Limits, Outcome
from tap_trading.market.watch import PriceWatch
from tap_trading.services import desk, http, openapi, runtime, wiring
from tap_trading.services.auth import AuthRoutes
from tap_trading.services.bets import BetRoutes
from tap_trading.services.desk import BetDesk
from tap_trading.services.lane import BetLanes
from tap_trading.services.reading import ReadRoutes

#: A process that stands by looks this often who is signed in, in s; an answer is good for longer.
_FORESEE_EVERY_S = 5.0


@asynccontextmanager
async def build(
    settings: Settings, failed: asyncio.Future[BaseException]
) -> AsyncIterator[web.Application]:
    """Open the database, Redis and the price, and wire them into the API."""
    async with AsyncExitStack() as stack:
        health = Health("api")
        readers, batcher = await _open_books(settings, health, stack)
        redis = await wiring.open_redis(settings, health, stack)
        follow = partial(_follow, stack, failed)

        watch = PriceWatch(redis, system_clock)
        await watch.load_history()
        await follow(watch.follow_prices(), "price watch")
        await follow(watch.follow_offers(), "offer watch")
        wiring.tell_market_state(watch, health)

        sessions = Sessions(redis, system_clock)
        await follow(sessions.follow(), "revocations")
        live = live_of(settings.live_link, settings.release_link)
        await follow(_foresee_sessions(sessions, live), "sessions to come")
        health.add("revocations", sessions.check, vital=False)
        limits = WalletLimits(redis, system_clock, settings.wallet_rate)
        await follow(limits.share(), "rate limits")

        disk = DiskGuard(settings.db_path.parent, settings.disk_full_percent)
        disk.look()
        await follow(disk.watch(), "disk guard")
        health.add("disk", disk.check, vital=False)

        cross_origin = http.CrossOrigin(settings.allowed_origins)
        app = http.application(health, cross_origin=cross_origin, metrics_dir=settings.metrics_dir)
        geometry = wiring.geometry(settings)
        sign_in = _sign_in(settings, redis, sessions, batcher)
        prices = ReaderPool(settings.prices_db_path)
        stack.push_async_callback(prices.close)
        await prices.open()
        reading = ReadRoutes(
            readers=readers,
            prices=prices,
            sessions=sessions,
            watch=watch,
            clock=system_clock,
            shelf=Shelf(settings.archive_dir),
        )
        bet_desk = BetDesk(
            watch=watch,
            disk=disk,
            geometry=geometry,
            stakes=settings.stakes,
            clock=system_clock,
        )
        bets = BetRoutes(bet_desk=bet_desk, batcher=batcher, sessions=sessions, limits=limits)
        _add_routes(app, sign_in, reading, bets)
        lanes = BetLanes(
            bet_desk=bet_desk,
            batcher=batcher,
            sessions=sessions,
            limits=limits,
            cross_origin=cross_origin,
        )
        lanes.put_in_front_of(app)
        yield app


async def _open_books(
    settings: Settings, health: Health, stack: AsyncExitStack
) -> tuple[ReaderPool, Batcher[BetRequest, Outcome]]:
    """The database's readers and its writer. Raises DatabaseError."""
    readers = ReaderPool(settings.db_path)
    stack.push_async_callback(readers.close)
    await readers.open()
    schema = await check_schema(readers)
    books = BetBooks(
        Limits(
            user=settings.max_open_stake,
            cell=settings.max_cell_stake,
            column=settings.max_column_stake,
            user_liability=settings.max_open_liability,
            cell_liability=settings.max_cell_liability,
            column_liability=settings.max_column_liability,
        )
    )
    batcher = Batcher(settings.db_path, books.place)
    stack.push_async_callback(batcher.close)
    await batcher.open()
    health.add("sqlite", batcher.check)
    health.add_readiness("write", batcher.check_rolled_back)
    await batcher.check()  # a database that cannot be written keeps the service from starting

    async def schema_check() -> str:
        return f"version {schema}"

    health.add("schema", schema_check)
    return readers, batcher


async def _follow(
    stack: AsyncExitStack,
    failed: asyncio.Future[BaseException],
    work: Coroutine[object, object, None],
    name: str,
) -> None:
    """Run `work` in the background for as long as the service lives."""
    await stack.enter_async_context(background.running(work, name, failed))


async def _foresee_sessions(sessions: Sessions, live: Live) -> None:
    """Know who is signed in until this process takes over from another one; runs for ever."""
    has_taken_over = False
    while True:
        has_taken_over = has_taken_over or live()
        if not has_taken_over:
            try:
                await sessions.foresee()
            except (RedisError, OSError) as error:  # then each is asked for when it comes
                logger.get().warning("sessions not foreseen", error=str(error))
        await asyncio.sleep(_FORESEE_EVERY_S)


def _sign_in(
    settings: Settings,
    redis: Redis,
    sessions: Sessions,
    batcher: Batcher[BetRequest, Outcome],
) -> AuthRoutes:
    async def open_account(address: str) -> str:
        def work(connection: apsw.Connection) -> accounts.Account:
            return accounts.open_account(
                connection, address, system_clock(), settings.practice_credit
            )

        try:
            return (await batcher.run(work)).user_id
        except (OverloadedError, StorageUnavailableError) as error:
            raise desk.unwritten(error, "You are not signed in") from error

    return AuthRoutes(
        challenges=Challenges(redis, system_clock, settings.site_domain, settings.site_uri),
        sessions=sessions,
        scheme=Ed25519(settings.site_domain),
        open_account=open_account,
    )


def _add_routes(
    app: web.Application, sign_in: AuthRoutes, reading: ReadRoutes, bets: BetRoutes
) -> None:
    app.router.add_get("/api/healthz", http.healthz)
    app.router.add_get("/api/version", http.show_version)
    app.router.add_get("/api/openapi.json", openapi.show_openapi)
    app.router.add_post("/api/auth/challenge", sign_in.challenge)
    app.router.add_post("/api/auth/verify", sign_in.verify)
    app.router.add_post("/api/auth/logout", sign_in.logout)
    app.router.add_get("/api/me", reading.me)
    app.router.add_get("/api/market", reading.market)
    app.router.add_post("/api/bets", bets.place)
    app.router.add_get("/api/bets", reading.bets)
    app.router.add_get("/api/bets/{id}", reading.bet)
    app.router.add_get("/api/ledger", reading.ledger)


def main() -> None:
    """Entry point of `api`."""
    runtime.run("api", lambda settings: settings.api_listen, build)


if __name__ == "__main__":
    main()
