"""A venue's messages made from a file of real trades (CSV with `ts_ms` and `price`).

Several venues can be made from one file, each with its own offset and delay.
"""

import csv
import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Protocol

from venues.script import Line

#: Trades of the past in a first message.
_SNAPSHOT = 50
#: Pause between two rounds of the file, in ms of its own time.
_ROUND_GAP_MS = 1000
#: The number of the file's first trade.
FIRST_NUMBER = 1_000_000


@dataclass(frozen=True, slots=True)
class Print:
    """A trade as a venue's message tells it."""

    number: int
    time: int  # Unix ms, by the venue's clock
    price: str  # dollars


class Dialect(Protocol):
    """How a venue words its messages."""

    path: str
    speaks_first: bool

    def opening(self, past: Sequence[Print]) -> Sequence[str]:
        """Replies to a subscription; what was traded before, oldest first."""

    def trade(self, trade: Print) -> str:
        """A trade."""

    def heartbeat(self, last: Print) -> str | None:
        """A sign of life after that trade."""

    def pong(self, said: str) -> str | None:
        """The answer to a client's ping, if it was one."""


def dumps(value: Any) -> str:
    """JSON as exchanges write it."""
    return json.dumps(value, separators=(",", ":"))


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms // 1000, UTC).strftime(
        f"%Y-%m-%dT%H:%M:%S.{ms % 1000:03d}000Z"
    )


class _Quiet:
    """Gives no signs of life of its own and answers none."""

    speaks_first = False

    def heartbeat(self, last: Print) -> str | None:
        return None

    def pong(self, said: str) -> str | None:
        return None


class Coinbase(_Quiet):
    """Coinbase Exchange: last_match, then match; heartbeat."""

    path = "/"

    def _match(self, trade: Print, kind: str) -> str:
        return dumps(
            {
                "type": kind,
                "trade_id": trade.number,
                "maker_order_id": "2a0da34e-61f7-4c36-88e5-c9dd15927b16",
                "taker_order_id": "3c82abaa-c01e-4608-be59-6a1e69742891",
                "side": "sell",
                "size": "0.01",
                "price": trade.price,
                "product_id": "BTC-USD",
                "sequence": trade.number * 7,
                "time": _iso(trade.time),
            }
        )

    def opening(self, past: Sequence[Print]) -> Sequence[str]:
        channels = [{"name": name, "product_ids": ["BTC-USD"]} for name in ("matches", "heartbeat")]
        return (
            dumps({"type": "subscriptions", "channels": channels}),
            self._match(past[-1], "last_match"),
        )

    def trade(self, trade: Print) -> str:
        return self._match(trade, "match")

    def heartbeat(self, last: Print) -> str | None:
        return dumps(
            {
                "type": "heartbeat",
                "last_trade_id": last.number,
                "product_id": "BTC-USD",
                "sequence": last.number * 7 + 3,
                "time": _iso(last.time),
            }
        )


class KrakenV2(_Quiet):
    """Kraken, version 2: prices are JSON numbers."""

    path = "/v2"

    def _trades(self, trades: Sequence[Print], kind: str) -> str:
        data = ",".join(
            f'{{"symbol":"BTC/USD","side":"buy","price":{trade.price},"qty":0.00003630,'
            f'"ord_type":"limit","trade_id":{trade.number},"timestamp":"{_iso(trade.time)}"}}'
            for trade in trades
        )
        return f'{{"channel":"trade","type":"{kind}","data":[{data}]}}'

    def opening(self, past: Sequence[Print]) -> Sequence[str]:
        status = {"version": "2.0.10", "system": "online", "api_version": "v2"}
        result = {"channel": "trade", "symbol": "BTC/USD", "snapshot": False}
        return (
            dumps({"channel": "status", "type": "update", "data": [status]}),
            dumps({"method": "subscribe", "result": result, "success": True}),
            # Asked for or not: a client has to know old trades by itself.
            self._trades(past, "snapshot"),
        )

    def trade(self, trade: Print) -> str:
        return self._trades([trade], "update")

    def heartbeat(self, last: Print) -> str | None:
        return '{"channel":"heartbeat"}'


