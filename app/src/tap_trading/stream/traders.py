"""What only a trader is told: each change of their own bets and balance, numbered.

The resolver publishes what each of its transactions changed, with everybody's bets in it. Here
the changes of those who are connected are picked out. They are numbered and kept in Redis
(`settlement/history.py`), so that a client that was away can ask any process for what it has
missed. Who missed more than is kept, or may have missed something that is not, is told to load
everything anew: `reset`.
"""

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from prometheus_client import Counter, Gauge

from tap_trading.auth.sessions import Sessions
from tap_trading.base import logger
from tap_trading.base.metrics import ERRORS
from tap_trading.base.redis import Redis, RedisError, Subscription
from tap_trading.settlement import changes
from tap_trading.settlement.history import KEPT_S, Entered, History
from tap_trading.stream import messages
from tap_trading.stream.client import Client

#: Sessions are looked at this often, so that a revoked one hears nothing within a second, in s.
_CHECK_EVERY_S = 0.4
#: So many are looked at, or asked for, at once.
_AT_ONCE = 200
#: A client that means to resume does so this soon after it has signed in, in s. What comes
#: meanwhile is held back, to be told once and behind what was missed.
_RESUMES_WITHIN_S = 0.5
#: Events held back for a client at most: with those it has missed, they fit in its queue.
_MOST_HELD = 300
#: Redis is told this often who is connected, in s.
_KEEP_EVERY_S = KEPT_S / 5
#: After Redis failed it is left alone for this long, in s.
_PAUSE_S = 0.5
#: A process that starts waits for its subscription, so that it need not reset anyone, in s.
_READY_WITHIN_S = 5.0

_SIGNED_IN = Gauge("tap_ws_signed_in", "WebSockets that are signed in.")
_EVENTS = Counter("tap_ws_events_total", "Changes of bets and balances for connected traders.")
_CHANGES = Counter("tap_ws_changes_total", "Transactions heard of.")
_RESETS = Counter("tap_ws_resets_total", "Times that a client had to load everything anew.")


class _Heard(NamedTuple):
    """An event as it came, or only the news of its epoch."""

    epoch: str
    seq: int | None  # 0: it was not kept; None: there is no event
    frame: bytes = b""


