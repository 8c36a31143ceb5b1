"""Bitstamp's messages."""

import json
from typing import Any

import pytest

from tap_trading.market.feeds.bitstamp import Bitstamp
from tap_trading.market.feeds.fields import BadMessageError, UnknownMessageError
from tap_trading.market.feeds.order import ReconnectError
from tap_trading.market.feeds.venue import Trade


def trade(number: int, channel: str = "live_trades_btcusd", **changes: Any) -> str:
    data = {
        "id": number,
        "timestamp": "1788481329",
        "amount": 0.07375969,
        "price": 81263.98,
        "price_str": "81263.98",
        "type": 0,
        "microtimestamp": "1788481329090999",
    }
    return json.dumps({"data": data | changes, "channel": channel, "event": "trade"})


def test_it_subscribes_and_asks_for_signs_of_life() -> None:
    venue = Bitstamp()
    assert [json.loads(said) for said in venue.begin()] == [
        {"event": "bts:subscribe", "data": {"channel": "live_trades_btcusd"}}
    ]
    assert json.loads(venue.liveness.ping) == {"event": "bts:heartbeat"}
    assert venue.liveness.ping_every_s < venue.liveness.stale_after_s / 2


def test_a_trade() -> None:
    assert Bitstamp().read(trade(629344156)) == (Trade(1788481329090, 8126398),)


def test_repeated_and_late_trades_are_not_new_and_numbers_may_skip() -> None:
    venue = Bitstamp()
    assert [len(venue.read(trade(number))) for number in (10, 90, 90, 50, 91)] == [1, 1, 0, 0, 1]
    assert venue.order.noticed == {"repeated": 1, "late": 1}


@pytest.mark.parametrize(
    "message",
    [
        '{"event":"bts:subscription_succeeded","channel":"live_trades_btcusd","data":{}}',
        '{"event":"bts:heartbeat","channel":"","data":{"status":"success"}}',
        '{"data":{"bids":[],"asks":[]},"channel":"diff_order_book_btcusd","event":"data"}',
        trade(5, "live_trades_ethusd"),
    ],
)
def test_other_messages_are_understood_and_no_trade(message: str) -> None:
    assert Bitstamp().read(message) == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"price_str": 81263.98},
        {"price_str": None},
        {"price_str": "-3"},
        {"id": 1.5},
        {"id": None},
        {"microtimestamp": 1788481329090000},
        {"microtimestamp": "soon"},
        {"microtimestamp": "9" * 30},
    ],
)
def test_a_wrong_field_spoils_a_message(changes: dict[str, Any]) -> None:
    with pytest.raises(BadMessageError):
        Bitstamp().read(trade(5, **changes))


def test_an_unknown_event_is_told_apart() -> None:
    with pytest.raises(UnknownMessageError):
        Bitstamp().read('{"event":"gossip","channel":"live_trades_btcusd","data":{}}')


@pytest.mark.parametrize(
    ("event", "reason"), [("bts:request_reconnect", "asked"), ("bts:error", "refused")]
)
def test_the_venue_can_end_a_connection(event: str, reason: str) -> None:
    with pytest.raises(ReconnectError) as ended:
        Bitstamp().read(json.dumps({"event": event, "channel": "", "data": ""}))
    assert ended.value.reason == reason
