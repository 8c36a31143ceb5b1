"""A venue's feed over a WebSocket: judged by its last message, reconnected for ever."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass

import aiohttp
from prometheus_client import Counter, Gauge

from tap_trading.base import logger
from tap_trading.base.clock import Clock
from tap_trading.market.feeds.fields import BadMessageError
from tap_trading.market.feeds.order import ReconnectError
from tap_trading.market.feeds.source import SourceStatus, Tick
from tap_trading.market.feeds.venue import Liveness, Trade, Venue

#: A longer message ends the connection, in bytes. Gemini's first is some 200 KB.
LARGEST_MESSAGE = 4 * 1024 * 1024
#: How long a venue gets to answer our goodbye, or to take what we send, in s.
_CLOSE_S = 0.5
_SEND_S = 2.0

_MESSAGES = Counter("tap_feed_messages_total", "Messages from a venue.", ["source"])
_TRADES = Counter("tap_feed_trades_total", "New trades from a venue.", ["source"])
_DROPPED = Counter(
    "tap_feed_dropped_total",
    "Messages dropped (malformed, unknown) and trades dropped (repeated, late).",
    ["source", "reason"],
)
_GAPS = Counter("tap_feed_gaps_total", "Gaps in the numbers of a venue's trades.", ["source"])
_MISSED = Counter("tap_feed_missed_trades_total", "Trades that those gaps hid.", ["source"])
_LOST = Counter(
    "tap_feed_reconnects_total", "Connections lost or not made, by reason.", ["source", "reason"]
)
_CONNECTED = Gauge("tap_feed_connected", "1 while a venue's connection stands.", ["source"])
_LAST_MESSAGE = Gauge(
    "tap_feed_last_message_seconds",
    "When the last message came that we understood, Unix seconds.",
    ["source"],
)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a connection is waited for and with, in seconds."""

    connect_s: float = 5.0
    #: A pause before connecting again is drawn from 0 to this, twice as much each time …
    first_pause_s: float = 0.25
    longest_pause_s: float = 30.0
    #: … until a connection has spoken for so long.
    healthy_s: float = 10.0


class Backoff:
    """Pauses between attempts: full jitter under a ceiling that doubles."""

    def __init__(self, first_s: float, longest_s: float, draw: Callable[[], float]) -> None:
        self._first = first_s
        self._longest = longest_s
        self._draw = draw
        #: Pauses since the last reset.
        self.attempt = 0

    def pause_s(self) -> float:
        """The next pause, in seconds; `draw` gives the part of the ceiling, 0 to 1."""
        ceiling = min(self._first * 2.0 ** min(self.attempt, 30), self._longest)
        self.attempt += 1
        return self._draw() * ceiling

    def reset(self) -> None:
        """Begin with the first pause again."""
        self.attempt = 0


def open_session() -> aiohttp.ClientSession:
    """The client that all venues share; whoever opens it closes it."""
    return aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())


