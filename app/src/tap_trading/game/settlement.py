"""What becomes of a bet: its rate after the speed bump, its result after its window.

Decided from bars and from nothing else, so whoever has the bars gets the same answer.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from tap_trading.game.cell import Cell

#: A bar covers so many ms, and its stamp (Unix ms) is a multiple of it.
BAR_MS = 100
#: Without a usable price for longer than this inside the window, a column is void.
MAX_GAP_MS = 1000
_BPS = 10_000


class VoidReason(StrEnum):
    """Why a stake is given back."""

    NO_PRICE = "no_price"  # none between the speed bump and the window
    RATE_BELOW_MINIMUM = "rate_below_minimum"  # the trader wanted at least so much
    NOT_OFFERED = "not_offered"  # the cell's chance has left the range that is offered
    FEED_OUTAGE = "feed_outage"  # the window had a gap


class Bar(Protocol):
    """The range of the price in [t, t + 100 ms), the close before it included."""

    @property
    def t(self) -> int:
        """Stamp, Unix ms."""

    @property
    def low(self) -> int:
        """Cents."""

    @property
    def high(self) -> int:
        """Cents."""


@dataclass(frozen=True, slots=True)
class Window:
    """All that the bars of a column's window say about its cells."""

    bars: int  # how many there are
    longest_gap: int  # longest time without one, ms
    low: int | None  # of all bars, cents; None when there is none
    high: int | None

    @property
    def void(self) -> bool:
        """Whether the column was without a price for too long."""
        return self.longest_gap > MAX_GAP_MS

    def wins(self, cell: Cell) -> bool:
        """Whether some bar's range met the cell's band; of a window that is not void.

        The bars' ranges overlap, since each includes the close before it: together they
        are everything between the lowest and the highest price.
        """
        if self.low is None or self.high is None:
            return False
        return self.low <= cell.high and self.high >= cell.low


def price_moment(placed_at: int, speed_bump_ms: int) -> int:
    """The earliest stamp (Unix ms) of a bar that a bet may be priced from.

    Bars have whole multiples of 100 ms.
    """
    return -(-(placed_at + speed_bump_ms) // BAR_MS) * BAR_MS


def window(start: int, width: int, bars: Sequence[Bar]) -> Window:
    """What `bars`, in their order, say about the window [start, start + width), in Unix s.

    Bars outside the window are ignored.
    """
    begin, end = start * 1000, (start + width) * 1000
    first = bisect_left(bars, begin, key=lambda bar: bar.t)
    last = bisect_left(bars, end, key=lambda bar: bar.t)
    inside = bars[first:last]
    longest, due = 0, begin
    for bar in inside:
        longest = max(longest, bar.t - due)
        due = bar.t + BAR_MS
    longest = max(longest, end - due)
    if not inside:
        return Window(0, longest, None, None)
    return Window(
        len(inside), longest, min(bar.low for bar in inside), max(bar.high for bar in inside)
    )


def payout(amount: int, rate_bps: int) -> int:
    """What a won bet is paid, in cents, for a stake in cents."""
    return amount * rate_bps // _BPS
