"""Binance combined streams: `trade` or `aggTrade`. Its quote is USDT: a cross-check only.

Nothing is sent; the URL says which streams are wanted. Numbers are contiguous.
"""

from collections.abc import Sequence
from typing import Literal

from tap_trading.market.feeds.fields import (
    UnknownMessageError,
    decode,
    integer,
    mapping,
    price,
    text,
)
from tap_trading.market.feeds.order import ReconnectError, TradeOrder
from tap_trading.market.feeds.venue import Liveness, Trade

#: The field that numbers the trades of a stream.
_NUMBER = {"trade": "t", "aggTrade": "a"}


class Binance:
    """One symbol, such as btcusdt."""

    name = "binance"
    liveness = Liveness(10.0)

    def __init__(
        self,
        product: str = "btcusdt",
        url: str = "wss://stream.binance.com:9443/stream?streams=btcusdt@aggTrade",
        stream: Literal["trade", "aggTrade"] = "aggTrade",
    ) -> None:
        self.url = url
        self.order = TradeOrder(contiguous=True)
        self._product = product.upper()
        self._stream = stream

    def begin(self) -> Sequence[str]:
        """Nothing to send."""
        return ()

    def read(self, raw: str) -> Sequence[Trade]:
        """The new trade in a message, if there is one."""
        message = mapping(decode(raw))
        if "error" in message:
            raise ReconnectError("refused", str(message["error"]))
        text(message.get("stream"))
        data = mapping(message.get("data"))
        if data.get("e") == "serverShutdown":
            raise ReconnectError("asked", "the venue shuts this server down")
        # Quotes have no event type on the spot market.
        event = text(data.get("e", "bookTicker"))
        if event in ("bookTicker", "depthUpdate"):
            return ()
        if event not in _NUMBER:
            raise UnknownMessageError(f"event {event[:40]!r}")
        if event != self._stream or text(data.get("s")) != self._product:
            return ()
        number = integer(data.get(_NUMBER[event]))
        trade = Trade(integer(data.get("T")), price(data.get("p")))
        return (trade,) if self.order.is_new(number) else ()
