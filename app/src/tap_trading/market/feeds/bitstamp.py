"""Bitstamp v2: channel `live_trades_…`.

It says nothing while nobody trades, so it is asked for a sign of life. Its trade numbers
grow, but count all pairs together: gaps cannot be noticed.
"""

from collections.abc import Sequence

import orjson

from tap_trading.market.feeds.fields import (
    UnknownMessageError,
    decode,
    digits,
    integer,
    mapping,
    price,
    text,
)
from tap_trading.market.feeds.order import ReconnectError, TradeOrder
from tap_trading.market.feeds.venue import Liveness, Trade


class Bitstamp:
    """One pair, such as btcusd."""

    name = "bitstamp"
    # The index waits less than 2 s for a sign of life.
    liveness = Liveness(8.0, ping='{"event":"bts:heartbeat"}', ping_every_s=1.0)

    def __init__(self, product: str = "btcusd", url: str = "wss://ws.bitstamp.net/") -> None:
        self.url = url
        self.order = TradeOrder(contiguous=False)
        self._channel = f"live_trades_{product}"

    def begin(self) -> Sequence[str]:
        """Subscribe."""
        message = {"event": "bts:subscribe", "data": {"channel": self._channel}}
        return (orjson.dumps(message).decode(),)

    def read(self, raw: str) -> Sequence[Trade]:
        """The new trade in a message, if there is one."""
        message = mapping(decode(raw))
        event = text(message.get("event"))
        if event == "bts:request_reconnect":
            raise ReconnectError("asked", "the venue asks for a new connection")
        if event == "bts:error":
            raise ReconnectError("refused", str(message.get("data")))
        if event in ("bts:subscription_succeeded", "bts:heartbeat"):
            return ()
        channel = text(message.get("channel"))
        if event not in ("trade", "data"):
            raise UnknownMessageError(f"event {event[:40]!r}")
        if event != "trade" or channel != self._channel:
            return ()
        data = mapping(message.get("data"))
        number = integer(data.get("id"))
        moment = digits(data.get("microtimestamp")) // 1000
        trade = Trade(moment, price(data.get("price_str")))
        return (trade,) if self.order.is_new(number) else ()
