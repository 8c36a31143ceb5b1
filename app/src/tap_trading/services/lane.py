"""The lane: bets on their way through the API without what only other requests need.

A connection begins in the lane. As long as each chunk it brings is a complete and
plain `POST /api/bets`, the bet goes from the bytes to the batcher and its answer back
in plain callbacks: no task, no request object, no router, no middlewares. Its bytes are
only read when its batch is about to be written, together with all others of it: the
same steps for many bets in a row cost half of what they cost one by one. Anything else,
however slightly unusual, is handed over with its bytes to aiohttp, which keeps the
connection from then on; the ordinary route gives the same answers (ADR 0008).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import cast

import httptools
from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time

from tap_trading.auth.limits import WalletLimits
from tap_trading.auth.sessions import Session, Sessions
from tap_trading.base import logger, metrics
from tap_trading.base.errors import ProblemError
from tap_trading.ledger.batcher import Batcher, OverloadedError
from tap_trading.ledger.placing import BetRequest, Outcome, Placed
from tap_trading.services import auth, desk, http, limited, runtime

PATH = "/api/bets"
_URL = PATH.encode()
_HEAD = b"POST " + _URL + b" HTTP/1.1\r\n"
_LARGEST_BODY = 16 * 1024
#: What a client may send ahead while its bet waits for the answer, in bytes.
_MOST_AHEAD = 64 * 1024
#: Bets under way get this long to be answered when the service stops, in s.
_FINISH_S = 4.0
#: Headers that change what a request is; with one of them it is not plain.
_ODD = frozenset({b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", b"te"})
#: The headers that a bet is read from, and those that make it odd (""), as they are mostly
#: spelled.
_READ = {
    spelled: name
    for name in ("Authorization", "Cookie", "Host", "Idempotency-Key", "Origin", "X-Request-ID")
    for spelled in (name.encode(), name.lower().encode())
} | dict.fromkeys(_ODD, "")
#: Headers of browsers and of Nginx that change nothing, as they are mostly spelled.
_PLAIN = frozenset(
    spelled
    for name in (
        *("Accept", "Accept-Encoding", "Accept-Language", "Content-Length", "Content-Type"),
        *("Referer", "User-Agent", "X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP"),
    )
    for spelled in (name.encode(), name.lower().encode())
)
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}" for status in HTTPStatus}
#: Answers are counted so many s later, many in a row.
_COUNTED_AFTER_S = 0.25


class BetLanes:
    """Makes a lane for every connection to the API, in front of aiohttp's server."""

    def __init__(
        self,
        *,
        bet_desk: desk.BetDesk,
        batcher: Batcher[BetRequest, Outcome],
        sessions: Sessions,
        limits: WalletLimits,
        cross_origin: http.CrossOrigin,
    ) -> None:
        self.desk = bet_desk
        self.batcher = batcher
        self.sessions = sessions
        self.limits = limits
        self.cross_origin = cross_origin
        self.draining = False
        self._open: set[BetLane] = set()
        self._all_closed = asyncio.Event()
        self._answered: list[tuple[int, float]] = []  # status and s, not counted yet
        self._seconds = {
            status.value: metrics.HTTP_SECONDS.labels("POST", PATH, status.value)
            for status in HTTPStatus
        }

    def put_in_front_of(self, app: web.Application) -> None:
        """Have the connections of this application's server begin in a lane."""
        app[runtime.FRONT] = self.in_front_of
        app[runtime.DRAIN] = self.drain
        app.on_response_prepare.append(self._let_go)
        app.on_shutdown.append(self._close)

    def in_front_of(self, server: runtime.ProtocolFactory) -> runtime.ProtocolFactory:
        """The protocol of new connections; `server` makes that of handed over ones."""
        return lambda: BetLane(self, server)

    async def _close(self, _app: web.Application) -> None:
        """Answer the bets under way, each with `Connection: close`, and end the rest."""
        self.drain(draining=True)
        for lane in tuple(self._open):
            lane.end_if_idle()
        if self._open:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_closed.wait(), _FINISH_S)
        for lane in tuple(self._open):
            lane.abort()

    def joined(self, lane: "BetLane") -> None:
        """A connection has begun."""
        self._open.add(lane)
        self.batcher.clients = len(self._open)

    def left(self, lane: "BetLane") -> None:
        """A connection has ended, or is aiohttp's from now on."""
        self._open.discard(lane)
        self.batcher.clients = len(self._open)
        if self.draining and not self._open:
            self._all_closed.set()

    def drain(self, *, draining: bool) -> None:
        """Whether from now on each answer is its connection's last."""
        self.draining = draining

    async def _let_go(self, request: web.Request, response: web.StreamResponse) -> None:
        """End a handed over connection after its bet: the client's next one may take the
        lane again. While draining, end every one.
        """
        if self.draining or (request.method == "POST" and request.path == PATH):
            response.force_close()
            response.headers["Connection"] = "close"  # aiohttp has decided on its own by now

    def observe(self, status: int, seconds: float) -> None:
        """Count one answer."""
        if not self._answered:
            asyncio.get_running_loop().call_later(_COUNTED_AFTER_S, self._count)
        self._answered.append((status, seconds))

    def _count(self) -> None:
        answered, self._answered = self._answered, []
        for status, seconds in answered:
            self._seconds[status].observe(seconds)


