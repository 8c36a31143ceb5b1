"""Binance's messages."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tap_trading.market.feeds.binance import Binance
from tap_trading.market.feeds.cents import cents
from tap_trading.market.feeds.fields import BadMessageError, UnknownMessageError
from tap_trading.market.feeds.order import ReconnectError
from tap_trading.market.feeds.venue import Trade


def trade(number: int, **changes: Any) -> str:
    data = {
        "e": "aggTrade",
        "E": 1618677414092,
        "s": "BTCUSDT",
        "a": number,
        "p": "60497.55000000",
        "q": "0.02870000",
        "T": 1618677414091,
    }
    return json.dumps({"stream": "btcusdt@aggTrade", "data": data | changes})


def test_nothing_is_sent_for_the_url_says_it() -> None:
    assert Binance().begin() == ()
    assert Binance().url.endswith("btcusdt@aggTrade")


def test_a_trade() -> None:
    assert Binance().read(trade(5)) == (Trade(1618677414091, 6049755),)


def test_gaps_repeats_and_late_trades() -> None:
    venue = Binance()
    assert [len(venue.read(trade(number))) for number in (5, 5, 9, 7, 10)] == [1, 0, 1, 0, 1]
    assert venue.order.noticed == {"repeated": 1, "late": 1, "gaps": 1, "missed": 3}


@pytest.mark.parametrize(
    "message",
    [
        '{"stream":"btcusdt@bookTicker","data":{"u":1,"s":"BTCUSDT","b":"1","a":"2"}}',
        '{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","s":"BTCUSDT"}}',
        trade(5, s="ETHUSDT"),
        trade(5, e="trade", t=5),  # the same trades as aggTrade has: one of both counts
    ],
)
def test_other_messages_are_understood_and_no_trade(message: str) -> None:
    assert Binance().read(message) == ()


@pytest.mark.parametrize(
    "changes", [{"p": 1}, {"p": "0"}, {"a": "5"}, {"T": -1}, {"T": True}, {"s": 1}, {"e": None}]
)
def test_a_wrong_field_spoils_a_message(changes: dict[str, Any]) -> None:
    with pytest.raises(BadMessageError):
        Binance().read(trade(5, **changes))


def test_an_unknown_event_is_told_apart() -> None:
    with pytest.raises(UnknownMessageError):
        Binance().read(trade(5, e="liquidation"))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('{"error":{"code":2,"msg":"Invalid request"}}', "refused"),
        ('{"stream":"x","data":{"e":"serverShutdown","E":1}}', "asked"),
    ],
)
def test_the_venue_can_end_a_connection(message: str, reason: str) -> None:
    with pytest.raises(ReconnectError) as ended:
        Binance().read(message)
    assert ended.value.reason == reason


@pytest.mark.parametrize("market", ["binance-spot", "binance-usdm"])
def test_a_long_recording_gives_the_trades_of_its_table(market: str, market_data: Path) -> None:
    """Against the table of trades that was made from the recording by other hands."""
    venue = Binance(stream="trade")
    found: list[Trade] = []
    with gzip.open(market_data / "ws" / f"{market}_btcusdt_2024-08-08.ndjson.gz", "rt") as file:
        for line in file:
            entry = json.loads(line)
            if entry["dir"] == "in":
                found.extend(venue.read(entry["data"]))
    name = {"binance-spot": "binance", "binance-usdm": "binance-usdm-perp"}[market]
    table = market_data / "replay" / f"{name}_BTCUSDT_trades_2024-08-08.csv"
    with table.open(newline="") as rows:
        assert found == [
            Trade(int(row["ts_ms"]), cents(row["price"])) for row in csv.DictReader(rows)
        ]
    assert not venue.order.noticed
