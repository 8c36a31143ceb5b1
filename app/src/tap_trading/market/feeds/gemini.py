"""Gemini v2: subscription `l2`, which carries the trades too.

The first `l2_updates` of a symbol holds the book and its recent trades, all of them old.
A trade's `event_id` grows, but counts other events too: gaps cannot be noticed.
"""

from collections.abc import Sequence

import orjson

from tap_trading.market.feeds.fields import (
    UnknownMessageError,
    decode,
    integer,
    items,
    mapping,
    price,
    text,
)
from tap_trading.market.feeds.order import ReconnectError, TradeOrder
from tap_trading.market.feeds.venue import Liveness, Trade

_OTHERS = frozenset(
    {"heartbeat", "auction_open", "auction_indicative", "auction_result", "subscription_ack"}
)


class Gemini:
    """One symbol, such as BTCUSD."""

    name = "gemini"
    liveness = Liveness(12.0)

    def __init__(
        self, product: str = "BTCUSD", url: str = "wss://api.gemini.com/v2/marketdata"
    ) -> None:
        self.url = url
        self.order = TradeOrder(contiguous=False)
        self._product = product

    def begin(self) -> Sequence[str]:
        """Subscribe."""
        subscription = {"name": "l2", "symbols": [self._product]}
        message = {"type": "subscribe", "subscriptions": [subscription]}
        return (orjson.dumps(message).decode(),)

    def read(self, raw: str) -> Sequence[Trade]:
        """The new trade in a message, if there is one."""
        message = mapping(decode(raw))
        if message.get("result") == "error":
            raise ReconnectError("refused", f"{message.get('reason')}: {message.get('message')}")
        kind = text(message.get("type"))
        if kind in _OTHERS:
            return ()
        if kind not in ("l2_updates", "trade"):
            raise UnknownMessageError(f"type {kind[:40]!r}")
        if text(message.get("symbol")) != self._product:
            return ()
        if kind == "l2_updates":
            recent = [mapping(item) for item in items(message.get("trades", []))]
            self.order.old([integer(item.get("event_id")) for item in recent])
            return ()
        number = integer(message.get("event_id"))
        trade = Trade(integer(message.get("timestamp")), price(message.get("price")))
        return (trade,) if self.order.is_new(number) else ()
