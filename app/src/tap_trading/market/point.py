"""One published price, and how it travels through Redis.

The channel `prices:btc:usd` carries `ts_ms:seq:price`, the price with two decimals; the
sorted set `prices:btc:usd:ts` keeps one such member a second, scored by `ts_ms`.
"""

import re
from dataclasses import dataclass

from tap_trading.game import settlement

CHANNEL = "prices:btc:usd"
LATEST_KEY = "price:btc:usd"
HISTORY_KEY = "prices:btc:usd:ts"
#: Which source the history came from: two sources never share one.
SOURCE_KEY = "prices:btc:usd:source"

#: A point every so many milliseconds; its stamp is a multiple of this.
BAR_MS = settlement.BAR_MS

_WIRE = re.compile(rb"([0-9]{1,15}):([0-9]{1,18}):([0-9]{1,15})\.([0-9]{2})")


@dataclass(frozen=True, slots=True)
class PricePoint:
    """The close of the bar stamped `t`, which covers [t, t + 100 ms)."""

    t: int  # Unix ms, a multiple of BAR_MS
    #: The number of its bar since 1970: one higher with every bar, whoever publishes it, and
    #: with a hole where there was no price.
    seq: int
    price: int  # cents

    def encode(self) -> str:
        """The point as Redis carries it."""
        return f"{self.t}:{self.seq}:{dollars(self.price)}"


def number_of(t: int) -> int:
    """The sequence number of the bar stamped `t` (Unix ms)."""
    return t // BAR_MS


def dollars(cents: int) -> str:
    """An amount of cents with two decimals: 8421050 → "84210.50"."""
    return f"{cents // 100}.{cents % 100:02d}"


def decode(wire: bytes) -> PricePoint:
    """Read a point. Raises ValueError when it is not `ts_ms:seq:price`."""
    match = _WIRE.fullmatch(wire)
    if match is None:
        raise ValueError(f"not ts_ms:seq:price: {wire[:80]!r}")
    t, seq, whole, fraction = map(int, match.groups())
    return PricePoint(t, seq, whole * 100 + fraction)
