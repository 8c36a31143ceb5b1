"""Coinbase's messages."""

import json
from typing import Any

import pytest

from tap_trading.market.feeds.coinbase import Coinbase
from tap_trading.market.feeds.fields import BadMessageError, UnknownMessageError
from tap_trading.market.feeds.order import ReconnectError
from tap_trading.market.feeds.venue import Trade


def match(number: int, price: str = "81228.94", **changes: Any) -> str:
    return json.dumps(
        {
            "type": "match",
            "trade_id": number,
            "side": "sell",
            "size": "0.1",
            "price": price,
            "product_id": "BTC-USD",
            "sequence": number * 5,
            "time": "2026-09-04T00:21:02.905999Z",
        }
        | changes
    )


def heartbeat(last: int) -> str:
    return json.dumps({"type": "heartbeat", "last_trade_id": last, "product_id": "BTC-USD"})


def test_it_subscribes_to_matches_and_heartbeats() -> None:
    (said,) = Coinbase().begin()
    assert json.loads(said) == {
        "type": "subscribe",
        "product_ids": ["BTC-USD"],
        "channels": ["matches", "heartbeat"],
    }


def test_a_match_is_a_trade() -> None:
    assert Coinbase().read(match(7)) == (Trade(1788481262905, 8122894),)


@pytest.mark.parametrize(
    "message",
    [
        match(7, type="last_match"),
        match(7, type="ticker"),  # the same trade once more
        match(7, product_id="ETH-USD"),
        heartbeat(7),
        '{"type":"subscriptions","channels":[]}',
    ],
)
def test_other_messages_are_understood_and_no_trade(message: str) -> None:
    assert Coinbase().read(message) == ()


def test_the_last_match_is_old_and_what_follows_is_new() -> None:
    venue = Coinbase()
    assert not venue.read(match(7, type="last_match"))
    assert not venue.read(match(7))
    assert venue.read(match(8))
    assert venue.order.noticed == {"repeated": 1}


def test_what_happened_between_two_connections_is_a_gap() -> None:
    venue = Coinbase()
    venue.read(match(7))
    venue.begin()
    venue.read(match(10, type="last_match"))
    assert venue.read(match(11))
    assert venue.order.noticed == {"gaps": 1, "missed": 3}


def test_a_heartbeat_shows_a_gap_while_it_is_quiet() -> None:
    venue = Coinbase()
    venue.read(match(7))
    venue.read(heartbeat(9))
    assert not venue.order.noticed  # 8 and 9 may be on their way
    venue.read(heartbeat(9))
    assert venue.order.noticed == {"gaps": 1, "missed": 2}
    assert venue.read(match(10))


def test_what_a_heartbeat_named_is_forgotten_with_its_connection() -> None:
    venue = Coinbase()
    venue.read(match(7))
    venue.read(heartbeat(10**18))  # nonsense
    venue.begin()
    venue.read(match(8, type="last_match"))
    venue.read(heartbeat(8))
    assert venue.read(match(9))


def test_a_trade_behind_its_heartbeat_is_new() -> None:
    venue = Coinbase()
    venue.read(match(7))
    venue.read(heartbeat(9))
    assert venue.read(match(8))
    assert venue.read(match(9))
    venue.read(heartbeat(9))
    assert not venue.order.noticed


@pytest.mark.parametrize(
    "changes",
    [
        {"price": 81228.94},
        {"price": "-1"},
        {"price": "0.001"},
        {"price": None},
        {"price": "9" * 500},
        {"price": "NaN"},
        {"trade_id": "7"},
        {"trade_id": True},
        {"trade_id": -1},
        {"trade_id": 10**30},
        {"time": "yesterday"},
        {"time": "2026-13-04T00:21:02.905999Z"},
        {"time": 5},
        {"product_id": None},
        {"type": 3},
    ],
)
def test_a_wrong_field_spoils_a_message_and_nothing_else(changes: dict[str, Any]) -> None:
    venue = Coinbase()
    with pytest.raises(BadMessageError) as bad:
        venue.read(match(7, **changes))
    assert bad.value.reason == "malformed"
    assert venue.read(match(7))


def test_an_unknown_type_is_told_apart() -> None:
    with pytest.raises(UnknownMessageError) as bad:
        Coinbase().read('{"type":"auction"}')
    assert bad.value.reason == "unknown"


def test_a_refused_subscription_ends_the_connection() -> None:
    with pytest.raises(ReconnectError, match="Failed to subscribe") as ended:
        Coinbase().read('{"type":"error","message":"Failed to subscribe","reason":"no such"}')
    assert ended.value.reason == "refused"
