"""Coinbase Exchange: channels `matches` and `heartbeat`.

A product's trade numbers are contiguous. The first trade on a connection is `last_match`, an
old one; a heartbeat a second names the last trade, so that a gap shows while it is quiet.
"""

from collections.abc import Sequence

import orjson

from tap_trading.market.feeds.fields import (
    UnknownMessageError,
    decode,
    integer,
    iso_ms,
    mapping,
    price,
    text,
)
from tap_trading.market.feeds.order import ReconnectError, TradeOrder
from tap_trading.market.feeds.venue import Liveness, Trade

#: Other messages of the feed, of no interest here; a trade shows as a `ticker` too.
_OTHERS = frozenset({"subscriptions", "ticker", "snapshot", "l2update", "status"})


class Coinbase:
    """One product, such as BTC-USD."""

    name = "coinbase"
    liveness = Liveness(5.0)

    def __init__(
        self, product: str = "BTC-USD", url: str = "wss://ws-feed.exchange.coinbase.com"
    ) -> None:
        self.url = url
        self.order = TradeOrder(contiguous=True)
        self._product = product
        self._announced: int | None = None

    def begin(self) -> Sequence[str]:
        """Subscribe."""
        self._announced = None
        channels = ["matches", "heartbeat"]
        message = {"type": "subscribe", "product_ids": [self._product], "channels": channels}
        return (orjson.dumps(message).decode(),)

    def read(self, raw: str) -> Sequence[Trade]:
        """The new trade in a message, if there is one."""
        message = mapping(decode(raw))
        kind = text(message.get("type"))
        if kind in _OTHERS:
            return ()
        if kind == "error":
            raise ReconnectError("refused", f"{message.get('message')}: {message.get('reason')}")
        if kind not in ("match", "last_match", "heartbeat"):
            raise UnknownMessageError(f"type {kind[:40]!r}")
        if text(message.get("product_id")) != self._product:
            return ()
        if kind == "heartbeat":
            self._heartbeat(integer(message.get("last_trade_id")))
            return ()
        number = integer(message.get("trade_id"))
        trade = Trade(iso_ms(message.get("time")), price(message.get("price")))
        if kind == "last_match":
            self.order.old((number,))
            return ()
        return (trade,) if self.order.is_new(number) else ()

    def _heartbeat(self, last_trade: int) -> None:
        """What one heartbeat has named must have come before the next."""
        if self._announced is not None:
            self.order.reached(self._announced)
        self._announced = last_trade
