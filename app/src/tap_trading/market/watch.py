"""The market as any process sees it: the latest price and offer, from the channels, with their
age.

The price service says whether bets are taken. Should it fall silent, or Redis with it, the age
of what it said last decides: a second line that nobody has to remember to close.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, cast

from tap_trading.base import logger
from tap_trading.base.clock import Clock
from tap_trading.base.metrics import ERRORS
from tap_trading.base.redis import Redis, Subscription, sorted_set_tail
from tap_trading.market import offer as offers
from tap_trading.market import point as points
from tap_trading.market.offer import OFFER_CHANNEL, OFFER_KEY, Offer
from tap_trading.market.point import CHANNEL, HISTORY_KEY, PricePoint
from tap_trading.market.state import (
    DEGRADED_AFTER_MS,
    SUSPENDED_AFTER_MS,
    MarketState,
    state_of,
    worst,
)

__all__ = [
    "DEGRADED_AFTER_MS",
    "SUSPENDED_AFTER_MS",
    "MarketState",
    "MarketStatus",
    "PriceWatch",
    "state_of",
]

#: A cell may be bet on for so long after it was offered: what a trader saw is on its way.
OFFERED_FOR_MS = 2_000
#: No other process makes prices before the one that does has been silent for longer.
_LATE_MS = 1_000
#: The reason when it is the age that decides.
_STALE = "no_price"


class MarketStatus(NamedTuple):
    """Whether bets are taken, and why not."""

    state: MarketState
    reason: str | None  # a stable code; None while the market is open
    retry_in_ms: int | None  # until it may open; None when nobody knows


class PriceWatch:
    """Follows prices and offers; keeps the latest of both and a short history of prices."""

    def __init__(self, redis: Redis, clock: Clock, *, history: int = 1) -> None:
        self._redis = redis
        self._clock = clock
        self._prices = Subscription(redis, CHANNEL)
        self._offers = Subscription(redis, OFFER_CHANNEL)
        self._recent: list[Offer] = []
        #: Called with every new point, and with every new offer.
        self.on_price: Callable[[PricePoint], None] | None = None
        self.on_offer: Callable[[Offer], None] | None = None
        #: Oldest first.
        self.history: deque[PricePoint] = deque(maxlen=history)
        #: What may be bet on: the rates of all recent offers, the newest of each cell, in basis
        #: points by cell id.
        self.offered: dict[str, int] = {}

    @property
    def latest(self) -> PricePoint | None:
        """The newest point seen."""
        return self.history[-1] if self.history else None

    @property
    def offer(self) -> Offer | None:
        """The newest offer seen, however old; `state` says whether it stands."""
        return self._recent[-1] if self._recent else None

    def state(self) -> MarketState:
        """The market's state at this moment."""
        if not (self._recent and self.history):
            return MarketState.SUSPENDED
        offer, latest, now = self._recent[-1], self.history[-1], self._clock()
        offered_ago, priced_ago = now - offer.t, now - latest.t
        if 0 <= offered_ago < DEGRADED_AFTER_MS and 0 <= priced_ago < DEGRADED_AFTER_MS:
            return offer.state  # nearly always
        return worst(offer.state, state_of(offered_ago), state_of(priced_ago))

    def status(self) -> MarketStatus:
        """The state with its reason."""
        state, offer = self.state(), self.offer
        if offer is not None and offer.state is state:
            return MarketStatus(state, offer.reason, offer.retry_in_ms)
        return MarketStatus(state, _STALE, None)

    async def load_history(self) -> None:
        """Start from what Redis keeps: a point a second, and the latest offer.

        Raises RedisError.
        """
        size = self.history.maxlen or 1
        for member in await sorted_set_tail(self._redis, HISTORY_KEY, size):
            self._take(member)
        wire = cast("bytes | None", await self._redis.get(OFFER_KEY))
        if wire is not None:
            self._take_offer(wire)

    async def check(self) -> str:
        """Health check: fails while one of the subscriptions is down."""
        await self._offers.check()
        return await self._prices.check()

    async def check_age(self) -> str:
        """Readiness check: fails when the latest price is older than that of a market that is well."""
        if self.latest is None:
            raise RuntimeError("no price yet")
        age = self._clock() - self.latest.t
        if not 0 <= age < DEGRADED_AFTER_MS:
            raise RuntimeError(f"the last price is {age / 1000:.1f} s old")
        return f"{age} ms"

    # Two tasks of their own and no group of them: a cancellation may get lost inside
    # redis-py, and a group never repeats it.

    async def follow_prices(self) -> None:
        """Take every published price, for ever."""
        async for wire in self._prices.messages():
            point = self._take(wire)
            if point and self.on_price:
                self.on_price(point)

    async def follow_offers(self) -> None:
        """Take every published offer, for ever."""
        async for wire in self._offers.messages():
            offer = self._take_offer(wire)
            if offer and self.on_offer:
                self.on_offer(offer)

    def _take(self, wire: bytes) -> PricePoint | None:
        try:
            point = points.decode(wire)
        except ValueError as error:
            _complain("price", error)
            return None
        if self.latest is not None and (point == self.latest or self._was_late(point, self.latest)):
            return None  # the history's end and the channel's beginning overlap
        self.history.append(point)
        return point

    def _was_late(self, point: PricePoint, latest: PricePoint) -> bool:
        """Whether it comes behind its successors: a price service that was stopped after it had
        stored a bar publishes that when it wakes. A fresh one of an earlier time is of a clock that
        was set back.
        """
        return point.t <= latest.t and self._clock() - point.t > _LATE_MS

    def _take_offer(self, wire: bytes) -> Offer | None:
        try:
            offer = offers.decode(wire)
        except ValueError as error:
            _complain("offer", error)
            return None
        if offer.state is MarketState.SUSPENDED:
            self._recent.clear()  # whatever it was, it is offered no more
        # One from the future is of a clock that has been set back since.
        recent = [o for o in self._recent if offer.t - OFFERED_FOR_MS <= o.t <= offer.t]
        self._recent = [*recent, offer]
        offered: dict[str, int] = {}
        for each in self._recent:
            offered |= each.cells
        self.offered = offered
        return offer


def _complain(what: str, error: ValueError) -> None:
    ERRORS.labels(f"{what}_message").inc()
    logger.get().warning(f"unreadable {what} message", error=str(error))