class _Bet:
    """A plain request as the parser finds it."""

    __slots__ = ("body", "headers")

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}  # those of _READ
        self.body = b""


class BetLane(asyncio.Protocol):
    """One connection."""

    def __init__(self, lanes: BetLanes, server: runtime.ProtocolFactory) -> None:
        self._lanes = lanes
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpRequestParser | None = None
        self._busy = False  # a bet is under way
        self._chunk = b""  # that holds it, until it is read
        self._chunks: list[bytes] = []  # that came meanwhile
        self._paused = False
        self._bets: list[_Bet] = []  # of the present chunk, the one under way first
        self._arrived = 0  # Unix ms
        self._began = 0.0
        self._request_id = ""
        self._task: asyncio.Task[None] | None = None
        # The parser's findings in the present chunk.
        self._bet = _Bet()
        self._found: list[_Bet] = []
        self._plain = True
        self._unfinished = False

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._lanes.joined(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        """The client has gone; a bet under way is placed all the same."""
        self._transport = None
        self._lanes.left(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if not self._busy:
            self._take(data)
            return
        self._chunks.append(data)
        if sum(map(len, self._chunks)) > _MOST_AHEAD and self._transport and not self._paused:
            self._transport.pause_reading()
            self._paused = True

    def _take(self, data: bytes) -> None:
        if data.startswith(_HEAD):
            self._busy = True
            self._chunk = data
            self._queue(self._prepare)
        else:
            self._hand_over(data)

    def _hand_over(self, data: bytes) -> None:
        """This connection is aiohttp's from now on, this chunk included."""
        transport = self._transport
        if transport is None:
            return
        chunks, self._chunks = [data, *self._chunks], []
        self._lanes.left(self)
        protocol = cast("asyncio.Protocol", self._server())
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        for chunk in chunks:
            protocol.data_received(chunk)

    # The parser's side.

    def _read(self, data: bytes) -> bool:
        """Whether `data` is nothing but complete, plain bets; they are then found."""
        self._found = []
        self._plain = True
        self._unfinished = False
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return False
        return self._plain and not self._unfinished

    def on_message_begin(self) -> None:
        """The parser: a request begins."""
        self._bet = _Bet()
        self._unfinished = True

    def on_url(self, url: bytes) -> None:
        """The parser: what the request is for."""
        if url != _URL:
            self._plain = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser: a header."""
        if name in _PLAIN:
            return
        read = _READ.get(name) if name in _READ else _READ.get(name.lower())
        if read is None:
            return
        headers = self._bet.headers
        if not read or read in headers or not value.isascii():
            self._plain = False
            return
        headers[read] = value.decode("ascii")

    def on_body(self, body: bytes) -> None:
        """The parser: a part of the body."""
        self._bet.body += body

    def on_message_complete(self) -> None:
        """The parser: the request is whole."""
        bet, parser = self._bet, cast("httptools.HttpRequestParser", self._parser)
        if (
            "Host" not in bet.headers
            or len(bet.body) > _LARGEST_BODY
            or parser.get_method() != b"POST"
            or not parser.should_keep_alive()
        ):
            self._plain = False
        self._found.append(bet)
        self._unfinished = False

    # The bet's way.

    def _queue(self, prepare: Callable[[], BetRequest | None]) -> None:
        """Have a bet of this connection prepared with its batch, and written."""
        lanes = self._lanes
        self._began = time.perf_counter()
        self._arrived = lanes.desk.clock()
        try:
            lanes.batcher.submit(prepare, self._reply)
        except OverloadedError as error:
            # Not from in here: the answer may bring the next bet of this connection.
            asyncio.get_running_loop().call_soon(self._reply, error)

    def _prepare(self) -> BetRequest | None:
        """The first of the bets at hand. None when there is none, or when it has to wait.

        Raises ProblemError.
        """
        if not self._bets and not self._read_chunk():
            return None
        headers = self._bets[0].headers
        token = auth.token_of(headers.get("Authorization", ""), headers.get("Cookie", ""))
        if token is None:
            raise auth.unauthenticated()
        session = self._lanes.sessions.cached(token)
        if session is None:
            self._task = asyncio.create_task(self._validate(token))
            return None
        return self._request(session)

    def _read_chunk(self) -> bool:
        """Whether the chunk is bets; else it is aiohttp's now."""
        chunk, self._chunk = self._chunk, b""
        if self._read(chunk):
            self._bets = self._found
            return True
        self._busy = False
        self._hand_over(chunk)
        return False

    async def _validate(self, token: str) -> None:
        """Only a session that memory cannot vouch for gets here."""
        try:
            session = await auth.session_of(self._lanes.sessions, token)
            self._lanes.batcher.submit(partial(self._request, session), self._reply)
        except Exception as error:  # every request gets an answer
            self._reply(error)

    def _request(self, session: Session) -> BetRequest:
        lanes, bet = self._lanes, self._bets[0]
        limited.take(lanes.limits, session)
        key = bet.headers.get("Idempotency-Key")
        return lanes.desk.request(session.user_id, key, bet.body, self._arrived)

    def _reply(self, outcome: Outcome | Exception) -> None:
        if not self._bets and not self._read_chunk():  # refused before it was read
            return
        self._request_id = http.request_id(self._bets[0].headers.get("X-Request-ID", ""))
        if isinstance(outcome, Placed):
            self._answer(202, "application/json", desk.accepted(outcome))
        else:
            self._answer_problem(desk.problem(outcome))

    def _answer_problem(self, problem: ProblemError) -> None:
        extra = ""
        if problem.retry_after_s is not None:
            extra = f"Retry-After: {problem.retry_after_s}\r\n"
        body = http.problem_body(problem, self._request_id)
        self._answer(problem.status, http.PROBLEM_JSON, body, extra)

    def _answer(self, status: int, content_type: str, body: bytes, extra: str = "") -> None:
        lanes = self._lanes
        lanes.observe(status, time.perf_counter() - self._began)
        bet = self._bets.pop(0)
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        for name, value in lanes.cross_origin.headers(bet.headers.get("Origin", "")).items():
            extra += f"{name}: {value}\r\n"
        if lanes.draining:
            extra += "Connection: close\r\n"
        head = (
            f"{_STATUS_LINES[status]}\r\n"
            f"Content-Type: {content_type}; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"X-Request-ID: {self._request_id}\r\n"
            f"Date: {rfc822_formatted_time()}\r\n"
            f"{extra}\r\n"
        )
        transport.write(head.encode("ascii") + body)
        if lanes.draining:
            transport.close()
        elif self._bets:
            self._queue(self._prepare)
        elif self._chunks:
            if self._paused:
                transport.resume_reading()
                self._paused = False
            self._take(self._chunks.pop(0))
        else:
            self._busy = False

    # The end.

    def end_if_idle(self) -> None:
        """Close the connection unless a bet waits on it."""
        if not self._busy and self._transport:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection whatever waits on it."""
        if self._transport:
            logger.get().warning("connection cut with a bet under way")
            self._transport.abort()
