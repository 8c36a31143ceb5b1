"""Bars: what the index was in each 100 ms, made once and never again.

A bar stamped `t` covers [t, t + 100 ms) by our receive clock. Settlement and volatility read
nothing but bars, so three rules hold whatever the clock and the machine do:

- A slot has one bar at most. A clock that is set back gets no second bar for a time that has
  had one: there are none until it has passed the last bar's end.
- A slot that nobody watched to its end has no bar. Who wakes up late (or finds the clock
  jumped forward) by a whole slot or more does not know what the price was meanwhile; to
  repeat the last one would be an invention. The gap shows, and is judged by the outage rule.
- A bar's range reaches to the previous bar's close, also across a gap: the price got there
  somehow.

The price service observes the index once a bar, at its end. Rates assume exactly that
spacing of observations; more of them would make touches likelier than they are paid for.
"""

from dataclasses import dataclass

from tap_trading.market.point import BAR_MS


@dataclass(frozen=True, slots=True)
class Bar:
    """The index during [t, t + 100 ms); all prices in cents."""

    t: int  # Unix ms, a multiple of BAR_MS
    open: int
    high: int  # at least the previous close
    low: int  # at most the previous close
    close: int


class SlotClock:
    """Says when a slot has ended and its index has to be read."""

    def __init__(self, now: int, last: int | None = None) -> None:
        """Begin with the slot of `now`, and after the bar stamped `last` (both Unix ms)."""
        self._next = _slot(now) + BAR_MS
        if last is not None:
            self._next = max(self._next, _slot(last) + 2 * BAR_MS)

    @property
    def next(self) -> int:
        """The next slot's end (Unix ms): when to wake up."""
        return self._next

    def due(self, now: int) -> int | None:
        """The end of the slot that ended just now; None when none did, or too long ago.

        Ask with a tick's receive time before the tick is taken, and whenever the timer
        fires: then a bar holds exactly what arrived before its end.
        """
        if now < self._next:
            return None
        end = self._next
        self._next = _slot(now) + BAR_MS
        return end if now < end + BAR_MS else None

    def behind(self, now: int) -> int:
        """How far, in ms, the clock has been set back behind the last slot; 0 when not."""
        return max(self._next - BAR_MS - now, 0)


class BarBuilder:
    """Makes bars from observations of the index."""

    def __init__(self, previous: Bar | None = None) -> None:
        """Continue after `previous`, the last bar stored."""
        self._previous = previous
        self._slot = 0
        self._open = self._high = self._low = self._close = 0  # 0: nothing observed yet

    def observe(self, at_ms: int, price: int) -> None:
        """The index (cents) at a moment inside the bar. One of a finished bar is dropped.

        Observations of an earlier, never closed slot are forgotten: nobody watched its end.
        """
        slot = _slot(at_ms)
        if slot < self._slot or (self._previous and slot <= self._previous.t):
            return
        if slot > self._slot or not self._open:
            self._slot = slot
            self._open = self._high = self._low = price
        self._high = max(self._high, price)
        self._low = min(self._low, price)
        self._close = price

    def close(self, now_ms: int) -> Bar | None:
        """The bar of the slot that has ended by `now_ms`, if anything was observed in it."""
        if not self._open or now_ms < self._slot + BAR_MS:
            return None
        high, low = self._high, self._low
        if self._previous:
            high = max(high, self._previous.close)
            low = min(low, self._previous.close)
        bar = Bar(self._slot, self._open, high, low, self._close)
        self._previous = bar
        self._open = 0
        return bar


def _slot(moment_ms: int) -> int:
    return moment_ms - moment_ms % BAR_MS
