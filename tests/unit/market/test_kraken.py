"""Kraken's messages, versions 1 and 2."""

import json

import pytest

from tap_trading.market.feeds.fields import BadMessageError, UnknownMessageError
from tap_trading.market.feeds.kraken import KrakenV1, KrakenV2, kraken
from tap_trading.market.feeds.order import ReconnectError
from tap_trading.market.feeds.venue import Trade, Venue

V1 = "wss://ws.kraken.com"


def trade(number: int, price: str = "81205.1") -> str:
    return (
        f'{{"symbol":"BTC/USD","side":"buy","price":{price},"qty":0.00003630,'
        f'"ord_type":"limit","trade_id":{number},"timestamp":"2026-09-04T00:21:20.564568Z"}}'
    )


def v2(*trades: str, kind: str = "update") -> str:
    return f'{{"channel":"trade","type":"{kind}","data":[{",".join(trades)}]}}'


def v1(*trades: list[str], pair: str = "XBT/USD") -> str:
    return json.dumps([337, trades, "trade", pair])


def old_trade(price: str, moment: str) -> list[str]:
    return [price, "0.1", moment, "b", "l", ""]


def test_the_url_says_which_version() -> None:
    assert isinstance(kraken(), KrakenV2)
    assert isinstance(kraken(url="ws://127.0.0.1:1/kraken/v2/?x=1"), KrakenV2)
    old = kraken(url=V1)
    assert isinstance(old, KrakenV1)
    assert json.loads(old.begin()[0]) == {
        "event": "subscribe",
        "pair": ["XBT/USD"],
        "subscription": {"name": "trade"},
    }


def test_version_2_subscribes_to_trades() -> None:
    (said,) = kraken().begin()
    assert json.loads(said) == {
        "method": "subscribe",
        "params": {"channel": "trade", "symbol": ["BTC/USD"], "snapshot": False},
    }


def test_all_trades_of_a_message_count() -> None:
    venue = kraken()
    moment = 1788481280564
    assert venue.read(v2(trade(5), trade(6, "81205.105"), trade(7, "81206"))) == [
        *(Trade(moment, 8120510), Trade(moment, 8120511), Trade(moment, 8120600))
    ]


def test_a_json_number_is_read_to_its_last_digit() -> None:
    # As a float it would be 81205.105 and round up.
    (found,) = kraken().read(v2(trade(5, "81205.1049999999999999999")))
    assert found.price == 8120510


def test_a_snapshot_is_old() -> None:
    venue = kraken()
    assert venue.read(v2(trade(5), trade(6), kind="snapshot")) == ()
    assert venue.read(v2(trade(6), trade(7))) == [Trade(1788481280564, 8120510)]
    assert venue.order.noticed == {"repeated": 1}


def test_version_2_notices_gaps() -> None:
    venue = kraken()
    venue.read(v2(trade(5)))
    venue.read(v2(trade(8)))
    assert venue.order.noticed == {"gaps": 1, "missed": 2}


@pytest.mark.parametrize(
    "message",
    [
        '{"channel":"heartbeat"}',
        '{"channel":"status","type":"update","data":[{"version":"2.0.10","system":"online"}]}',
        '{"method":"subscribe","result":{"channel":"trade"},"success":true}',
        v2(trade(5).replace("BTC/USD", "ETH/USD")),
    ],
)
def test_version_2_understands_the_rest(message: str) -> None:
    assert not kraken().read(message)


@pytest.mark.parametrize(
    "price", ["-1", "NaN", "Infinity", "1e400", "null", "true", "[]", "0", "0.001", "9" * 5000]
)
def test_a_wrong_price_spoils_its_message(price: str) -> None:
    with pytest.raises(BadMessageError):
        kraken().read(v2(trade(5), trade(6, price)))


def test_a_message_too_deep_is_dropped() -> None:
    with pytest.raises(BadMessageError):
        kraken().read("[" * 100_000)
    with pytest.raises(BadMessageError):
        kraken(url=V1).read("[" * 100_000)


def test_version_1_trades() -> None:
    venue = kraken(url=V1)
    message = v1(
        old_trade("61500.10000", "1618678150.826417"), old_trade("61500.20000", "1618678150.827816")
    )
    assert venue.read(message) == [Trade(1618678150826, 6150010), Trade(1618678150827, 6150020)]


def test_version_1_knows_a_repeated_message_but_trades_alike_in_one_are_two() -> None:
    venue = kraken(url=V1)
    twin = old_trade("61500.1", "1618678150.826417")
    assert len(venue.read(v1(twin, twin))) == 2
    assert not venue.read(v1(twin, twin))
    assert venue.order.noticed == {"repeated": 1}


def test_version_1_knows_a_late_message_by_its_time() -> None:
    venue = kraken(url=V1)
    assert venue.read(v1(old_trade("61500.1", "1618678150.826417")))
    assert not venue.read(v1(old_trade("61400.1", "1618678150.826416")))
    assert venue.read(v1(old_trade("61600.1", "1618678150.826417")))
    assert venue.order.noticed == {"late": 1}


@pytest.mark.parametrize(
    "message",
    [
        '{"event":"heartbeat"}',
        '{"event":"systemStatus","status":"online","version":"1.9.6"}',
        '{"event":"subscriptionStatus","status":"subscribed","pair":"XBT/USD"}',
        '[1920,{"a":[]},{"b":[]},"book-1000","SC/EUR"]',
        '[996,{"c":["355.23","1"]},"ticker","XMR/USD"]',
        v1(old_trade("61500.1", "1618678150.826417"), pair="ETH/CHF"),
        v1(),
    ],
)
def test_version_1_understands_the_rest(message: str) -> None:
    assert not kraken(url=V1).read(message)


@pytest.mark.parametrize(
    "message",
    [
        "[]",
        "[1,2]",
        '[337,[["61500.1","0.1"]],"trade","XBT/USD"]',
        '[337,[[61500.1,"0.1","1618678150.826417"]],"trade","XBT/USD"]',
        '[337,[["61500.1","0.1","now"]],"trade","XBT/USD"]',
        '[337,{},"trade","XBT/USD"]',
        '[337,[],null,"XBT/USD"]',
        "{}",
        "7",
    ],
)
def test_version_1_drops_what_is_wrong(message: str) -> None:
    with pytest.raises(BadMessageError):
        kraken(url=V1).read(message)


@pytest.mark.parametrize(
    ("venue", "message"),
    [
        (kraken(), '{"channel":"gossip","type":"update","data":[]}'),
        (kraken(), '{"channel":"trade","type":"rumour","data":[]}'),
        (kraken(url=V1), '{"event":"gossip"}'),
        (kraken(url=V1), '[1,[],"gossip","XBT/USD"]'),
    ],
)
def test_what_is_unknown_is_told_apart(venue: Venue, message: str) -> None:
    with pytest.raises(UnknownMessageError):
        venue.read(message)


@pytest.mark.parametrize(
    ("venue", "message"),
    [
        (kraken(), '{"method":"subscribe","success":false,"error":"Currency pair not supported"}'),
        (
            kraken(url=V1),
            json.dumps(
                {
                    "event": "subscriptionStatus",
                    "status": "error",
                    "errorMessage": "Currency pair not supported",
                }
            ),
        ),
    ],
)
def test_a_refused_subscription_ends_the_connection(venue: Venue, message: str) -> None:
    with pytest.raises(ReconnectError, match="pair not supported") as ended:
        venue.read(message)
    assert ended.value.reason == "refused"
