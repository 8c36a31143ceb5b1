"""What only a trader is told: each change of their own bets and balance, numbered.

The resolver publishes what each of its transactions changed, with everybody's bets in it. Here
the changes of those who are connected are picked out, numbered for each trader, and kept for a
while, so that a client that was away can ask for what it has missed. Who missed more than that,
or was away when this process began, is told to load everything anew: `reset`.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Counter, Gauge

from tap_trading.auth.sessions import Sessions
from tap_trading.base import logger
from tap_trading.base.metrics import ERRORS
from tap_trading.base.redis import Redis, RedisError, Subscription
from tap_trading.ledger.resolving import Changes
from tap_trading.settlement import changes, shown
from tap_trading.stream import messages
from tap_trading.stream.client import Client

#: Events of a trader that can be asked for again.
KEPT = 200
#: Traders whose events are kept; the one who was connected the longest ago is dropped first.
_MOST_TRADERS = 20_000
#: Sessions are looked at this often, so that a revoked one hears nothing within a second, in s.
_CHECK_EVERY_S = 0.4
#: So many are looked at, or asked for, at once.
_AT_ONCE = 200

_SIGNED_IN = Gauge("tap_ws_signed_in", "WebSockets that are signed in.")
_EVENTS = Counter("tap_ws_events_total", "Changes of bets and balances for connected traders.")
_CHANGES = Counter("tap_ws_changes_total", "Transactions heard of.")


@dataclass(slots=True)
class _Trader:
    """One user's clients, and what they were told."""

    clients: set[Client] = field(default_factory=set)
    seq: int = 0  # of the last event
    events: deque[bytes] = field(default_factory=lambda: deque(maxlen=KEPT))


@dataclass(frozen=True, slots=True)
class _SignedIn:
    """Who a client is."""

    token: str
    user_id: str


