"""Kraken: channel `trade` of its WebSocket API, version 2 and the older version 1.

Version 2 numbers a pair's trades without gaps and writes prices as JSON numbers; its
first message holds old trades. Version 1 has no numbers: a message that has come before
is known by its text, a late one by its time, and gaps cannot be noticed.
"""

import json
from collections.abc import Sequence
from typing import Any, NoReturn
from urllib.parse import urlsplit

import orjson

from tap_trading.market.feeds.fields import (
    BadMessageError,
    UnknownMessageError,
    decode,
    integer,
    iso_ms,
    items,
    mapping,
    price,
    seconds_us,
    text,
)
from tap_trading.market.feeds.order import ReconnectError, TradeOrder
from tap_trading.market.feeds.venue import Liveness, Trade, Venue

_V2_OTHERS = frozenset({"status", "heartbeat", "ticker", "book", "ohlc", "instrument"})
_V1_EVENTS = frozenset({"systemStatus", "heartbeat", "pong"})
#: channel id, payload (one or two objects), channel name, pair
_V1_LENGTHS = (4, 5)


def kraken(product: str = "BTC/USD", url: str = "wss://ws.kraken.com/v2") -> Venue:
    """The version that the URL's path names; the product as version 2 writes it."""
    if urlsplit(url).path.rstrip("/").endswith("/v2"):
        return KrakenV2(product, url)
    return KrakenV1(product.replace("BTC", "XBT"), url)


class KrakenV2:
    """One pair, such as BTC/USD."""

    name = "kraken"
    liveness = Liveness(5.0)

    def __init__(self, product: str, url: str) -> None:
        self.url = url
        self.order = TradeOrder(contiguous=True)
        self._product = product

    def begin(self) -> Sequence[str]:
        """Subscribe."""
        params = {"channel": "trade", "symbol": [self._product], "snapshot": False}
        return (orjson.dumps({"method": "subscribe", "params": params}).decode(),)

    def read(self, raw: str) -> Sequence[Trade]:
        """The new trades in a message."""
        message = mapping(_decode_exactly(raw))
        if "method" in message:
            if message.get("success") is False:
                raise ReconnectError("refused", str(message.get("error")))
            return ()
        channel = text(message.get("channel"))
        if channel in _V2_OTHERS:
            return ()
        kind = message.get("type")
        if channel != "trade" or kind not in ("snapshot", "update"):
            raise UnknownMessageError(f"channel {channel[:40]!r}, type {str(kind)[:40]!r}")
        data = [mapping(item) for item in items(message.get("data"))]
        found = [
            (
                integer(item.get("trade_id")),
                Trade(iso_ms(item.get("timestamp")), price(_number(item.get("price")))),
            )
            for item in data
            if text(item.get("symbol")) == self._product
        ]
        if kind == "snapshot":
            self.order.old([number for number, _ in found])
            return ()
        return [trade for number, trade in found if self.order.is_new(number)]


class KrakenV1:
    """One pair, such as XBT/USD."""

    name = "kraken"
    liveness = Liveness(5.0)

    def __init__(self, product: str, url: str) -> None:
        self.url = url
        self.order = TradeOrder(contiguous=False)
        self._product = product

    def begin(self) -> Sequence[str]:
        """Subscribe."""
        subscription = {"name": "trade"}
        message = {"event": "subscribe", "pair": [self._product], "subscription": subscription}
        return (orjson.dumps(message).decode(),)

    def read(self, raw: str) -> Sequence[Trade]:
        """The new trades in a message."""
        message = decode(raw)
        if isinstance(message, dict):
            self._read_event(message)
            return ()
        parts = items(message)
        if len(parts) not in _V1_LENGTHS:
            raise BadMessageError("not a channel's message")
        channel, pair = text(parts[-2]), text(parts[-1])
        if channel.startswith(("ticker", "book", "ohlc", "spread")):
            return ()
        if channel != "trade":
            raise UnknownMessageError(f"channel {channel[:40]!r}")
        payload = items(parts[1])
        found = [_v1_trade(items(item)) for item in payload]
        if pair != self._product or not found:
            return ()
        # Trades of one message are one step: alike they may be, but not repeated.
        newest = max(moment for moment, _ in found)
        if not self.order.is_new(newest, orjson.dumps(payload)):
            return ()
        return [Trade(moment // 1000, cents) for moment, cents in found]

    def _read_event(self, message: dict[str, Any]) -> None:
        event = text(message.get("event"))
        if event == "error" or message.get("status") == "error":
            raise ReconnectError("refused", str(message.get("errorMessage")))
        if event not in _V1_EVENTS and event != "subscriptionStatus":
            raise UnknownMessageError(f"event {event[:40]!r}")


def _v1_trade(item: list[Any]) -> tuple[int, int]:
    """Unix µs and cents of `[price, volume, time, side, type, misc]`."""
    if len(item) < 3:  # noqa: PLR2004 -- as the docstring has it
        raise BadMessageError("not a trade")
    return seconds_us(item[2]), price(item[0])


def _decode_exactly(raw: str) -> Any:
    """JSON with fractions left as text: as floats they would lose digits."""
    try:
        return json.loads(raw, parse_float=str, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BadMessageError(str(error)) from None


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _number(value: object) -> str:
    """A JSON number's text."""
    return str(integer(value)) if isinstance(value, int) else text(value)
