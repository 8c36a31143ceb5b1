"""Dollars as text to integer cents, exactly."""

from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_trading.market.feeds.cents import cents


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("81228.94", 8122894),
        ("61837.63000000", 6183763),
        ("60720.3", 6072030),
        ("7", 700),
        ("0.005", 1),
        ("100.005", 10001),
        ("100.0049999999999999999999999999999999999", 10000),
        ("0.0049999999999999999999999999999999999999", None),
        ("2.29e-1", 23),
        ("6E+4", 6_000_000),
        ("100000000000", 10**13),
        ("100000000000.001", None),
        ("0", None),
        ("-5", None),
        ("+5", None),
        ("", None),
        (".5", None),
        ("1_000", None),
        ("\uff11\uff10\uff10", None),  # digits, but not of ASCII
        (" 1", None),
        ("1\n", None),
        ("NaN", None),
        ("Infinity", None),
        ("1e999", None),
        ("1e-999", None),
        ("9" * 400, None),
    ],
)
def test_half_up_or_refused(text: str, value: int | None) -> None:
    if value is None:
        with pytest.raises(ValueError, match="is not a price"):
            cents(text)
    else:
        assert cents(text) == value


@given(st.integers(0, 10**11 - 1), st.text("0123456789", max_size=30))
def test_every_decimal_is_rounded_once(whole: int, fraction: str) -> None:
    text = f"{whole}.{fraction}"
    # By hand: cents, then up if the first digit cut off is 5 or more.
    digits = (fraction + "000")[:3]
    value = whole * 100 + int(digits[:2]) + (digits[2] >= "5")
    if value:
        assert cents(text) == value
        assert cents(text) == int((Decimal(text) * 100).quantize(Decimal(1), ROUND_HALF_UP)) or (
            len(text) > 28
        )
    else:
        with pytest.raises(ValueError, match="is not a price"):
            cents(text)