class VenueSource:
    """A venue as a price source."""

    def __init__(
        self,
        venue: Venue,
        session: aiohttp.ClientSession,
        clock: Clock,
        draw: Callable[[], float] = random.random,
        timing: Timing = Timing(),
    ) -> None:
        self.name = venue.name
        self._venue = venue
        self._session = session
        self._clock = clock
        self._timing = timing
        self._backoff = Backoff(timing.first_pause_s, timing.longest_pause_s, draw)
        self._connected_since: int | None = None
        self._last_message: int | None = None
        self._last_trade: Tick | None = None
        self._complained = False
        self._messages = _MESSAGES.labels(self.name)
        self._trades = _TRADES.labels(self.name)
        self._connected = _CONNECTED.labels(self.name)
        self._heard = _LAST_MESSAGE.labels(self.name)

    @property
    def status(self) -> SourceStatus:
        """Its connection, its last understood message, and its last trade."""
        return SourceStatus(self._connected_since, self._last_message, self._last_trade)

    async def ticks(self) -> AsyncGenerator[Tick]:
        """New trades as they come, over reconnects, until it is closed or cancelled."""
        while True:
            connection = None
            try:
                connection = await self._connect()
                while True:
                    raw = await connection.receive()
                    for tick in self._take(raw, connection):
                        yield tick
            except ReconnectError as error:
                _LOST.labels(self.name, error.reason).inc()
                logger.get().warning(
                    "feed lost; reconnecting",
                    source=self.name,
                    reason=error.reason,
                    error=str(error)[:200],
                )
                if connection is not None and connection.spoke_for_s >= self._timing.healthy_s:
                    self._backoff.reset()
            finally:
                self._connected_since = None
                self._connected.set(0)
                if connection is not None:
                    await connection.close()
            await asyncio.sleep(self._backoff.pause_s())

    async def _connect(self) -> "_Connection":
        """A new connection that has been told what we want. Raises ReconnectError."""
        url = self._venue.url
        try:
            async with asyncio.timeout(self._timing.connect_s):
                socket = await self._session.ws_connect(
                    url,
                    autoping=False,
                    max_msg_size=LARGEST_MESSAGE,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
                )
        except (aiohttp.ClientError, OSError) as error:
            # A timeout has no text of its own.
            cause = str(error) or type(error).__name__
            raise ReconnectError("connect", f"{url}: {cause}") from None
        connection = _Connection(socket, self._venue.liveness)
        try:
            for message in self._venue.begin():
                await connection.send(socket.send_str(message))
        except BaseException:
            await connection.close()
            raise
        self._connected_since = self._clock()
        self._complained = False
        self._connected.set(1)
        logger.get().info("feed connected", source=self.name, url=url)
        return connection

    def _take(self, raw: str | bytes, connection: "_Connection") -> list[Tick]:
        """The ticks in a message, if it is one. Raises ReconnectError."""
        now = self._clock()
        self._messages.inc()
        try:
            trades = self._read(raw)
        except BadMessageError as error:
            _DROPPED.labels(self.name, error.reason).inc()
            self._complain("message dropped", reason=error.reason, error=str(error), raw=raw[:200])
            connection.babbled()
            return []
        finally:
            self._report()
        connection.spoke()
        self._last_message = now
        self._heard.set(now / 1000)
        ticks = [Tick(trade.time, now, trade.price) for trade in trades]
        if ticks:
            self._last_trade = ticks[-1]
            self._trades.inc(len(ticks))
        return ticks

    def _read(self, raw: str | bytes) -> Sequence[Trade]:
        if isinstance(raw, bytes):
            raise BadMessageError("a binary message")
        return self._venue.read(raw)

    def _report(self) -> None:
        """Count what the venue noticed of its trades."""
        noticed = self._venue.order.noticed
        if not noticed:
            return
        for reason in ("repeated", "late"):
            if noticed[reason]:
                _DROPPED.labels(self.name, reason).inc(noticed[reason])
        if noticed["gaps"]:
            _GAPS.labels(self.name).inc(noticed["gaps"])
            _MISSED.labels(self.name).inc(noticed["missed"])
            self._complain("trades missed", missed=noticed["missed"])
        noticed.clear()

    def _complain(self, what: str, **details: object) -> None:
        """One line a connection; the metrics count the rest."""
        if not self._complained:
            self._complained = True
            logger.get().warning(what, source=self.name, **details)


class _Connection:
    """An open WebSocket with its deadlines."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, liveness: Liveness) -> None:
        self._socket = socket
        self._liveness = liveness
        self._now = asyncio.get_running_loop().time
        self._opened = self._now()
        self._last = self._opened
        self._next_ping = self._opened + self._liveness.ping_every_s

    @property
    def spoke_for_s(self) -> float:
        """From its opening to its last understood message, in seconds."""
        return self._last - self._opened

    def spoke(self) -> None:
        """It said something that was understood."""
        self._last = self._now()

    def babbled(self) -> None:
        """It said something that was not understood: no better than silence."""
        self._check_silence()

    async def receive(self) -> str | bytes:
        """The next message. Raises ReconnectError when there will be none."""
        looked_again = False
        while True:
            deadline = min(self._last + self._liveness.stale_after_s, self._next_ping)
            try:
                # aiohttp takes 0 for no limit at all.
                message = await self._socket.receive(max(deadline - self._now(), 0.001))
            except TimeoutError:
                # After a pause of our own, what came meanwhile is there at a second look.
                if looked_again:
                    self._check_silence()
                looked_again = self._is_silent()
                await self._ping_if_due()
                continue
            if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                data: str | bytes = message.data
                return data
            if message.type is aiohttp.WSMsgType.PING:
                # A ping is no news: a venue that only pings is as good as silent.
                await self.send(self._socket.pong(message.data))
                self._check_silence()
            elif message.type is not aiohttp.WSMsgType.PONG:
                code, cause = self._socket.close_code, message.data or message.extra
                raise ReconnectError("closed", f"closed with code {code}: {cause}")

    def _is_silent(self) -> bool:
        return self._now() - self._last >= self._liveness.stale_after_s

    def _check_silence(self) -> None:
        if self._is_silent():
            raise ReconnectError("stale", f"no message for {self._now() - self._last:.1f} s")

    async def _ping_if_due(self) -> None:
        now = self._now()
        if now >= self._next_ping:
            self._next_ping = now + self._liveness.ping_every_s
            await self.send(self._socket.send_str(self._liveness.ping))

    async def send(self, sending: Coroutine[None, None, None]) -> None:
        """Finish a sending in time. Raises ReconnectError."""
        try:
            async with asyncio.timeout(_SEND_S):
                await sending
        except (aiohttp.ClientError, OSError) as error:
            raise ReconnectError("closed", f"cannot send: {error}") from None

    async def close(self) -> None:
        """Say goodbye, but not for long: a venue that goes on talking is cut off."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._socket.close()
        except TimeoutError:
            logger.get().debug("the venue did not say goodbye")