@dataclass(slots=True, eq=False)
class _Follower:
    """A client that is signed in, and how far it was told."""

    client: Client
    token: str
    user_id: str
    epoch: str = ""
    seq: int = 0
    #: What comes while it is found out, or left open, where to go on from. One too many leaves
    #: a gap, which is noticed.
    held: deque[_Heard] | None = field(default_factory=lambda: deque(maxlen=_MOST_HELD))
    timer: asyncio.TimerHandle | None = None  # ends the holding back
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Traders:
    """The signed-in clients of this process."""

    def __init__(self, redis: Redis, sessions: Sessions) -> None:
        #: The one in which events are numbered, as far as this process has heard.
        self.epoch = ""
        self._sessions = sessions
        self._history = History(redis)
        self._subscription = Subscription(redis, changes.CHANNEL, self._on_subscription)
        #: Health check: whether changes are heard of.
        self.check = self._subscription.check
        self._ready = asyncio.Event()
        self._following: dict[Client, _Follower] = {}
        self._followers: defaultdict[str, set[_Follower]] = defaultdict(set)  # by user
        self._lost: set[_Follower] = set()  # may have missed something
        self._epoch_in_doubt = False
        self._wake = asyncio.Event()

    # What clients say.

    async def hear(self, client: Client, said: Mapping[str, Any]) -> None:
        """Answer `auth` or `resume`."""
        if said["type"] == "auth":
            await self._sign_in(client, said.get("token"))
        else:
            await self._resume(client, (said.get("epoch"), said.get("seq")))

    async def recognise(self, client: Client, token: str) -> None:
        """Sign a client in that brought its session along, as if it had said `auth`; one whose
        session has ended is a guest and hears nothing of it.
        """
        await self._sign_in(client, token, silently=True)

    def left(self, client: Client) -> None:
        """The client is gone, or no longer signed in."""
        follower = self._following.pop(client, None)
        if follower is not None:
            others = self._followers[follower.user_id]
            others.discard(follower)
            if not others:
                del self._followers[follower.user_id]
            self._lost.discard(follower)
            if follower.timer:
                follower.timer.cancel()
            _SIGNED_IN.set(len(self._following))

    async def _sign_in(self, client: Client, token: object, *, silently: bool = False) -> None:
        self.left(client)
        try:
            session = await self._sessions.validate(token) if isinstance(token, str) else None
            if session is not None and isinstance(token, str):
                await self._follow(_Follower(client, token, session.user_id))
        except (RedisError, OSError):
            self.left(client)
            if not silently:
                client.send(_unavailable("Sessions cannot be read; try again soon."))
            return
        if session is None and not silently:
            client.send(_unauthenticated())

    async def _follow(self, follower: _Follower) -> None:
        """Tell the client of its events from now on. Raises RedisError or OSError."""
        self._following[follower.client] = follower
        self._followers[follower.user_id].add(follower)
        _SIGNED_IN.set(len(self._following))
        async with follower.asking:
            entered = await self._history.enter(follower.user_id)
        if self._is_gone(follower):
            return
        follower.epoch, follower.seq = entered.epoch, entered.seq
        follower.client.send(
            messages.encode(
                "authenticated", user_id=follower.user_id, epoch=entered.epoch, seq=entered.seq
            )
        )
        follower.timer = asyncio.get_running_loop().call_later(
            _RESUMES_WITHIN_S, self._go_on, follower
        )

    async def _resume(self, client: Client, place: tuple[object, object]) -> None:
        follower = self._following.get(client)
        if follower is None:
            client.send(_unauthenticated())
            return
        async with follower.asking:
            try:
                entered = await self._ask(follower, place)
            except (RedisError, OSError):
                if not self._is_gone(follower):
                    client.send(_unavailable("Events cannot be read; try again soon."))
                    self._go_on(follower)
                return
            if not self._is_gone(follower):
                self._answer(follower, entered)

    async def _ask(self, follower: _Follower, place: tuple[object, object] = ("", 0)) -> Entered:
        """Where the follower's events go on from; what comes meanwhile is held back. Raises
        RedisError or OSError, and leaves all as it was.
        """
        if follower.timer:
            follower.timer.cancel()
        if follower.held is None:
            follower.held = deque(maxlen=_MOST_HELD)
        was_lost = follower in self._lost
        self._lost.discard(follower)  # it is found; or lost anew while Redis is asked
        try:
            return await self._history.enter(follower.user_id, place)
        except (RedisError, OSError):
            if was_lost:
                self._lose([follower])
            raise

    def _answer(self, follower: _Follower, entered: Entered) -> None:
        """Tell what was missed, or to load everything anew, and go on from there."""
        frames: list[bytes] | None = None
        if entered.missed is not None:
            first = entered.seq - len(entered.missed) + 1
            with contextlib.suppress(ValueError):  # what cannot be read cannot be told
                frames = [_frame(first + n, event) for n, event in enumerate(entered.missed)]
        _RESETS.inc(frames is None)
        for frame in frames or ():
            follower.client.send(frame)
        kind = "reset" if frames is None else "resumed"
        follower.client.send(messages.encode(kind, epoch=entered.epoch, seq=entered.seq))
        follower.epoch, follower.seq = entered.epoch, entered.seq
        self._go_on(follower)

    def _go_on(self, follower: _Follower) -> None:
        """Tell what was held back, and what comes from now on."""
        held, follower.held = follower.held, None
        if not self._is_gone(follower):
            for heard in held or ():
                self._tell(follower, heard)

    def _is_gone(self, follower: _Follower) -> bool:
        return self._following.get(follower.client) is not follower

    # What they are told.

    async def follow(self) -> None:
        """Pass on every change, for ever."""
        async for wire in self._subscription.messages():
            _CHANGES.inc()
            try:
                self._pass_on(wire)
            except ValueError as error:
                ERRORS.labels("changes_message").inc()
                logger.get().warning("unreadable changes", error=str(error))
                self._lose(self._following.values())

    async def ready(self) -> None:
        """Wait until the epoch is known and changes are heard of, but not for ever."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READY_WITHIN_S):
                await self._ready.wait()

    def _pass_on(self, wire: bytes) -> None:
        epoch, events = changes.decode(wire)
        if epoch != self.epoch:
            self.epoch = epoch
            for follower in self._following.values():
                self._tell(follower, _Heard(epoch, None))
        for user_id, seq, event in events:
            followers = self._followers.get(user_id)
            if followers:
                heard = _Heard(epoch, seq, _frame(seq, event) if seq else b"")
                for follower in followers:
                    self._tell(follower, heard)
                _EVENTS.inc()

    def _tell(self, follower: _Follower, heard: _Heard) -> None:
        if follower.held is not None:
            follower.held.append(heard)
        elif follower in self._lost:
            return  # it will load everything anew, later than this
        elif heard.epoch != follower.epoch:
            self._lose([follower])
        elif heard.seq == follower.seq + 1:
            follower.seq += 1
            follower.client.send(heard.frame)
        elif heard.seq == 0 or (heard.seq is not None and heard.seq > follower.seq):
            self._lose([follower])

    # Who may have missed something.

    def _on_subscription(self, connected: bool) -> None:
        if connected:  # what was published before is not known
            self._epoch_in_doubt = True
            self._lose(self._following.values())

    def _lose(self, followers: Iterable[_Follower]) -> None:
        self._lost.update(followers)
        self._wake.set()

    async def reset(self) -> None:
        """Have those who may have missed something load everything anew, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._reset_all()
            except (RedisError, OSError) as error:
                ERRORS.labels("history").inc()
                logger.get().warning("traders cannot be told to start anew", error=str(error))
                self._wake.set()
                await asyncio.sleep(_PAUSE_S)

    async def _reset_all(self) -> None:
        if self._epoch_in_doubt:
            self._epoch_in_doubt = False
            try:
                self.epoch = await self._history.epoch()
            except (RedisError, OSError):
                self._epoch_in_doubt = True
                raise
            self._ready.set()
        while self._lost:
            some = list(self._lost)[:_AT_ONCE]
            done = await asyncio.gather(*map(self._reset, some), return_exceptions=True)
            for error in filter(None, done):
                raise error

    async def _reset(self, follower: _Follower) -> None:
        async with follower.asking:
            if follower not in self._lost:
                return  # gone, or it has resumed meanwhile
            try:
                entered = await self._ask(follower)
            except (RedisError, OSError):
                self._go_on(follower)
                raise
            if not self._is_gone(follower):
                self._answer(follower, entered)

    async def keep(self) -> None:
        """Have the events of those who are connected kept, for ever."""
        while True:
            await asyncio.sleep(_KEEP_EVERY_S)
            try:
                gone = await self._history.keep(list(self._followers))
            except (RedisError, OSError) as error:
                ERRORS.labels("history").inc()
                logger.get().warning("events are not kept on", error=str(error))
                continue
            for user_id in gone:
                self._lose(self._followers.get(user_id, ()))

    # Who they are.

    async def watch_sessions(self) -> None:
        """Sign out the clients whose sessions have ended, for ever."""
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            clients = list(self._following)
            for begin in range(0, len(clients), _AT_ONCE):
                await self._check(clients[begin : begin + _AT_ONCE])
                await asyncio.sleep(0)  # prices go on

    async def _check(self, clients: Iterable[Client]) -> None:
        doubted = [
            (client, follower.token)
            for client in clients
            if (follower := self._following.get(client)) is not None
            and self._sessions.cached(follower.token) is None
        ]
        found = await asyncio.gather(
            *(self._sessions.validate(token) for _, token in doubted), return_exceptions=True
        )
        for (client, token), session in zip(doubted, found, strict=True):
            # Without Redis nobody can tell, and nobody can revoke a session either.
            follower = self._following.get(client)
            if session is None and follower is not None and follower.token == token:
                self.left(client)
                client.send(_unauthenticated())


def _frame(seq: int, event: str | bytes) -> bytes:
    """An event as its trader is told it. Raises ValueError when it is none."""
    kind, fields = changes.fields(event)
    return messages.encode(kind, seq=seq, **fields)


def _unauthenticated() -> bytes:
    return messages.error("unauthenticated", "This token is no session's; sign in again.")


def _unavailable(why: str) -> bytes:
    return messages.error("storage_unavailable", why)
