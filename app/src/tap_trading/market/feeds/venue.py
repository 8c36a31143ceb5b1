"""What an exchange's feed is to us: what to say to it, and what its messages mean."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tap_trading.market.feeds.order import TradeOrder


@dataclass(frozen=True, slots=True)
class Trade:
    """A trade as an exchange reports it."""

    time: int  # Unix ms, by the exchange's clock
    price: int  # cents


@dataclass(frozen=True, slots=True)
class Liveness:
    """How a connection shows that it is alive."""

    #: Without a message for so long, in seconds, it is dead.
    stale_after_s: float
    #: Text that makes a venue answer that does not speak by itself, and how often to send it.
    ping: str = ""
    ping_every_s: float = math.inf


class Venue(Protocol):
    """One product of one exchange. No I/O: text goes in, trades come out."""

    #: A short name for logs and metrics.
    name: str
    url: str
    liveness: Liveness
    #: What has been noticed of its trades: repeated, late, gaps, missed.
    order: TradeOrder

    def begin(self) -> Sequence[str]:
        """A new connection is open: what to send first."""

    def read(self, raw: str) -> Sequence[Trade]:
        """The new trades in a message, oldest first.

        Raises BadMessageError when it is not a message of this venue: one wrong trade
        spoils all of its message. Raises ReconnectError when the connection is of no more
        use.
        """
