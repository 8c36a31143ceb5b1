"""Redis: connecting, waiting for it at start-up, and subscriptions that survive its restarts.

Nothing that money or replay protection depends on lives only here.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tap_trading.base import logger
from tap_trading.base.config import Address
from tap_trading.base.errors import StartupError
from tap_trading.base.metrics import ERRORS

__all__ = [
    "Redis",
    "RedisError",
    "Subscription",
    "connect",
    "probe",
    "sorted_set_tail",
    "wait_until_ready",
]

_TIMEOUT_S = 2.0
_LONGEST_PAUSE_S = 2.0


def connect(address: Address, *, retries: int = 2) -> Redis:
    """A client with its connection pool; connects when first used.

    A command that was not answered is repeated, though it may have been done: `retries=0` is
    for whoever must not do anything twice.
    """
    where = (
        {"unix_socket_path": address.path}
        if address.path
        else {
            "host": address.host,
            "port": address.port,
        }
    )
    return Redis(
        **where,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), retries),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
        max_connections=64,
    )


async def wait_until_ready(redis: Redis, address: Address, wait_s: float) -> None:
    """Wait until Redis answers (it may be starting or loading). Raises StartupError."""
    deadline = asyncio.get_running_loop().time() + wait_s
    while True:
        try:
            await redis.ping()
        except (RedisError, OSError) as error:
            if asyncio.get_running_loop().time() >= deadline:
                raise StartupError(
                    f"Redis at {address} does not answer after {wait_s:g} s ({error}); "
                    "look with: systemctl status redis-server"
                ) from error
            await asyncio.sleep(0.1)
        else:
            return


async def sorted_set_tail(redis: Redis, key: str, count: int) -> list[bytes]:
    """The `count` members with the highest scores, lowest first. Raises what Redis raises."""
    return cast("list[bytes]", await redis.zrange(key, -count, -1))


async def probe(redis: Redis, component: str) -> str:
    """Health check: write a key and read it back. Raises what Redis raises."""
    key = f"health:{component}"
    token = secrets.token_hex(8).encode()
    pipeline = redis.pipeline(transaction=False)
    pipeline.set(key, token, ex=60)
    pipeline.get(key)
    _, found = await pipeline.execute()
    if found != token:
        raise RedisError("read back another value than was written")
    return "ok"


class Subscription:
    """Messages of one channel, over reconnects.

    What is published while the connection is down is not seen: pub/sub keeps nothing.
    Whoever cannot live with that gives `on_change`. It is called with True whenever Redis
    has confirmed the subscription, also after a reconnect of the library's own, and with
    False when the subscription is lost.
    """

    def __init__(
        self, redis: Redis, channel: str, on_change: Callable[[bool], None] | None = None
    ) -> None:
        self._redis = redis
        self._channel = channel
        self._on_change = on_change
        self.connected = False

    async def messages(self) -> AsyncIterator[bytes]:
        """Yield payloads until cancelled; one log line for each outage and each return."""
        log = logger.get()
        pause = 0.05
        outage = False
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(self._channel)
                    async for message in pubsub.listen():
                        if message["type"] == "message":
                            yield message["data"]
                        elif message["type"] == "subscribe":
                            # Only now is every later message ours: the request alone may
                            # still have waited in a buffer.
                            self._change(connected=True)
                            if outage:
                                log.info("subscription is back", channel=self._channel)
                            outage, pause = False, 0.05
            except (RedisError, OSError) as error:
                ERRORS.labels("redis_subscription").inc()
                if not outage:
                    log.warning(
                        "subscription lost; reconnecting", channel=self._channel, error=str(error)
                    )
                outage = True
            finally:
                self._change(connected=False)
            await asyncio.sleep(pause * (0.5 + secrets.randbelow(1000) / 1000))
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _change(self, *, connected: bool) -> None:
        self.connected = connected
        if self._on_change:
            self._on_change(connected)

    async def check(self) -> str:
        """Health check: fails while the subscription is down."""
        if not self.connected:
            raise RedisError(f"not subscribed to {self._channel}")
        return "ok"
