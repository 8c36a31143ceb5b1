"""A WebSocket server that plays an exchange, with faults on demand.

async with Player(Recording.read(path), speed=10) as player:
    … connect to player.url …
    player.stall()
"""

import asyncio
import contextlib
import math
import random
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Self

from aiohttp import WSMsgType, web

from venues.faults import Fault, corrupted
from venues.script import Script


class Player:
    """One exchange on one port of this host.

    A script is played from its beginning to every connection, or, when `live`, as one
    timeline that began when the player started: who comes later has missed what was
    before. `speed` is how many of its seconds pass in one; infinite: all at once. At its
    end, a connection is held open, or closed and no other accepted (`at_end="close"`).
    """

    def __init__(
        self,
        script: Script,
        *,
        speed: float = 1.0,
        live: bool = False,
        at_end: str = "hold",
        heartbeat_s: float = 1.0,
        faults: Sequence[Fault] = (),
        path: str = "/",
        port: int = 0,
        seed: int = 1,
    ) -> None:
        self.script = script
        self.speed = speed
        #: While True, connections are refused with 503.
        self.refusing = False
        #: Connections so far, and messages sent on all of them (heartbeats excluded).
        self.accepted = 0
        self.sent = 0
        #: How clients have left: the codes of their goodbyes, 1006 without one.
        self.goodbyes: list[int | None] = []
        #: What clients have said, in order.
        self.heard: list[str] = []
        #: Set once a connection has played the whole script.
        self.finished = asyncio.Event()
        self.rng = random.Random(seed)
        self.faults = list(faults)
        self.heartbeat_s = heartbeat_s
        self._live = live
        self._at_end = at_end
        self._path = path
        self._port = port
        self._open: set[_Connection] = set()
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def url(self) -> str:
        """Where to connect."""
        return f"ws://127.0.0.1:{self._port}{self._path}"

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._open)

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        self._timers = [
            loop.call_later(fault.at_s, self.inject, fault)
            for fault in self.faults
            if fault.at_s is not None
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for timer in self._timers:
            timer.cancel()
        self.refusing = True
        self.drop()
        await self._runner.cleanup()

    # On demand, for the connections that are open now.

    def inject(self, fault: Fault) -> None:
        """Let a fault happen now, whatever moment it names."""
        for connection in tuple(self._open):
            if fault.connection in (None, connection.number):
                connection.apply(fault)

    def drop(self) -> None:
        """Reset all connections."""
        self.inject(Fault("drop"))

    def stall(self) -> None:
        """Fall silent."""
        self.inject(Fault("stall"))

    def resume(self) -> None:
        """Speak again; what was to be said meanwhile is lost."""
        self.inject(Fault("resume"))

    def repeat(self, count: int = 1) -> None:
        """Send the next messages twice."""
        self.inject(Fault("repeat", count=count))

    def reorder(self, count: int = 1) -> None:
        """Let each of the next messages change places with the one after it."""
        self.inject(Fault("reorder", count=count))

    def corrupt(self, count: int = 1) -> None:
        """Break the next messages."""
        self.inject(Fault("corrupt", count=count))

    async def say(self, data: str | bytes, kind: WSMsgType = WSMsgType.TEXT) -> None:
        """Send a frame that is not in the script, whether or not the protocol allows it."""
        raw = data.encode() if isinstance(data, str) else data
        for connection in tuple(self._open):
            with contextlib.suppress(ConnectionError):
                await connection.socket.send_frame(raw, kind)

    async def ping(self) -> None:
        """Send a ping of the protocol."""
        for connection in tuple(self._open):
            with contextlib.suppress(ConnectionError):
                await connection.socket.ping()

    # Playing.

    def script_s(self) -> float:
        """The script's own time for one that connects now."""
        if not self._live:
            return 0.0
        if math.isinf(self.speed):
            return math.inf
        return (asyncio.get_running_loop().time() - self._began) * self.speed

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if self.refusing:
            return web.Response(status=503)
        socket = web.WebSocketResponse(timeout=0.2)
        await socket.prepare(request)
        connection = _Connection(self, self.accepted, socket, request)
        self.accepted += 1
        self._open.add(connection)
        for fault in self.faults:
            if fault.after is None and fault.at_s is None:
                self._apply_to(connection, fault)
        try:
            if self.script.speaks_first:
                connection.play(self._play(connection, self.script_s()))
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    await self._answer(connection, message.data)
        except ConnectionError:
            pass  # gone in the middle of an answer
        finally:
            self._open.discard(connection)
            self.goodbyes.append(socket.close_code)
            await connection.end()
        return socket

    async def _answer(self, connection: "_Connection", said: str) -> None:
        self.heard.append(said)
        now_s = self.script_s()
        for answer in self.script.answers(said, now_s):
            await connection.send(answer, spoilt=False)
        # From the moment of the answer on: nothing is lost between the two.
        connection.play(self._play(connection, now_s))

    def _apply_to(self, connection: "_Connection", fault: Fault) -> None:
        if fault.connection in (None, connection.number):
            connection.apply(fault)

    async def _play(self, connection: "_Connection", joined_s: float) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time() - (0.0 if math.isinf(joined_s) else joined_s / self.speed)
        beating = asyncio.create_task(self._beat(connection))
        try:
            for line in self.script.lines(joined_s):
                await asyncio.sleep(max(began + line.at_s / self.speed - loop.time(), 0))
                text = line.text()
                if text:
                    await self._send(connection, text)
            await connection.flush()
            self.finished.set()
            if self._at_end == "close":
                self.refusing = True
                connection.apply(Fault("close"))
            await asyncio.Event().wait()
        except ConnectionError:
            pass  # the client is gone; its handler ends too
        finally:
            beating.cancel()
            await asyncio.wait([beating])

    async def _send(self, connection: "_Connection", text: str) -> None:
        for fault in self.faults:
            if fault.after == connection.sent:
                self._apply_to(connection, fault)
        connection.sent += 1
        self.sent += 1
        await connection.send(text)

    async def _beat(self, connection: "_Connection") -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await asyncio.sleep(self.heartbeat_s)
                text = self.script.heartbeat()
                if text is not None:
                    await connection.send(text, spoilt=False)


class _Connection:
    """A client, and what is wrong with its line."""

    def __init__(
        self, player: Player, number: int, socket: web.WebSocketResponse, request: web.Request
    ) -> None:
        self.number = number
        self.socket = socket
        self.sent = 0
        self._player = player
        self._request = request
        self._stalled = False
        self._spoilt = {"repeat": 0, "reorder": 0, "corrupt": 0}
        self._held: str | None = None
        self._closing: asyncio.Task[bool] | None = None
        self._playing: asyncio.Task[None] | None = None

    def play(self, part: Coroutine[None, None, None]) -> None:
        """Begin with the script, unless it has begun."""
        if self._playing is None:
            self._playing = asyncio.create_task(part)
        else:
            part.close()

    async def end(self) -> None:
        """Stop playing."""
        if self._playing is not None:
            self._playing.cancel()
            await asyncio.wait([self._playing])

    def apply(self, fault: Fault) -> None:
        """Let a fault happen to this client."""
        match fault.kind:
            case "drop":
                if self._request.transport is not None:
                    self._request.transport.abort()
            case "close":
                self._closing = asyncio.create_task(self.socket.close())
            case "stall" | "resume":
                self._stalled = fault.kind == "stall"
            case kind:
                self._spoilt[kind] += fault.count

    def _is_due(self, kind: str) -> bool:
        due = self._spoilt[kind] > 0
        self._spoilt[kind] -= due
        return due

    async def send(self, text: str, *, spoilt: bool = True) -> None:
        """Send a message as the line's faults have it."""
        if self._stalled:
            return
        if not spoilt:
            await self.socket.send_str(text)
            return
        if self._is_due("corrupt"):
            text = corrupted(text, self._player.rng)
        if self._held is None and self._is_due("reorder"):
            self._held = text
            return
        await self.socket.send_str(text)
        if self._is_due("repeat"):
            await self.socket.send_str(text)
        await self.flush()

    async def flush(self) -> None:
        """Send what waits to change places."""
        held, self._held = self._held, None
        if held is not None:
            await self.socket.send_str(held)
