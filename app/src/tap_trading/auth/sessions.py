"""Sessions: in Redis for all processes, and in memory so that a request need not ask it.

An answer of Redis is used for at most 60 s, and only while this process hears of
revocations: they come through pub/sub, which keeps nothing, so whenever the subscription is
lost or made anew everything is asked again. See ADR 0009.
"""

import asyncio
import hashlib
import re
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import cast

import orjson

from tap_trading.base import logger
from tap_trading.base.clock import Clock
from tap_trading.base.metrics import ERRORS
from tap_trading.base.redis import Redis, RedisError, Subscription

#: How long a session lasts, in s.
LIFETIME_S = 86_400
#: Revocations are published here: the hash of each token that is dead.
CHANNEL = "sessions:revoked"

_PREFIX = "session:"
#: An answer of Redis is good for this long at most, in ms.
_FRESH_MS = 60_000
#: A session that is used when its answer is as old as this is asked for again meanwhile, so
#: that no request has to wait, with all others of this moment, in ms and s.
_RENEW_MS = 45_000
_MOMENT_S = 0.1
#: So many in one command, since reading its answer holds up everything else.
_AT_ONCE = 100
#: Sessions kept in memory. One more drops the one whose answer is the oldest.
_MOST_CACHED = 50_000

#: How long an answer of Redis is waited for, in s.
_PATIENCE_S = 1.0
#: After Redis failed to answer it is left alone for this long, in s.
_PAUSE_S = 0.5
#: Keys looked through in one step of `revoke_user`.
_STEP = 500

#: The epoch of answers that came while revocations were not heard: never the current one.
_DEAF = -1

