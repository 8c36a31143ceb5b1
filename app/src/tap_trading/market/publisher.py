"""Turns a source's ticks into one price every 100 ms and publishes it to Redis."""

import asyncio
from dataclasses import dataclass

from prometheus_client import Counter, Gauge

from tap_trading.base import logger
from tap_trading.base.clock import Clock
from tap_trading.base.metrics import ERRORS
from tap_trading.base.redis import Redis, RedisError, sorted_set_tail
from tap_trading.market.feeds.source import PriceSource
from tap_trading.market.point import (
    BAR_MS,
    CHANNEL,
    HISTORY_KEY,
    LATEST_KEY,
    SOURCE_KEY,
    PricePoint,
    decode,
    dollars,
)

LATEST_TTL_S = 3600
HISTORY_TTL_S = 7 * 24 * 3600

_PUBLISHED = Counter("tap_prices_published_total", "Prices published to Redis.", ["source"])
_LAST = Gauge("tap_price_cents", "The last price published, in cents.")
_LAST_TIME = Gauge("tap_price_last_published_seconds", "When it was published, Unix seconds.")


@dataclass(slots=True)
class _Second:
    """What the once-a-second summary tells."""

    published: int = 0
    low: int = 0
    high: int = 0

    def add(self, price: int) -> None:
        self.low = min(self.low, price) if self.published else price
        self.high = max(self.high, price) if self.published else price
        self.published += 1


class Publisher:
    """One source, one price every 100 ms; a quiet source's last price goes on."""

    def __init__(self, source: PriceSource, redis: Redis, clock: Clock) -> None:
        self._source = source
        self._redis = redis
        self._clock = clock
        self._price: int | None = None
        self._seq = 0
        self._second = _Second()
        self._last_second = 0
        self._outage = False

    async def resume(self) -> None:
        """Continue the sequence where the last process left it. Raises RedisError.

        Another source's history is forgotten: its prices would look like a jump.
        """
        for member in await sorted_set_tail(self._redis, HISTORY_KEY, 1):
            try:
                # One member a second is kept: up to ten later numbers are taken already.
                self._seq = decode(member).seq + 1000 // BAR_MS
            except ValueError:
                logger.get().warning("unreadable price history", member=repr(member))
        name = self._source.name.encode()
        if await self._redis.set(SOURCE_KEY, name, get=True) not in (name, None):
            await self._redis.delete(HISTORY_KEY)

    async def take_ticks(self) -> None:
        """Follow the source for ever."""
        async for tick in self._source.ticks():
            self._price = tick.price

    async def publish_bars(self) -> None:
        """Publish at each multiple of 100 ms the price of the bar that just ended, for ever."""
        while True:
            now = self._clock()
            boundary = now - now % BAR_MS + BAR_MS
            await asyncio.sleep((boundary - now) / 1000)
            if self._price is not None:
                await self._publish(boundary - BAR_MS, self._price)

    async def _publish(self, t: int, price: int) -> None:
        log = logger.get()
        self._seq += 1
        point = PricePoint(t, self._seq, price)
        wire = point.encode()
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.publish(CHANNEL, wire)
        pipeline.set(LATEST_KEY, dollars(price), ex=LATEST_TTL_S)
        second = t // 1000
        if second != self._last_second:
            pipeline.zadd(HISTORY_KEY, {wire: t})
            pipeline.zremrangebyscore(HISTORY_KEY, "-inf", t - HISTORY_TTL_S * 1000)
            pipeline.expire(HISTORY_KEY, HISTORY_TTL_S)
        try:
            await pipeline.execute()
        except (RedisError, OSError) as error:
            ERRORS.labels("price_publish").inc()
            if not self._outage:
                log.warning("prices cannot be published; trying on", error=str(error))
            self._outage = True
            return
        if self._outage:
            log.info("prices are published again")
            self._outage = False
        _PUBLISHED.labels(self._source.name).inc()
        _LAST.set(price)
        _LAST_TIME.set(self._clock() / 1000)
        log.debug("price published", t=t, seq=point.seq, price=dollars(price))
        self._second.add(price)
        if second != self._last_second:
            self._last_second = second
            self._summarise(price)

    def _summarise(self, price: int) -> None:
        logger.get().info(
            "prices published",
            source=self._source.name,
            count=self._second.published,
            price=dollars(price),
            low=dollars(self._second.low),
            high=dollars(self._second.high),
        )
        self._second = _Second()

    async def check(self) -> str:
        """Health check: the source has spoken and Redis takes what we publish."""
        if self._price is None:
            raise RuntimeError(f"no price from {self._source.name} yet")
        if self._outage:
            raise RuntimeError("prices cannot be published")
        return "ok"
