"""The WebSocket service: live prices and the grid to every browser, and to traders what
becomes of their bets. Port 8081.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

from aiohttp import web

from tap_trading.auth.sessions import Sessions
from tap_trading.base import background, logger
from tap_trading.base.clock import system_clock
from tap_trading.base.config import Settings
from tap_trading.base.errors import ProblemError
from tap_trading.base.health import Health
from tap_trading.base.live import live_of
from tap_trading.market.watch import PriceWatch
from tap_trading.services import auth, http, runtime, wiring
from tap_trading.stream.client import Client
from tap_trading.stream.hub import RECENT_BARS, Hub
from tap_trading.stream.traders import Traders

#: A ping this often, in s; a client that does not answer within half of it is gone.
_HEARTBEAT_S = 20.0
#: The largest message a client may send, in bytes.
_LARGEST_MESSAGE = 4096


class StreamRoute:
    """`/ws`: upgrades a browser's request and keeps it connected to the hub."""

    def __init__(
        self, hub: Hub, traders: Traders, origins: tuple[str, ...], max_clients: int
    ) -> None:
        self._hub = hub
        self._traders = traders
        self._origins = frozenset(origins)
        self._max_clients = max_clients

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """One connection, from upgrade to close."""
        self._check(request)
        # Compressed, a broadcast would cost each client its own compression.
        ws = web.WebSocketResponse(
            heartbeat=_HEARTBEAT_S, max_msg_size=_LARGEST_MESSAGE, compress=False
        )
        ws.headers["X-Request-ID"] = request[http.REQUEST_ID]
        await ws.prepare(request)
        log = logger.get()
        remote = request.headers.get("X-Real-IP", request.remote)
        began = time.monotonic()
        client = Client(ws, self._hub.server_time, self._traders.hear, request.transport)
        with self._hub.joined(client):
            log.info("client connected", remote=remote, clients=len(self._hub))
            pump = asyncio.create_task(client.pump())
            try:
                # The cookie is SameSite=Strict: pages of other sites come without it.
                if token := auth.token_of("", request.headers.get("Cookie", "")):
                    await self._traders.recognise(client, token)
                await client.listen()
                if client.closed_with is not None:
                    await pump
            finally:
                self._traders.left(client)
                await background.end(pump)
        log.info(
            "client disconnected",
            remote=remote,
            code=client.closed_with or ws.close_code,
            seconds=round(time.monotonic() - began, 1),
        )
        return ws

    def _check(self, request: web.Request) -> None:
        """Refuse foreign pages, requests that are no upgrade, and one client too many."""
        origin = request.headers.get("Origin")
        if origin is not None and not self._may_connect(origin, request.host):
            raise ProblemError(403, "origin_not_allowed", f"Pages of {origin} may not connect.")
        if not web.WebSocketResponse().can_prepare(request):
            raise ProblemError(426, "upgrade_required", "This address speaks WebSocket only.")
        if len(self._hub) >= self._max_clients:
            raise ProblemError(
                503, "overloaded", "Too many clients are connected.", retry_after_s=5
            )

    def _may_connect(self, origin: str, host: str) -> bool:
        try:
            return origin in self._origins or urlsplit(origin).netloc == host
        except ValueError:  # not even a URL
            return False


@asynccontextmanager
async def build(
    settings: Settings, failed: asyncio.Future[BaseException]
) -> AsyncIterator[web.Application]:
    """Follow the price in Redis and wire it to the hub."""
    async with AsyncExitStack() as stack:
        health = Health("ws")
        redis = await wiring.open_redis(settings, health, stack)
        watch = PriceWatch(redis, system_clock, history=RECENT_BARS)
        await watch.load_history()
        sessions = Sessions(redis, system_clock)
        traders = Traders(redis, sessions)
        hub = Hub(watch, system_clock, lambda: traders.epoch)
        watch.on_price, watch.on_offer = hub.on_price, hub.on_offer
        for work, name in (
            (watch.follow_prices(), "price watch"),
            (watch.follow_offers(), "offer watch"),
            (hub.follow_market(), "market"),
            (sessions.follow(), "revocations"),
            (traders.follow(), "changes"),
            (traders.reset(), "resets"),
            (traders.keep(), "presence"),
            (traders.watch_sessions(), "sessions"),
        ):
            await stack.enter_async_context(background.running(work, name, failed))
        await traders.ready()

        health.add("subscription", watch.check)
        health.add("revocations", sessions.check, vital=False)
        health.add("changes", traders.check, vital=False)
        wiring.tell_market_state(watch, health)

        app = http.application(health)
        route = StreamRoute(hub, traders, settings.allowed_origins, settings.ws_max_clients)
        app.router.add_get("/ws", route.connect)

        live = live_of(settings.live_link, settings.release_link)

        async def say_goodbye(_app: web.Application) -> None:
            await hub.say_goodbye(others_serve=not live())

        app.on_shutdown.append(say_goodbye)
        yield app


def main() -> None:
    """Entry point of `ws`."""
    runtime.run("ws", lambda settings: settings.ws_listen, build)


if __name__ == "__main__":
    main()
