"""Challenges: a nonce and a text to sign, issued by us and good for one attempt.

Redis keeps what was issued for 90 s, and reading it removes it in the same step, so of two
simultaneous answers one finds nothing. Whatever Redis loses (eviction, a restart, a flush)
cannot be answered any more: it fails closed.
"""

import secrets
import string
from dataclasses import dataclass

import orjson

from tap_trading.auth import message as messages
from tap_trading.auth.message import Message
from tap_trading.base.clock import Clock
from tap_trading.base.redis import Redis

#: How long a challenge can be answered, in s.
LIFETIME_S = 90

_STATEMENT = "Sign in to BTC tap trading. This moves no funds and costs nothing."
#: 22 of 62 characters carry 130 bits, and the standard's grammar allows no others.
_ALPHABET = string.ascii_letters + string.digits
_NONCE_CHARACTERS = 22
#: A challenge issued later than now by more than this, in ms, is from before the clock
#: stepped back: how old it really is, nobody can tell.
_CLOCK_TOLERANCE_MS = 5_000


class BadNonceError(Exception):
    """The challenge cannot be answered (any more); the text says why, for the log."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a wallet is asked to sign."""

    nonce: str
    message: str
    expires_at_ms: int  # Unix ms


class Challenges:
    """The challenges of one site."""

    def __init__(
        self, redis: Redis, clock: Clock, domain: str, uri: str, chain_id: str = "mainnet"
    ) -> None:
        """`domain` and `uri` are the site's, as its visitors' wallets see them."""
        self._redis = redis
        self._clock = clock
        self._domain = domain
        self._uri = uri
        self._chain_id = chain_id

    async def issue(self, address: str) -> Challenge:
        """A new challenge for the owner of `address`, which must be a valid one.

        Raises RedisError or OSError when it cannot be kept.
        """
        now = self._clock()
        asked = Message(
            domain=self._domain,
            address=address,
            statement=_STATEMENT,
            uri=self._uri,
            chain_id=self._chain_id,
            nonce="".join(secrets.choice(_ALPHABET) for _ in range(_NONCE_CHARACTERS)),
            issued_at_ms=now,
            expires_at_ms=now + LIFETIME_S * 1000,
        )
        text = messages.build(asked)
        issued = {
            "address": address,
            "message": text,
            "issued_at": asked.issued_at_ms,
            "expires_at": asked.expires_at_ms,
        }
        await self._redis.set(_key(asked.nonce), orjson.dumps(issued), ex=LIFETIME_S)
        return Challenge(asked.nonce, text, asked.expires_at_ms)

    async def consume(self, address: str, nonce: str) -> str:
        """The text that was issued with `nonce`, if it was for `address` and still holds.

        The nonce is used up by every attempt, also by one that is then refused: whoever
        knows it had it from the one it was issued to. Raises BadNonceError; RedisError or
        OSError when nobody can tell, and then the nonce may be used up too.
        """
        if len(nonce) != _NONCE_CHARACTERS or not (nonce.isascii() and nonce.isalnum()):
            raise BadNonceError("not one of ours")
        stored = await self._redis.getdel(_key(nonce))
        if stored is None:
            raise BadNonceError("unknown, used or expired")
        try:
            issued = orjson.loads(stored)
            text, said = issued["message"], messages.parse(issued["message"])
            owner, period = issued["address"], (issued["issued_at"], issued["expires_at"])
        except (ValueError, TypeError, KeyError):
            raise BadNonceError("what is stored for it cannot be read") from None
        if said is None or (said.nonce, said.address) != (nonce, owner):
            raise BadNonceError("the text stored for it is not for it")
        if (said.issued_at_ms, said.expires_at_ms) != period:
            raise BadNonceError("the text stored for it is of another time")
        if owner != address:
            raise BadNonceError("issued for another address")
        if (said.domain, said.uri) != (self._domain, self._uri):
            raise BadNonceError("issued for another site")
        self._check_time(said)
        return str(text)

    def _check_time(self, said: Message) -> None:
        now = self._clock()
        if now >= said.expires_at_ms:
            raise BadNonceError("expired")
        if said.issued_at_ms > now + _CLOCK_TOLERANCE_MS:
            raise BadNonceError("issued in the future: the clock has stepped back")


def _key(nonce: str) -> str:
    return f"nonce:{nonce}"
