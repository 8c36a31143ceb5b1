"""Publishes to Redis what the price service has made: prices and offers.

Nobody waits for it and nothing here fails: without Redis bars are made and stored all the same,
and who listens judges by age.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from prometheus_client import Counter, Gauge

from tap_trading.base import logger
from tap_trading.base.clock import Clock
from tap_trading.base.metrics import ERRORS
from tap_trading.base.redis import Redis, RedisError
from tap_trading.market.bars import Bar
from tap_trading.market.offer import OFFER_CHANNEL, OFFER_KEY, Offer
from tap_trading.market.point import (
    CHANNEL,
    HISTORY_KEY,
    LATEST_KEY,
    SOURCE_KEY,
    PricePoint,
    dollars,
    number_of,
)

LATEST_TTL_S = 3600
HISTORY_TTL_S = 7 * 24 * 3600
#: Prices that may wait for Redis; older ones are of no use to anybody.
_MOST_WAITING = 100

_PUBLISHED = Counter("tap_prices_published_total", "Prices published to Redis.", ["source"])
_LAST = Gauge("tap_price_cents", "The last price published, in cents.")
_LAST_TIME = Gauge("tap_price_last_published_seconds", "When it was published, Unix seconds.")
_OFFERS = Counter("tap_offers_published_total", "Offers published to Redis.")


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
    """The way of one source's prices and offers into Redis."""

    def __init__(self, source: str, redis: Redis, clock: Clock) -> None:
        self._source = source
        self._redis = redis
        self._clock = clock
        self._bars: deque[Bar] = deque(maxlen=_MOST_WAITING)
        self._offer: Offer | None = None
        self._wake = asyncio.Event()
        self._begun = False
        self._second = _Second()
        self._last_second = 0
        self._outage = False

    def price(self, bar: Bar) -> None:
        """Publish the close of a bar soon."""
        self._bars.append(bar)
        self._wake.set()

    def offer(self, offer: Offer) -> None:
        """Publish an offer soon, unless a newer one comes first."""
        self._offer = offer
        self._wake.set()

    async def run(self) -> None:
        """Publish what there is, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            bars, self._bars = list(self._bars), deque(maxlen=_MOST_WAITING)
            offer, self._offer = self._offer, None
            try:
                await self._publish(bars, offer)
            except (RedisError, OSError) as error:
                ERRORS.labels("price_publish").inc()
                if not self._outage:
                    logger.get().warning("prices cannot be published; trying on", error=str(error))
                self._outage = True
                continue
            if self._outage:
                logger.get().info("prices are published again")
                self._outage = False
            self._count(bars, offer)

    async def check(self) -> str:
        """Health check: Redis takes what we publish."""
        if self._outage:
            raise RuntimeError("prices cannot be published")
        return "ok"

    async def _publish(self, bars: list[Bar], offer: Offer | None) -> None:
        """Raises RedisError or OSError."""
        if not self._begun:
            # Another source's history is forgotten: its prices would look like a jump.
            name = self._source.encode()
            if await self._redis.set(SOURCE_KEY, name, get=True) not in (name, None):
                await self._redis.delete(HISTORY_KEY)
            self._begun = True
        pipeline = self._redis.pipeline(transaction=False)
        for bar in bars:
            wire = PricePoint(bar.t, number_of(bar.t), bar.close).encode()
            pipeline.publish(CHANNEL, wire)
            pipeline.set(LATEST_KEY, dollars(bar.close), ex=LATEST_TTL_S)
            if bar.t // 1000 != self._last_second:
                self._last_second = bar.t // 1000
                pipeline.zadd(HISTORY_KEY, {wire: bar.t})
                pipeline.zremrangebyscore(HISTORY_KEY, "-inf", bar.t - HISTORY_TTL_S * 1000)
                pipeline.expire(HISTORY_KEY, HISTORY_TTL_S)
        if offer is not None:
            wire_offer = offer.encode()
            pipeline.publish(OFFER_CHANNEL, wire_offer)
            pipeline.set(OFFER_KEY, wire_offer, ex=LATEST_TTL_S)
        await pipeline.execute()

    def _count(self, bars: list[Bar], offer: Offer | None) -> None:
        if offer is not None:
            _OFFERS.inc()
        for bar in bars:
            _PUBLISHED.labels(self._source).inc()
            logger.get().debug("price published", t=bar.t, price=dollars(bar.close))
            if self._second.published and bar.t % 1000 == 0:
                self._summarise(bar.close)
            self._second.add(bar.close)
        if bars:
            _LAST.set(bars[-1].close)
            _LAST_TIME.set(self._clock() / 1000)

    def _summarise(self, price: int) -> None:
        logger.get().info(
            "prices published",
            source=self._source,
            count=self._second.published,
            price=dollars(price),
            low=dollars(self._second.low),
            high=dollars(self._second.high),
        )
        self._second = _Second()
