"""Fan-out: everything the market says goes to every client."""

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge

from tap_trading.base.clock import Clock
from tap_trading.base.logger import rfc3339_ms
from tap_trading.game.grid import Geometry
from tap_trading.market.offer import grid_fields
from tap_trading.market.point import PricePoint
from tap_trading.market.watch import MarketState, PriceWatch
from tap_trading.stream import messages
from tap_trading.stream.client import Client, CloseCode

#: Bars a new client gets: half a minute at full rate, ten minutes of the kept history.
RECENT_BARS = 600
_GRID_EVERY_S = 0.5
#: Reconnects after a restart are spread over this time, in ms.
_SPREAD_MS = 2000
#: The goodbyes may take this long, in s.
_GOODBYE_S = 3.0

_CLIENTS = Gauge("tap_ws_clients", "WebSockets open now.")
_PRICES = Counter("tap_ws_prices_total", "Prices taken for fan-out.")


class Hub:
    """The clients of this process, and what they are told."""

    def __init__(self, watch: PriceWatch, geometry: Geometry, clock: Clock) -> None:
        self._watch = watch
        self._geometry = geometry
        self._clock = clock
        self._clients: set[Client] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._epoch = secrets.token_hex(8)
        self._before: PricePoint | None = None
        self._state = MarketState.SUSPENDED
        self._grid: bytes | None = None

    def __len__(self) -> int:
        return len(self._clients)

    @contextmanager
    def joined(self, client: Client) -> Iterator[None]:
        """Greet `client` and include it in every broadcast of the block."""
        client.send(self._hello())
        self._clients.add(client)
        self._empty.clear()
        _CLIENTS.set(len(self._clients))
        try:
            yield
        finally:
            self._clients.discard(client)
            _CLIENTS.set(len(self._clients))
            if not self._clients:
                self._empty.set()

    def server_time(self) -> str:
        """Now, as messages carry it."""
        return rfc3339_ms(self._clock())

    def _hello(self) -> bytes:
        recent = messages.bars(self._watch.history)
        latest = self._watch.latest
        return messages.encode(
            "hello",
            epoch=self._epoch,
            seq=0,
            server_time=self.server_time(),
            price=recent[-1] if recent else None,
            bars=recent,
            grid=grid_fields(self._geometry, self._clock(), latest.price if latest else None),
            state=self._watch.state(),
        )

    def on_price(self, point: PricePoint) -> None:
        """Tell everyone a new price."""
        _PRICES.inc()
        frame = messages.encode("price", **messages.bar(point, self._before))
        self._before = point
        self._offer("price", frame)

    async def follow_market(self) -> None:
        """Tell everyone when the grid moves (at most twice a second) or the state changes."""
        while True:
            state = self._watch.state()
            if state is not self._state:
                self._state = state
                frame = messages.market_status(state)
                for client in self._clients:
                    client.send(frame)
            latest = self._watch.latest
            if latest is not None and self._clients:
                self._offer_grid(latest.price)
            await asyncio.sleep(_GRID_EVERY_S)

    def _offer_grid(self, price: int) -> None:
        fields = grid_fields(self._geometry, self._clock(), price)
        frame = messages.encode("grid", **fields)
        if frame != self._grid:
            self._grid = frame
            self._offer("grid", frame)

    def _offer(self, kind: str, frame: bytes) -> None:
        for client in self._clients:
            client.offer(kind, frame)

    async def say_goodbye(self) -> None:
        """Tell every client that the service restarts, and close with 1012."""
        state = self._watch.state()
        for client in self._clients:
            wait = secrets.randbelow(_SPREAD_MS)
            client.send(messages.restart_status(state, wait))
            client.close_soon(CloseCode.RESTART)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                await self._empty.wait()
