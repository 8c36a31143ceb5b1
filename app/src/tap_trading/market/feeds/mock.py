"""The mock source: a random walk that a seed repeats exactly."""

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator

from tap_trading.base.clock import Clock
from tap_trading.market.feeds.source import SourceStatus, Tick
from tap_trading.market.point import BAR_MS

#: Standard deviation of one step's log return: about 3 % a day at ten steps a second.
_STEP_SIGMA = 3.2e-5


def walk(seed: int, start: int) -> Iterator[int]:
    """Prices in cents, from `start` on; the same for the same seed. Never below 1 cent."""
    rng = random.Random(seed)  # a repeatable walk  # noqa: S311  # nosec B311
    price = float(start)
    while True:
        yield max(round(price), 1)
        price *= 1 + rng.gauss(0, _STEP_SIGMA)


class MockSource:
    """Ten steps a second of the walk."""

    name = "mock"

    def __init__(self, seed: int, start: int, clock: Clock) -> None:
        self._walk = walk(seed, start)
        self._clock = clock
        self._began: int | None = None
        self._last: Tick | None = None

    @property
    def status(self) -> SourceStatus:
        """Connected and heard as soon as it walks."""
        heard = self._last.receive_time if self._last else None
        return SourceStatus(self._began, heard, self._last)

    async def ticks(self) -> AsyncGenerator[Tick]:
        """Steps, as they happen."""
        for price in self._walk:
            now = self._clock()
            self._began = now if self._began is None else self._began
            self._last = Tick(now, now, price)
            yield self._last
            await asyncio.sleep(BAR_MS / 1000)
