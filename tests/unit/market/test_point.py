"""Prices on the wire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_trading.market.point import PricePoint, decode, dollars


@given(st.integers(0, 10**14), st.integers(0, 10**17), st.integers(0, 10**14))
def test_what_is_encoded_is_decoded(t: int, seq: int, price: int) -> None:
    point = PricePoint(t, seq, price)
    assert decode(point.encode().encode()) == point


def test_the_specs_form() -> None:
    assert PricePoint(1764000000100, 7, 8421050).encode() == "1764000000100:7:84210.50"
    assert dollars(5) == "0.05"


@pytest.mark.parametrize(
    "wire",
    [b"", b"42000.00", b"1:2:3", b"1:2:3.4", b"1:2:3.456", b"a:b:c.de", b"1:2:-3.00", b"\xff"],
)
def test_anything_else_is_refused(wire: bytes) -> None:
    with pytest.raises(ValueError, match="not ts_ms:seq:price"):
        decode(wire)
