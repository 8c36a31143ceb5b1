"""Gemini's messages."""

import json
from typing import Any

import pytest

from tap_trading.market.feeds.fields import BadMessageError, UnknownMessageError
from tap_trading.market.feeds.gemini import Gemini
from tap_trading.market.feeds.order import ReconnectError
from tap_trading.market.feeds.venue import Trade


def fields(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "type": "trade",
        "symbol": "BTCUSD",
        "event_id": number,
        "timestamp": 1618677946588,
        "price": "60720.31",
        "quantity": "0.03",
        "side": "buy",
    } | changes


def trade(number: int, **changes: Any) -> str:
    return json.dumps(fields(number, **changes))


def snapshot(*numbers: int) -> str:
    trades = [fields(number) for number in numbers]
    return json.dumps({"type": "l2_updates", "symbol": "BTCUSD", "changes": [], "trades": trades})


def test_it_subscribes_to_l2() -> None:
    (said,) = Gemini().begin()
    subscription = {"name": "l2", "symbols": ["BTCUSD"]}
    assert json.loads(said) == {"type": "subscribe", "subscriptions": [subscription]}


def test_a_trade() -> None:
    assert Gemini().read(trade(34359626684)) == (Trade(1618677946588, 6072031),)


def test_trades_in_the_first_message_are_old() -> None:
    venue = Gemini()
    assert venue.read(snapshot(96, 94, 92)) == ()
    assert [len(venue.read(trade(number))) for number in (94, 93, 98)] == [0, 0, 1]
    assert venue.order.noticed == {"repeated": 1, "late": 1}


@pytest.mark.parametrize(
    "message",
    [
        '{"type":"heartbeat","timestamp":1618677942928}',
        '{"type":"l2_updates","symbol":"BTCUSD","changes":[["buy","60646.46","0.2982"]]}',
        trade(5, symbol="ETHUSD"),
    ],
)
def test_other_messages_are_understood_and_no_trade(message: str) -> None:
    assert Gemini().read(message) == ()


@pytest.mark.parametrize(
    "message",
    [
        trade(5, price=60720.31),
        trade(5, price="0"),
        trade(5, timestamp="1618677946588"),
        trade(5, event_id="5"),
        trade(5, symbol=None),
        '{"type":"l2_updates","symbol":"BTCUSD","trades":{}}',
        '{"type":"l2_updates","symbol":"BTCUSD","trades":[{"event_id":"x"}]}',
        "{}",
    ],
)
def test_a_wrong_field_spoils_a_message(message: str) -> None:
    with pytest.raises(BadMessageError):
        Gemini().read(message)


def test_an_unknown_type_is_told_apart() -> None:
    with pytest.raises(UnknownMessageError):
        Gemini().read('{"type":"gossip"}')


def test_a_refused_subscription_ends_the_connection() -> None:
    with pytest.raises(ReconnectError, match="InvalidJson") as ended:
        Gemini().read('{"result":"error","reason":"InvalidJson","message":"no"}')
    assert ended.value.reason == "refused"