class Traders:
    """The signed-in clients of this process."""

    def __init__(self, redis: Redis, sessions: Sessions, epoch: str) -> None:
        self._sessions = sessions
        self._epoch = epoch
        self._subscription = Subscription(redis, changes.CHANNEL, self._on_subscription)
        #: Health check: whether changes are heard of.
        self.check = self._subscription.check
        self._signed_in: dict[Client, _SignedIn] = {}
        self._traders: OrderedDict[str, _Trader] = OrderedDict()
        self._floor = 0  # no trader who was dropped has come so far
        self._deaf = False  # what was published meanwhile has been missed

    # What clients say.

    async def hear(self, client: Client, said: Mapping[str, Any]) -> None:
        """Answer `auth` or `resume`."""
        if said["type"] == "auth":
            await self._sign_in(client, said.get("token"))
        else:
            self._resume(client, said.get("epoch"), said.get("seq"))

    async def recognise(self, client: Client, token: str) -> None:
        """Sign a client in that brought its session along, as if it had said `auth`; one whose
        session has ended is a guest and hears nothing of it.
        """
        await self._sign_in(client, token, silently=True)

    def left(self, client: Client) -> None:
        """The client is gone, or no longer signed in."""
        who = self._signed_in.pop(client, None)
        if who is not None:
            self._traders[who.user_id].clients.discard(client)
            self._traders.move_to_end(who.user_id)
            self._forget_some()
            _SIGNED_IN.set(len(self._signed_in))

    async def _sign_in(self, client: Client, token: object, *, silently: bool = False) -> None:
        self.left(client)
        try:
            session = await self._sessions.validate(token) if isinstance(token, str) else None
        except (RedisError, OSError):
            if not silently:
                why = "Sessions cannot be read; try again soon."
                client.send(messages.error("storage_unavailable", why))
            return
        if session is None or not isinstance(token, str):
            if not silently:
                client.send(_unauthenticated())
            return
        trader = self._traders.setdefault(session.user_id, _Trader(seq=self._floor))
        trader.clients.add(client)
        self._signed_in[client] = _SignedIn(token, session.user_id)
        _SIGNED_IN.set(len(self._signed_in))
        client.send(
            messages.encode(
                "authenticated", user_id=session.user_id, epoch=self._epoch, seq=trader.seq
            )
        )

    def _resume(self, client: Client, epoch: object, seq: object) -> None:
        who = self._signed_in.get(client)
        if who is None:
            client.send(_unauthenticated())
            return
        trader = self._traders[who.user_id]
        oldest = trader.seq - len(trader.events)
        if epoch != self._epoch or type(seq) is not int or not oldest <= seq <= trader.seq:
            client.send(self._reset(trader))
            return
        for event in list(trader.events)[seq - oldest :]:
            client.send(event)
        client.send(messages.encode("resumed", epoch=self._epoch, seq=trader.seq))

    def _reset(self, trader: _Trader) -> bytes:
        return messages.encode("reset", epoch=self._epoch, seq=trader.seq)

    # What they are told.

    async def follow(self) -> None:
        """Pass on every change, for ever."""
        async for wire in self._subscription.messages():
            _CHANGES.inc()
            if not self._traders:
                continue
            try:
                self._pass_on(changes.decode(wire))
            except ValueError as error:
                ERRORS.labels("changes_message").inc()
                logger.get().warning("unreadable changes", error=str(error))
                self._miss()

    async def watch_sessions(self) -> None:
        """Sign out the clients whose sessions have ended, for ever."""
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            clients = list(self._signed_in)
            for begin in range(0, len(clients), _AT_ONCE):
                await self._check(clients[begin : begin + _AT_ONCE])
                await asyncio.sleep(0)  # prices go on

    async def _check(self, clients: Iterable[Client]) -> None:
        doubted = [
            (client, who.token)
            for client in clients
            if (who := self._signed_in.get(client)) is not None
            and self._sessions.cached(who.token) is None
        ]
        found = await asyncio.gather(
            *(self._sessions.validate(token) for _, token in doubted), return_exceptions=True
        )
        for (client, token), session in zip(doubted, found, strict=True):
            # Without Redis nobody can tell, and nobody can revoke a session either.
            who = self._signed_in.get(client)
            if session is None and who is not None and who.token == token:
                self.left(client)
                client.send(_unauthenticated())

    def _pass_on(self, changed: Changes) -> None:
        for user_id, bet in changed.bets:
            trader = self._traders.get(user_id)
            if trader is not None:
                self._tell(trader, "bet", shown.bet_fields(bet))
        for user_id, balance in changed.balances.items():
            trader = self._traders.get(user_id)
            if trader is not None:
                self._tell(trader, "balance", {"balance": balance})

    @staticmethod
    def _tell(trader: _Trader, kind: str, fields: Mapping[str, Any]) -> None:
        trader.seq += 1
        event = messages.encode(kind, seq=trader.seq, **fields)
        trader.events.append(event)
        for client in trader.clients:
            client.send(event)
        _EVENTS.inc()

    def _on_subscription(self, connected: bool) -> None:
        if not connected:
            self._deaf = True
        elif self._deaf:
            self._deaf = False
            self._miss()

    def _miss(self) -> None:
        """Something may have been missed: whoever has a history has one no longer."""
        for trader in self._traders.values():
            trader.seq += 1  # so that nobody can resume from before
            trader.events.clear()
            for client in trader.clients:
                client.send(self._reset(trader))

    def _forget_some(self) -> None:
        excess = len(self._traders) - _MOST_TRADERS
        if excess <= 0:
            return
        for user_id in list(self._traders)[: excess + _AT_ONCE]:
            if not self._traders[user_id].clients:
                # Should they come back, no number is given twice.
                self._floor = max(self._floor, self._traders.pop(user_id).seq + 1)


def _unauthenticated() -> bytes:
    return messages.error("unauthenticated", "This token is no session's; sign in again.")
