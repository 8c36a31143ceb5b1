"""Cell ids: one spelling each way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_trading.game.cell import Cell, parse

numbers = st.integers(min_value=0, max_value=10**14)


@given(start=numbers, width=st.integers(1, 10**6), low=numbers, height=st.integers(1, 10**6))
def test_an_id_says_everything(start: int, width: int, low: int, height: int) -> None:
    cell = Cell(start, width, low, low + height)
    assert parse(cell.cell_id) == cell


@given(st.text())
def test_whatever_parses_is_spelled_that_way(text: str) -> None:
    cell = parse(text)
    assert cell is None or cell.cell_id == text


def test_the_specs_example() -> None:
    assert parse("btc-usd:1764000000:5:8421000:8422000") == Cell(1764000000, 5, 8421000, 8422000)


@pytest.mark.parametrize(
    "cell_id",
    [
        "",
        "btc-usd",
        "eth-usd:1764000000:5:8421000:8422000",
        "BTC-USD:1764000000:5:8421000:8422000",
        "btc-usd:1764000000:5:8421000",
        "btc-usd:1764000000:5:8421000:8422000:1",
        "btc-usd:01764000000:5:8421000:8422000",
        "btc-usd:+1764000000:5:8421000:8422000",
        "btc-usd:-1764000000:5:8421000:8422000",
        "btc-usd:1764000000:5:8421000:8422000\n",
        " btc-usd:1764000000:5:8421000:8422000",
        "btc-usd:1764000000.0:5:8421000:8422000",
        "btc-usd:1764000000:0:8421000:8422000",
        "btc-usd:1764000000:5:8422000:8422000",
        "btc-usd:1764000000:5:8422000:8421000",
        "btc-usd:١٧٦٤٠٠٠٠٠٠:5:8421000:8422000",
        "btc-usd:9999999999999999:5:8421000:8422000",
    ],
)
def test_any_other_spelling_is_no_cell(cell_id: str) -> None:
    assert parse(cell_id) is None
