"""Fan-out: everything the market says goes to every client."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import orjson
from prometheus_client import Counter, Gauge

from tap_trading.base.clock import Clock
from tap_trading.base.logger import rfc3339_ms
from tap_trading.market.offer import Offer, grid_fields
from tap_trading.market.point import PricePoint
from tap_trading.market.watch import MarketState, PriceWatch
from tap_trading.stream import messages
from tap_trading.stream.client import Client, CloseCode

#: Bars a new client gets: half a minute at full rate, ten minutes of the kept history.
RECENT_BARS = 600
#: The market's age is looked at this often, should nothing come any more.
_LOOK_EVERY_S = 0.5
#: Reconnects after a restart are spread over this time, in ms.
_SPREAD_MS = 2000
#: The goodbyes may take this long, in s.
_GOODBYE_S = 3.0
#: Clients of another live release are sent there one by one, each after so long, all of them within
#: so long, in s: it greets them as they come, and nobody waits for it. Each spreads a little too.
_ONE_BY_ONE_S = 0.005
_ALL_SENT_S = 5.0
_CALM_SPREAD_MS = 400

_CLIENTS = Gauge("tap_ws_clients", "WebSockets open now.")
_PRICES = Counter("tap_ws_prices_total", "Prices taken for fan-out.")
_GRIDS = Counter("tap_ws_grids_total", "Grids taken for fan-out.")


class _Recent:
    """The bars up to a price, encoded."""

    def __init__(
        self, until: PricePoint | None = None, bars: Sequence[Mapping[str, int]] = ()
    ) -> None:
        self.until = until
        self.newest = bars[-1] if bars else None
        self.bars = orjson.Fragment(orjson.dumps(bars))


class Hub:
    """The clients of this process, and what they are told of the market."""

    def __init__(self, watch: PriceWatch, clock: Clock, epoch: Callable[[], str]) -> None:
        """`epoch` says in which one traders' events are numbered."""
        self._watch = watch
        self._clock = clock
        self._epoch = epoch
        self._clients: set[Client] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._before: PricePoint | None = None
        self._status = watch.status()
        # Encoded once for all who come.
        self._grid = orjson.dumps(self._grid_fields())
        self._recent = _Recent()

    def __len__(self) -> int:
        return len(self._clients)

    @contextmanager
    def joined(self, client: Client) -> Iterator[None]:
        """Greet `client` and include it in every broadcast of the block."""
        client.send(self._hello())
        if self._watch.state() is not MarketState.OPEN:
            client.send(messages.market_status(self._watch.status()))
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
        latest = self._watch.latest
        if latest is not self._recent.until:
            self._recent = _Recent(latest, messages.bars(self._watch.history))
        return messages.encode(
            "hello",
            epoch=self._epoch(),
            seq=0,
            server_time=self.server_time(),
            price=self._recent.newest,
            bars=self._recent.bars,
            grid=orjson.Fragment(self._grid),
            state=self._watch.state(),
        )

    def on_price(self, point: PricePoint) -> None:
        """Tell everyone a new price."""
        _PRICES.inc()
        frame = messages.encode("price", **messages.bar(point, self._before))
        self._before = point
        self._offer("price", frame)

    def on_offer(self, _offer: Offer) -> None:
        """Tell everyone what is offered now, and what the state is if it has changed."""
        _GRIDS.inc()
        self._tell_status()
        self._tell_grid()

    async def follow_market(self) -> None:
        """Tell everyone when nothing has come for so long that the state changes, for ever."""
        while True:
            if self._tell_status():
                self._tell_grid()
            await asyncio.sleep(_LOOK_EVERY_S)

    def _tell_status(self) -> bool:
        """Whether there was something to tell."""
        before, self._status = self._status, self._watch.status()
        if before[:2] == self._status[:2]:  # the time left changes always
            return False
        frame = messages.market_status(self._status)
        for client in self._clients:
            client.send(frame)
        return True

    def _grid_fields(self) -> dict[str, object]:
        """The grid; nothing is offered while the market is suspended."""
        suspended = self._watch.state() is MarketState.SUSPENDED
        return grid_fields(None if suspended else self._watch.offer)

    def _tell_grid(self) -> None:
        encoded = orjson.dumps(self._grid_fields())
        if encoded != self._grid:
            self._grid = encoded
            self._offer("grid", b'{"type":"grid",' + encoded[1:])

    def _offer(self, kind: str, frame: bytes) -> None:
        for client in self._clients:
            client.offer(kind, frame)

    async def say_goodbye(self, *, others_serve: bool = False) -> None:
        """Tell every client that the service restarts, and close with 1012.

        When others serve already they are told one after the other.
        """
        clients, state = list(self._clients), self._watch.state()
        spread_ms = _CALM_SPREAD_MS if others_serve else _SPREAD_MS
        pause_s = min(_ONE_BY_ONE_S, _ALL_SENT_S / max(len(clients), 1)) if others_serve else 0.0
        began = asyncio.get_running_loop().time()
        for number, client in enumerate(clients):
            client.send(messages.restart_status(state, secrets.randbelow(spread_ms)))
            client.close_soon(CloseCode.RESTART)
            ahead_s = began + number * pause_s - asyncio.get_running_loop().time()
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                await self._empty.wait()
