"""From sources to bars: every 100 ms the index is read and what it was becomes a bar.

It only makes them. Whether a bar counts is decided where it is stored (`engine.py`), so what
is made waits there, for however long a disk takes, and no moment is missed meanwhile.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client import Counter, Gauge

from tap_trading.base import logger
from tap_trading.base.clock import Clock
from tap_trading.market.bars import Bar, BarBuilder, SlotClock
from tap_trading.market.feeds.source import PriceSource, Tick
from tap_trading.market.index import Absence, CrossCheck, Deviation, Index, IndexRules, Reading
from tap_trading.market.point import BAR_MS

#: A clock that was set is noticed within so many seconds.
_LONGEST_SLEEP_S = 0.25

_INDEX = Gauge("tap_index_cents", "The index, in cents; 0 while there is none.")
_COUNTED = Gauge("tap_index_venues", "Venues that the index is made of now.")
_ABSENT = Gauge("tap_index_absent", "1 for a venue that does not count.", ["venue", "reason"])
_NO_PRICE = Counter("tap_index_missing_total", "Moments without an index.", ["reason"])
_DEVIATION = Gauge(
    "tap_index_deviation_bps", "The cross-check's distance from the index beyond its usual one."
)
_ALERTS = Counter("tap_index_deviations_total", "Lasting deviations of the cross-check.")


class Slot(NamedTuple):
    """What was in 100 ms."""

    end: int  # Unix ms
    reading: Reading
    bar: Bar | None


class BarMaker:
    """The index over some sources, read at each multiple of 100 ms while somebody wants bars."""

    def __init__(
        self,
        sources: Sequence[PriceSource],
        rules: IndexRules,
        clock: Clock,
    ) -> None:
        self._sources = sources
        self._rules = rules
        self._clock = clock
        self._cross = CrossCheck()
        self._index: Index | None = None  # None: nobody wants bars
        self._builder: BarBuilder | None = None
        self._slots = SlotClock(clock())
        self._reading: Reading | None = None
        self._absent: dict[str, Absence] = {}
        self._alerted = False
        self._set_back = False
        self._made: list[Slot] = []
        self._wake = asyncio.Event()

    # For whom the bars are made.

    def begin(self, memory: Mapping[str, Any], previous: Bar | None, after: int | None) -> None:
        """Make bars from now on, stamped later than `after` (Unix ms), the first of them
        continuing `previous`.

        `memory` is an export of an index before, or empty; an index that goes on needs none.
        """
        now = self._clock()
        if self._index is None:
            self._index = self._restored(memory, now)
        self._builder = BarBuilder(previous)
        self._slots = SlotClock(now, after)
        self._made.clear()

    def pause(self) -> None:
        """Make no bars until `begin`; the index goes on."""
        self._builder = None
        self._made.clear()

    def end(self) -> None:
        """Make no bars, and forget the index: somebody else's goes on."""
        self.pause()
        self._index, self._reading = None, None

    async def made(self, wait_s: float) -> list[Slot]:
        """What was made since the last call; waits up to so long for anything, in seconds."""
        if not self._made:
            self._wake.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                return []
        made, self._made = self._made, []
        return made

    def export(self) -> dict[str, Any]:
        """What `begin` continues from."""
        return {} if self._index is None else self._index.export()

    async def check(self) -> str:
        """Health check: whether there is a price, or would be if bars were made here."""
        reading, quorum = self._reading, self._rules.quorum
        connected = sum(each.status.last_trade is not None for each in self._sources)
        if reading is None and connected < quorum:
            raise RuntimeError(f"prices of {connected} sources, {quorum} are needed")
        if reading is not None and reading.price is None:
            absent = ", ".join(f"{name} is {why}" for name, why in reading.absent.items())
            raise RuntimeError(f"no price: {reading.reason}" + (f" ({absent})" if absent else ""))
        if len(self._sources) == 1:
            return "ok"
        counted = connected if reading is None else len(reading.counted)
        return f"{counted} of {len(self._sources)} venues"

    # What goes on all the time.

    async def follow(self, source: PriceSource) -> None:
        """Take a source's ticks, for ever."""
        name = source.name
        async for tick in source.ticks():
            self._take(name, tick)

    async def follow_cross_check(self, source: PriceSource) -> None:
        """Take the ticks of the market that the index is compared with, for ever."""
        async for tick in source.ticks():
            self._cross.tick(tick.receive_time, tick.price)

    async def keep_time(self) -> None:
        """Read the index at the end of each slot, for ever."""
        while True:
            now = self._clock()
            self._read(now)
            wait_s = max(self._slots.next - now, 1) / 1000
            await asyncio.sleep(min(wait_s, _LONGEST_SLEEP_S))

    def _take(self, name: str, tick: Tick) -> None:
        # First what ended before it arrived: so a bar holds exactly what arrived in its time.
        self._read(tick.receive_time)
        if self._index is not None:
            self._index.tick(name, tick.exchange_time, tick.receive_time, tick.price)

    def _read(self, now: int) -> None:
        """Read the index, if a slot has just ended."""
        self._tell_set_back(now)
        end = self._slots.due(now)
        if end is None or self._index is None:
            return
        for source in self._sources:
            status = source.status
            if status.connected_since is None:
                self._index.lost(source.name)
            elif status.last_message is not None:
                self._index.heard(source.name, status.last_message)
        reading = self._reading = self._index.at(end)
        self._measure(reading)
        if self._builder is None:
            return
        if reading.price is not None:
            self._builder.observe(end - 1, reading.price)
        self._made.append(Slot(end, reading, self._builder.close(end)))
        self._wake.set()

    def _restored(self, memory: Mapping[str, Any], now: int) -> Index:
        index = Index(self._rules)
        if memory:
            try:
                index.restore(memory, now)
            except ValueError as error:
                logger.get().error("the index begins anew", error=str(error))
        for source in self._sources:
            status = source.status
            if status.connected_since is not None and (last := status.last_trade) is not None:
                index.tick(source.name, last.exchange_time, last.receive_time, last.price)
        return index

    def _tell_set_back(self, now: int) -> None:
        behind = self._slots.behind(now)
        if (behind > BAR_MS) is not self._set_back:
            self._set_back = not self._set_back
            if self._set_back:
                logger.get().error("the clock was set back; no bars until it catches up", ms=behind)
            else:
                logger.get().info("the clock has caught up")

    def _measure(self, reading: Reading) -> None:
        _INDEX.set(reading.price or 0)
        _COUNTED.set(len(reading.counted))
        if reading.reason is not None:
            _NO_PRICE.labels(reading.reason).inc()
        if reading.absent != self._absent:
            for name, why in self._absent.items():
                _ABSENT.labels(name, why).set(0)
            for name, why in reading.absent.items():
                _ABSENT.labels(name, why).set(1)
            self._absent = dict(reading.absent)
            logger.get().info("venues", counted=list(reading.counted), absent=self._absent)
        deviation = self._cross.at(reading.t, reading.price)
        _DEVIATION.set(deviation.bps if deviation else 0)
        self._alert(deviation)

    def _alert(self, deviation: Deviation | None) -> None:
        lasting = deviation is not None and deviation.sustained
        if deviation is not None and lasting and not self._alerted:
            _ALERTS.inc()
            logger.get().error("the index differs from the cross-check", bps=round(deviation.bps))
        self._alerted = lasting
