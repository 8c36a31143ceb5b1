"""What holds for every venue: nothing it can send breaks us or becomes a wrong price."""

import json
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_trading.market.feeds.fields import BadMessageError
from tap_trading.market.feeds.order import ReconnectError
from tap_trading.market.feeds.venue import Trade, Venue
from tap_trading.market.feeds.venues import VENUES
from venues.faults import corrupted
from venues.synthetic import DIALECTS, FIRST_NUMBER, Print

MAKERS: dict[str, Callable[[], Venue]] = {
    **VENUES,
    "kraken-v1": lambda: VENUES["kraken"](url="wss://ws.kraken.com"),
}

names = st.sampled_from(sorted(MAKERS))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["trade", "match", "BTC-USD", "BTC/USD", "XBT/USD", "81000.5", "update"]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(
                ["type", "event", "channel", "data", "price", "trade_id", "symbol", "stream", "e"]
            )
            | st.text(max_size=5),
            inner,
            max_size=8,
        )
    ),
    max_leaves=30,
)


def heard(venue: Venue, raw: str) -> list[Trade]:
    """What a message gives; only the two promised errors may come out."""
    try:
        trades = list(venue.read(raw))
    except (BadMessageError, ReconnectError):
        return []
    for trade in trades:
        assert type(trade.price) is int
        assert 0 < trade.price <= 10**13
        assert type(trade.time) is int
        assert 0 <= trade.time <= 10**18
    return trades


@given(names, st.text())
def test_any_text(name: str, raw: str) -> None:
    heard(MAKERS[name](), raw)


@given(names, values)
def test_any_json(name: str, value: object) -> None:
    heard(MAKERS[name](), json.dumps(value))


def message(name: str, number: int = FIRST_NUMBER, price: str = "81228.95") -> str:
    return DIALECTS[name]().trade(Print(number, 1_788_481_262_905, price))


@given(names, st.data())
def test_any_part_of_a_trade_replaced(name: str, data: st.DataObject) -> None:
    """Whatever stands in one place of a message, the price is its own or there is none."""
    whole = json.loads(message(name))
    places: list[tuple[list[object] | dict[str, object], int | str]] = []

    def walk(value: object) -> None:
        pairs = (
            list(value.items())
            if isinstance(value, dict)
            else list(enumerate(value))
            if isinstance(value, list)
            else []
        )
        for key, inner in pairs:
            places.append((value, key))  # type: ignore[arg-type] # any JSON
            walk(inner)

    walk(whole)
    holder, key = data.draw(st.sampled_from(places))
    before, other = holder[key], data.draw(values)  # type: ignore[index,call-overload] # any JSON
    holder[key] = other  # type: ignore[index,call-overload] # any JSON
    trades = heard(MAKERS[name](), json.dumps(whole))
    if before not in ("81228.95", 81228.95):
        assert all(trade.price == 8122895 for trade in trades)


@given(names, st.integers(0, 2**32))
def test_a_corrupted_trade_is_none(name: str, seed: int) -> None:
    venue = MAKERS[name]()
    with pytest.raises(BadMessageError):
        venue.read(corrupted(message(name), random.Random(seed)))
    assert len(venue.read(message(name))) == 1


@given(names, st.integers(1, 10**13))
def test_every_price_is_read_exactly(name: str, price: int) -> None:
    text = f"{price // 100}.{price % 100:02d}"
    assert [trade.price for trade in MAKERS[name]().read(message(name, price=text))] == [price]
