"""Tells the traders what the resolver has changed."""

import asyncio
from collections import deque

from prometheus_client import Counter, Gauge

from tap_trading.base import logger
from tap_trading.base.metrics import ERRORS
from tap_trading.base.redis import RedisError
from tap_trading.ledger.resolving import Changes
from tap_trading.settlement.history import History

#: Transactions that may wait to be published. One more, and nobody is told any of them: whoever
#: is connected finds them in the books.
_MOST_WAITING = 2000
#: After Redis failed it is left alone for this long, in s.
_PAUSE_S = 0.5
#: A resolver that ends, and with it the next one, waits for this at most, in s. Its lease lasts
#: longer.
_FLUSH_S = 1.0

_WAITING = Gauge("tap_changes_waiting", "Transactions that wait to be told to the traders.")
_MISSED = Counter("tap_changes_missed_total", "Times that all traders had to load anew.")


class Herald:
    """Publishes what has been changed, in its order, or says that something was missed.

    Redis must not repeat what it does not answer: the traders would be told twice.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._waiting: deque[Changes] = deque()
        self._began: int | None = None  # the token with which a resolver has begun
        self._missed = False
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._trouble = ""
        _WAITING.set_function(lambda: len(self._waiting))

    def tell(self, changed: Changes) -> None:
        """Publish this soon."""
        self._waiting.append(changed)
        if len(self._waiting) > _MOST_WAITING:
            self.missed()
        self._rouse()

    def missed(self) -> None:
        """Something that is durable will not be told: have everything loaded anew."""
        self._waiting.clear()  # durable as well, and loaded with it
        self._missed = True
        self._rouse()

    def lead(self, token: int) -> None:
        """A resolver begins; the one before it may have left something untold."""
        self._began = token
        self._rouse()

    async def flush(self, token: int) -> None:
        """A resolver ends: publish what waits, and let the next one know that all is told."""
        try:
            async with asyncio.timeout(_FLUSH_S):
                await self._idle.wait()
                await self._history.all_told(token)
        except (TimeoutError, RedisError, OSError) as error:
            logger.get().warning("changes may be left untold", error=str(error))

    async def publish(self) -> None:
        """Publish for ever; what Redis does not take is missed."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._missed or self._began is not None or self._waiting:
                try:
                    await self._publish_next()
                    self._trouble = ""
                except (RedisError, OSError) as error:
                    self._complain(error)
                    self.missed()
                    await asyncio.sleep(_PAUSE_S)
            self._idle.set()

    async def _publish_next(self) -> None:
        if self._began is not None:
            token, self._began = self._began, None
            await self._history.lead(token)
        elif self._missed:
            self._waiting.clear()
            self._missed = False
            await self._history.renew()
            _MISSED.inc()
        else:
            await self._history.publish(self._waiting.popleft())

    def _complain(self, error: Exception) -> None:
        ERRORS.labels("changes_publish").inc()
        if str(error) != self._trouble:
            logger.get().warning("changes not published", error=str(error))
        self._trouble = str(error)

    def _rouse(self) -> None:
        self._idle.clear()
        self._wake.set()
