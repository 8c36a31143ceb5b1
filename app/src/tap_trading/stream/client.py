"""One connected browser: what waits to be sent to it, and what it may say.

Nothing is buffered without bound. A client that keeps up gets what there is at once, without
a task of its own being woken for it: that is nearly all of what fan-out costs. For one that does
not, of prices and grids only the newest waits (a slow client skips some); everything else waits
in a short queue, and a client whose queue is full, or who takes nothing for too long, is closed.
"""

import asyncio
import contextlib
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from functools import lru_cache
from typing import Any

import orjson
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from tap_trading.stream import messages

#: A client that takes no byte for this long is closed.
SEND_TIMEOUT_S = 15.0
#: More than all of a trader's results of a column, and what is sent anew after a reconnect.
_MAX_QUEUED = 512
#: Bytes that may wait in the socket of a client that still counts as keeping up.
_KEEPS_UP = 32 * 1024
_MESSAGES_PER_S = 20.0
_MESSAGE_BURST = 40.0


class CloseCode(IntEnum):
    """Why the server closed a connection, besides the protocol's own 1000 to 1011."""

    RESTART = 1012  # the service restarts: reconnect after the hinted time
    TOO_SLOW = 4008  # the client did not keep up
    TOO_MANY_MESSAGES = 4029  # the client said more than 20 messages a second


_SHORT, _MEDIUM = 126, 1 << 16


@lru_cache(maxsize=8)
def framed(text: bytes) -> bytes:
    """A text message as a frame of RFC 6455; a broadcast is framed once for all clients."""
    size = len(text)
    if size < _SHORT:
        return struct.pack("!BB", 0x81, size) + text
    if size < _MEDIUM:
        return struct.pack("!BBH", 0x81, 126, size) + text
    return struct.pack("!BBQ", 0x81, 127, size) + text


#: Answers what a client says about its account: `auth` and `resume`.
Hear = Callable[["Client", Mapping[str, Any]], Awaitable[None]]


class Client:
    """A WebSocket and its outgoing messages."""

    def __init__(
        self,
        ws: web.WebSocketResponse,
        server_time: Callable[[], str],
        hear: Hear,
        transport: asyncio.Transport | None = None,
    ) -> None:
        self._ws = ws
        self._transport = transport  # None: everything goes by way of the pump
        self._server_time = server_time
        self._hear = hear
        self._queue: deque[bytes] = deque()
        self._newest: dict[str, bytes] = {}
        self._wake = asyncio.Event()
        self._allowance = _MESSAGE_BURST
        self._allowed_at = asyncio.get_running_loop().time()
        self.closed_with: int | None = None

    def offer(self, kind: str, frame: bytes) -> None:
        """Send `frame` soon; a newer one of its kind replaces it while it waits."""
        if self._sent_at_once(frame):
            return
        self._newest[kind] = frame
        self._wake.set()

    def send(self, frame: bytes) -> None:
        """Send `frame` for sure, in order, or close a client that does not keep up."""
        if self._sent_at_once(frame):
            return
        if len(self._queue) >= _MAX_QUEUED:
            self.closed_with = CloseCode.TOO_SLOW
        else:
            self._queue.append(frame)
        self._wake.set()

    def _sent_at_once(self, frame: bytes) -> bool:
        """Whether `frame` could go straight to the socket: nothing waits before it."""
        transport = self._transport
        if (
            transport is None
            or self._queue
            or self._newest
            or self.closed_with is not None
            or self._ws.closed
            or transport.is_closing()
            or transport.get_write_buffer_size() > _KEEPS_UP
        ):
            return False
        transport.write(framed(frame))
        return True

    def close_soon(self, code: int) -> None:
        """Close after what waits has been sent."""
        self.closed_with = code
        self._wake.set()

    async def pump(self) -> None:
        """Send what waits, until the connection is closed."""
        with contextlib.suppress(ConnectionError, RuntimeError):
            while not self._ws.closed:
                await self._wake.wait()
                self._wake.clear()
                try:
                    async with asyncio.timeout(SEND_TIMEOUT_S):
                        await self._send_waiting()
                except TimeoutError:
                    self.closed_with = CloseCode.TOO_SLOW
                if self.closed_with is not None:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(2):
                            await self._ws.close(code=self.closed_with)
                    return

    async def _send_waiting(self) -> None:
        while self._queue:
            await self._ws.send_frame(self._queue.popleft(), WSMsgType.TEXT)
        while self._newest:
            _, frame = self._newest.popitem()
            await self._ws.send_frame(frame, WSMsgType.TEXT)

    async def listen(self) -> None:
        """Answer what the client says, until it is gone."""
        async for message in self._ws:
            if not self._within_allowance():
                self.send(messages.error("too_many_messages", "At most 20 messages a second."))
                self.close_soon(CloseCode.TOO_MANY_MESSAGES)
                return
            if message.type is WSMsgType.TEXT:
                await self._answer(message)
            elif message.type is WSMsgType.BINARY:
                self.send(messages.error("malformed", "Messages are JSON text, not binary."))
                self.close_soon(WSCloseCode.UNSUPPORTED_DATA)
                return

    def _within_allowance(self) -> bool:
        now = asyncio.get_running_loop().time()
        earned = (now - self._allowed_at) * _MESSAGES_PER_S
        self._allowance = min(self._allowance + earned, _MESSAGE_BURST) - 1
        self._allowed_at = now
        return self._allowance >= 0

    async def _answer(self, message: WSMessage) -> None:
        try:
            said = orjson.loads(message.data)
        except orjson.JSONDecodeError:
            self.send(messages.error("malformed", "Messages are JSON objects."))
            return
        if not isinstance(said, dict) or not isinstance(said.get("type"), str):
            self.send(messages.error("malformed", "Messages are JSON objects with a type."))
            return
        match said["type"]:
            case "ping":
                self.send(messages.encode("pong", server_time=self._server_time()))
            case "echo":
                self.send(orjson.dumps(said))
            case "auth" | "resume":
                await self._hear(self, said)
            case other:
                self.send(
                    messages.error("unknown_type", f"There is no message type {other[:40]!r}.")
                )