#: 32 random bytes in base64url.
_TOKEN_BYTES = 32
_TOKEN = re.compile(r"[A-Za-z0-9_\-]{43}")
_HASH = re.compile(rb"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Session:
    """Who is signed in."""

    user_id: str
    address: str
    expires_at_ms: int  # Unix ms


@dataclass(frozen=True, slots=True)
class _Moment:
    """What had been heard when Redis was asked."""

    epoch: int
    revocations: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A session as Redis confirmed it, and when that answer may be used without asking."""

    session: Session
    token_hash: str
    epoch: int
    since_ms: int
    until_ms: int


class Sessions:
    """The sessions as one process sees them."""

    def __init__(self, redis: Redis, clock: Clock, *, most_cached: int = _MOST_CACHED) -> None:
        self._redis = redis
        self._clock = clock
        self._most_cached = most_cached
        self._subscription = Subscription(redis, CHANNEL, self._on_subscription)
        #: Health check: whether revocations are heard.
        self.check = self._subscription.check
        #: By token, the oldest answer first.
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._token_of: dict[str, str] = {}  # by hash, for revocations
        #: By hash, sessions that nobody has shown a token of here yet.
        self._foreseen: dict[str, _Entry] = {}
        #: Goes up whenever revocations may have been missed; older entries are then stale.
        self._epoch = 0
        #: How many revocations were heard or made here.
        self._revocations = 0
        self._wanted: dict[str, asyncio.Future[bytes | None]] = {}  # by hash, not asked yet
        self._asking: asyncio.Task[None] | None = None
        self._renewed: set[str] = set()  # tokens to be asked for again
        self._renewing: asyncio.Task[None] | None = None
        self._ask_again_at = 0.0  # loop time; 0 while Redis answers

    async def open(self, user_id: str, address: str) -> tuple[str, Session]:
        """Sign `user_id` in: a secret token, and the session it stands for.

        Raises RedisError or OSError when the session cannot be kept.
        """
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        token_hash = _hash(token)
        session = Session(user_id, address, self._clock() + LIFETIME_S * 1000)
        asked = self._moment()
        # Only the hash is stored: who reads Redis or its files cannot sign in with it.
        await self._redis.set(_PREFIX + token_hash, _encode(session), ex=LIFETIME_S)
        self._keep(token, token_hash, session, asked)
        return token, session

    def cached(self, token: str) -> Session | None:
        """The session of `token` if memory can vouch for it, without waiting for anything.

        None means "ask `validate`", not "signed out".
        """
        entry = self._entries.get(token) or self._recognised(token)
        # An answer from the future is none: the clock has stepped back since.
        if (
            entry is not None
            and entry.epoch == self._epoch
            and entry.since_ms <= (now := self._clock()) < entry.until_ms
        ):
            if now - entry.since_ms >= _RENEW_MS and token not in self._renewed:
                self._renew(token)
            return entry.session
        return None

    async def foresee(self) -> None:
        """Ask for the sessions that there are, so that a process which takes many traders over at
        once knows them already. Raises RedisError or OSError.
        """
        found: dict[str, _Entry] = {}
        revocations = self._revocations
        async for keys in self._all_keys():
            now, asked = self._clock(), self._moment()
            stored = cast("list[bytes | None]", await self._redis.mget(keys))
            for key, value in zip(keys, stored, strict=True):
                token_hash, session = key.decode().removeprefix(_PREFIX), _decode(value)
                if session is not None:
                    until = min(now + _FRESH_MS, session.expires_at_ms)
                    found[token_hash] = _Entry(session, token_hash, asked.epoch, now, until)
            if revocations != self._revocations or len(found) >= self._most_cached:
                break
        # One that was revoked meanwhile may be among them.
        self._foreseen = found if revocations == self._revocations else {}

    async def validate(self, token: str) -> Session | None:
        """The session of `token`, or None when there is none (any more).

        While Redis does not answer, a session it has confirmed before is honoured until it
        expires: nobody can revoke one then either. Of any other token nobody can tell:
        raises RedisError.
        """
        if not _TOKEN.fullmatch(token):
            return None
        if (session := self.cached(token)) is not None:
            return session
        return await self._ask(token)

    async def revoke(self, token: str) -> None:
        """End the session of `token`, here at once and in every process as it hears of it.

        Raises RedisError or OSError; then the session may live on.
        """
        await self._end([_hash(token)])

    async def revoke_user(self, user_id: str) -> int:
        """End all sessions `user_id` has now; returns how many. Raises as `revoke`.

        This looks at every session there is. An index by user would be quicker, but Redis
        may evict it at any time, and then a session would escape.
        """
        ended = 0
        async for keys in self._all_keys():
            stored = cast("list[bytes | None]", await self._redis.mget(keys))
            hashes = [
                key.decode().removeprefix(_PREFIX)
                for key, value in zip(keys, stored, strict=True)
                if (session := _decode(value)) is not None and session.user_id == user_id
            ]
            if hashes:
                await self._end(hashes)
                ended += len(hashes)
        return ended

    async def follow(self) -> None:
        """Hear of revocations, for ever. Without this running, nothing stays in memory."""
        async for payload in self._subscription.messages():
            if _HASH.fullmatch(payload):
                self._revocations += 1
                self._forget(payload.decode())
            else:
                ERRORS.labels("revocation_message").inc()
                logger.get().warning("unreadable revocation")

    def _recognised(self, token: str) -> _Entry | None:
        """The entry of a token that is shown for the first time, if it was foreseen."""
        if not self._foreseen:
            return None
        entry = self._foreseen.pop(_hash(token), None)
        if entry is not None:
            self._insert(token, entry)
        return entry

    def _renew(self, token: str) -> None:
        self._renewed.add(token)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.get_running_loop().create_task(self._renew_all())

    async def _renew_all(self) -> None:
        """Ask again for what was used lately; without an answer it is left to grow old."""
        while self._renewed:
            await asyncio.sleep(_MOMENT_S)
            tokens = [self._renewed.pop() for _ in range(min(len(self._renewed), _AT_ONCE))]
            asked = self._moment()
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    found = await self._values([_hash(token) for token in tokens])
            except (RedisError, OSError):
                continue
            for token, value in zip(tokens, found, strict=True):
                self._learn(token, value, asked)

    def _on_subscription(self, connected: bool) -> None:
        # Also on the way down: from now on a revocation may pass unheard.
        self._epoch += 1
        if connected:
            self._ask_again_at = 0.0

    async def _ask(self, token: str) -> Session | None:
        """Ask Redis for the session of `token`."""
        asked = self._moment()
        try:
            stored = await self._stored(_hash(token))
        except (RedisError, OSError) as error:
            entry = self._entries.get(token)
            if entry is not None and self._clock() < entry.session.expires_at_ms:
                return entry.session
            raise RedisError(f"nobody can tell whose token this is: {error}") from error
        return self._learn(token, stored, asked)

    def _learn(self, token: str, stored: bytes | None, asked: _Moment) -> Session | None:
        """The session in what Redis had when it was `asked`."""
        token_hash, session = _hash(token), _decode(stored)
        if session is None or self._clock() >= session.expires_at_ms:
            self._forget(token_hash)
            return None
        self._keep(token, token_hash, session, asked)
        return session

    async def _stored(self, token_hash: str) -> bytes | None:
        """What Redis has. Raises RedisError or OSError, at once if it has just failed."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._ask_again_at:
            raise RedisError("Redis did not answer a moment ago")
        if self._ask_again_at:
            # One request finds out whether Redis is back; the others need not wait for that.
            self._ask_again_at = loop.time() + _PATIENCE_S
        stored = self._wanted.get(token_hash)
        if stored is None:
            stored = self._wanted[token_hash] = loop.create_future()
            if self._asking is None or self._asking.done():
                self._asking = loop.create_task(self._ask_for_all())
        return await asyncio.shield(stored)  # others may wait for the same

    async def _ask_for_all(self) -> None:
        """Ask for what is wanted, all in one command, until nothing more is."""
        loop = asyncio.get_running_loop()
        while wanted := self._wanted:
            self._wanted = {}
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    found = await self._values(list(wanted))
            except Exception as error:  # whatever it is, those who wait are told
                self._ask_again_at = loop.time() + _PAUSE_S
                # What is wanted by now would only wait for the same once more.
                also, self._wanted = self._wanted, {}
                for stored in (*wanted.values(), *also.values()):
                    stored.set_exception(error)
            else:
                self._ask_again_at = 0.0
                for stored, value in zip(wanted.values(), found, strict=True):
                    stored.set_result(value)

    async def _values(self, hashes: list[str]) -> list[bytes | None]:
        keys = [_PREFIX + token_hash for token_hash in hashes]
        return cast("list[bytes | None]", await self._redis.mget(keys))

    async def _all_keys(self) -> AsyncIterator[list[bytes]]:
        cursor = 0
        while True:
            cursor, keys = await self._redis.scan(cursor, match=f"{_PREFIX}*", count=_STEP)
            if keys:
                yield cast("list[bytes]", keys)
            if cursor == 0:
                return

    async def _end(self, hashes: list[str]) -> None:
        """Delete these sessions and say so, both or neither."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(*(_PREFIX + token_hash for token_hash in hashes))
            for token_hash in hashes:
                pipeline.publish(CHANNEL, token_hash)
            await pipeline.execute()
        self._revocations += 1
        for token_hash in hashes:
            self._forget(token_hash)

    def _moment(self) -> _Moment:
        epoch = self._epoch if self._subscription.connected else _DEAF
        return _Moment(epoch, self._revocations)

    def _keep(self, token: str, token_hash: str, session: Session, asked: _Moment) -> None:
        """Keep an answer to what was `asked`."""
        if asked.revocations != self._revocations:
            return  # it may be this session's, heard before the older answer came in
        now = self._clock()
        until = min(now + _FRESH_MS, session.expires_at_ms)
        self._insert(token, _Entry(session, token_hash, asked.epoch, now, until))

    def _insert(self, token: str, entry: _Entry) -> None:
        self._entries[token] = entry
        self._entries.move_to_end(token)
        self._token_of[entry.token_hash] = token
        if len(self._entries) > self._most_cached:
            _, oldest = self._entries.popitem(last=False)
            del self._token_of[oldest.token_hash]

    def _forget(self, token_hash: str) -> None:
        self._foreseen.pop(token_hash, None)
        token = self._token_of.pop(token_hash, None)
        if token is not None:
            del self._entries[token]


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _encode(session: Session) -> bytes:
    return orjson.dumps(
        {
            "user_id": session.user_id,
            "address": session.address,
            "expires_at": session.expires_at_ms,
        }
    )


def _decode(stored: bytes | None) -> Session | None:
    """The session in a stored value; None for what is no session, so that it opens nothing."""
    if stored is None:
        return None
    try:
        fields = orjson.loads(stored)
        return Session(str(fields["user_id"]), str(fields["address"]), int(fields["expires_at"]))
    except (ValueError, TypeError, KeyError):
        ERRORS.labels("session_value").inc()
        return None