class KrakenV1(_Quiet):
    """Kraken, version 1: arrays, no trade numbers."""

    path = "/"

    def opening(self, past: Sequence[Print]) -> Sequence[str]:
        status = {"event": "systemStatus", "status": "online", "version": "1.9.6"}
        subscribed = {
            "channelID": 337,
            "channelName": "trade",
            "event": "subscriptionStatus",
            "pair": "XBT/USD",
            "status": "subscribed",
            "subscription": {"name": "trade"},
        }
        return dumps(status), dumps(subscribed)

    def trade(self, trade: Print) -> str:
        moment = f"{trade.time // 1000}.{trade.time % 1000:03d}000"
        # Two trades of one moment and price differ in their volume.
        volume = f"0.{trade.number:08d}"
        return dumps([337, [[trade.price, volume, moment, "b", "l", ""]], "trade", "XBT/USD"])

    def heartbeat(self, last: Print) -> str | None:
        return '{"event":"heartbeat"}'


class Bitstamp(_Quiet):
    """Bitstamp v2: silent unless asked."""

    path = "/"

    def opening(self, past: Sequence[Print]) -> Sequence[str]:
        channel = "live_trades_btcusd"
        return (dumps({"event": "bts:subscription_succeeded", "channel": channel, "data": {}}),)

    def trade(self, trade: Print) -> str:
        return dumps(
            {
                "data": {
                    "id": trade.number * 3,
                    "timestamp": str(trade.time // 1000),
                    "amount": 0.07375969,
                    "amount_str": "0.07375969",
                    "price": float(trade.price),
                    "price_str": trade.price,
                    "type": 0,
                    "microtimestamp": str(trade.time * 1000),
                    "buy_order_id": 2046551467757570,
                    "sell_order_id": 2046551452086274,
                },
                "channel": "live_trades_btcusd",
                "event": "trade",
            }
        )

    def pong(self, said: str) -> str | None:
        if json.loads(said).get("event") != "bts:heartbeat":
            return None
        return '{"event":"bts:heartbeat","channel":"","data":{"status":"success"}}'


class Gemini(_Quiet):
    """Gemini v2: a first l2_updates with recent trades, newest first."""

    path = "/"

    def _fields(self, trade: Print) -> dict[str, Any]:
        return {
            "type": "trade",
            "symbol": "BTCUSD",
            "event_id": trade.number * 2,
            "timestamp": trade.time,
            "price": trade.price,
            "quantity": "0.01",
            "side": "buy",
        }

    def opening(self, past: Sequence[Print]) -> Sequence[str]:
        return (
            dumps(
                {
                    "type": "l2_updates",
                    "symbol": "BTCUSD",
                    "changes": [["buy", past[-1].price, "0.5"], ["sell", past[-1].price, "0.1"]],
                    "trades": [self._fields(trade) for trade in reversed(past)],
                    "auction_events": [],
                }
            ),
        )

    def trade(self, trade: Print) -> str:
        return dumps(self._fields(trade))

    def heartbeat(self, last: Print) -> str | None:
        return dumps({"type": "heartbeat", "timestamp": last.time})


class Binance(_Quiet):
    """Binance combined streams, with aggTrade."""

    path = "/stream?streams=btcusdt@aggTrade"
    speaks_first = True

    def opening(self, past: Sequence[Print]) -> Sequence[str]:
        return ()

    def trade(self, trade: Print) -> str:
        data = {
            "e": "aggTrade",
            "E": trade.time + 1,
            "s": "BTCUSDT",
            "a": trade.number,
            "p": trade.price,
            "q": "0.02000000",
            "f": trade.number,
            "l": trade.number,
            "T": trade.time,
            "m": True,
            "M": True,
        }
        return dumps({"stream": "btcusdt@aggTrade", "data": data})


DIALECTS: dict[str, type[Dialect]] = {
    "coinbase": Coinbase,
    "kraken": KrakenV2,
    "kraken-v1": KrakenV1,
    "bitstamp": Bitstamp,
    "gemini": Gemini,
    "binance": Binance,
}


def read_trades(path: Path) -> list[tuple[int, str]]:
    """Unix ms and dollars, in the file's order; a stamp that falls back is the same moment."""
    found: list[tuple[int, str]] = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            moment = int(row["ts_ms"])
            found.append((max(moment, found[-1][0]) if found else moment, row["price"]))
    return found


class Synthetic:
    """A venue that trades what the file says.

    `offset_cents` and `offset_bps` shift its prices and may be changed while it plays, as
    may `frozen` (the same price for ever) and `mute` (signs of life, but no trades). What
    happens reaches the client `delay_ms` later. With `restamp`, trades carry the time of
    the day, else the file's.
    """

    def __init__(
        self,
        venue: str,
        trades: Sequence[tuple[int, str]],
        *,
        offset_cents: int = 0,
        offset_bps: int = 0,
        delay_ms: int = 0,
        restamp: bool = True,
        loop: bool = False,
    ) -> None:
        self.dialect = DIALECTS[venue]()
        self.speaks_first = self.dialect.speaks_first
        self.offset_cents = offset_cents
        self.offset_bps = offset_bps
        self.frozen = False
        self.mute = False
        self._trades = trades
        self._delay_ms = delay_ms
        self._restamp = restamp
        self._loop = loop
        self._span_ms = trades[-1][0] - trades[0][0] + _ROUND_GAP_MS
        self._last = self._print(FIRST_NUMBER - 1, *trades[0])

    def price(self, dollars: str) -> str:
        """A price of the file, as this venue has it."""
        if not (self.offset_cents or self.offset_bps):
            return dollars
        shifted = Decimal(dollars) * (10_000 + self.offset_bps) / 10_000
        return str((shifted + Decimal(self.offset_cents) / 100).quantize(Decimal("0.01")))

    def lines(self, since_s: float) -> Iterator[Line]:
        """Trades from that moment on."""
        for number, at_s, moment, dollars in self._all(self._round(since_s)):
            if at_s >= since_s:
                yield Line(at_s, partial(self._say, number, moment, dollars))

    def _round(self, at_s: float) -> int:
        """The round of the file that is played at a moment."""
        if not self._loop:
            return 0
        return max(int((at_s * 1000 - self._delay_ms) // self._span_ms), 0)

    def _all(self, first_round: int) -> Iterator[tuple[int, float, int, str]]:
        began = self._trades[0][0]
        numbers = count(FIRST_NUMBER + first_round * len(self._trades))
        for round_ in count(first_round):
            for moment, dollars in self._trades:
                at_ms = moment - began + round_ * self._span_ms + self._delay_ms
                yield next(numbers), at_ms / 1000, moment, dollars
            if not self._loop:
                return

    def _print(self, number: int, moment: int, dollars: str) -> Print:
        if self._restamp:
            moment = time.time_ns() // 1_000_000 - self._delay_ms
        return Print(number, moment, self.price(dollars))

    def _say(self, number: int, moment: int, dollars: str) -> str:
        if self.mute:
            return ""
        trade = self._print(number, moment, dollars)
        if self.frozen:
            trade = Print(number, trade.time, self._last.price)
        self._last = trade
        return self.dialect.trade(trade)

    def answers(self, said: str, since_s: float) -> Sequence[str]:
        """To a ping its answer, to anything else what a subscription gets."""
        pong = self.dialect.pong(said)
        if pong is not None:
            return (pong,)
        rounds = self._all(max(self._round(since_s) - 1, 0))
        earlier = takewhile(lambda trade: trade[1] < since_s, rounds)
        past = [
            self._print(number, moment, dollars)
            for number, _, moment, dollars in deque(earlier, maxlen=_SNAPSHOT)
        ]
        return self.dialect.opening(past or [self._print(FIRST_NUMBER - 1, *self._trades[0])])

    def heartbeat(self) -> str | None:
        """A sign of life that names the last trade."""
        return self.dialect.heartbeat(self._last)
