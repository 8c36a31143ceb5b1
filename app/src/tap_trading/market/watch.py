"""The latest price as any process sees it: from the channel, with its age and state."""

from collections import deque
from collections.abc import Callable
from enum import StrEnum

from tap_trading.base import logger
from tap_trading.base.clock import Clock
from tap_trading.base.metrics import ERRORS
from tap_trading.base.redis import Redis, Subscription, sorted_set_tail
from tap_trading.market.point import CHANNEL, HISTORY_KEY, PricePoint, decode

DEGRADED_AFTER_MS = 3_000
SUSPENDED_AFTER_MS = 10_000
#: A price stamped further ahead than this is of a clock that has been set back since.
_FUTURE_MS = 2_000


class MarketState(StrEnum):
    """Whether the market takes bets."""

    OPEN = "open"
    DEGRADED = "degraded"  # no price for 3 s
    SUSPENDED = "suspended"  # no price for 10 s, or none at all


def state_of(age_ms: int | None) -> MarketState:
    """State by the age of the latest price, in ms (None: there is none)."""
    if age_ms is None or age_ms >= SUSPENDED_AFTER_MS or age_ms < -_FUTURE_MS:
        return MarketState.SUSPENDED
    return MarketState.DEGRADED if age_ms >= DEGRADED_AFTER_MS else MarketState.OPEN


class PriceWatch:
    """Follows the published price; keeps the latest and a short history."""

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        *,
        history: int = 1,
    ) -> None:
        self._redis = redis
        self._clock = clock
        self._subscription = Subscription(redis, CHANNEL)
        #: Called with every new point.
        self.on_price: Callable[[PricePoint], None] | None = None
        #: Oldest first.
        self.history: deque[PricePoint] = deque(maxlen=history)
        self.check = self._subscription.check

    @property
    def latest(self) -> PricePoint | None:
        """The newest point seen."""
        return self.history[-1] if self.history else None

    def state(self) -> MarketState:
        """The market's state at this moment."""
        latest = self.latest
        return state_of(None if latest is None else self._clock() - latest.t)

    async def load_history(self) -> None:
        """Start from what Redis keeps (one point a second). Raises RedisError."""
        size = self.history.maxlen or 1
        for member in await sorted_set_tail(self._redis, HISTORY_KEY, size):
            self._take(member)

    async def follow(self) -> None:
        """Take every published price, for ever."""
        async for wire in self._subscription.messages():
            point = self._take(wire)
            if point and self.on_price:
                self.on_price(point)

    def _take(self, wire: bytes) -> PricePoint | None:
        try:
            point = decode(wire)
        except ValueError as error:
            ERRORS.labels("price_message").inc()
            logger.get().warning("unreadable price message", error=str(error))
            return None
        if point == self.latest:
            return None  # the history's end and the channel's beginning overlap
        self.history.append(point)
        return point
