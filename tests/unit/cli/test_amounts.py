"""Amounts on the command line: exact to the cent, and nothing that is not one."""

import argparse
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_trading.cli import amounts
from tap_trading.ledger.accounts import MAX_AMOUNT

CENTS = st.integers(min_value=1, max_value=MAX_AMOUNT)


@given(CENTS)
def test_what_is_shown_is_read_again(cents: int) -> None:
    text = amounts.dollars(cents).removeprefix("$")
    assert amounts.parse(text) == amounts.parse_signed(text) == cents
    assert amounts.parse_signed(f"-{text}") == -cents
    assert amounts.parse_signed(f"+{text}") == cents
    assert amounts.dollars(-cents) == f"-${text}"
    assert amounts.shown(-cents) == f"-${text} (-{cents} cents)"


@given(st.decimals(min_value="0.01", max_value=MAX_AMOUNT // 100, places=2))
def test_no_cent_is_lost_or_made(value: Decimal) -> None:
    assert amounts.parse(f"{value:f}") == int(value * 100)


@given(st.text(max_size=30))
def test_any_text_is_an_amount_or_refused(text: str) -> None:
    try:
        cents = amounts.parse_signed(text)
    except argparse.ArgumentTypeError:
        return
    assert 0 < abs(cents) <= MAX_AMOUNT
    assert Decimal(text) * 100 == cents


@pytest.mark.parametrize(
    ("text", "cents"),
    [("12.50", 1250), ("12.5", 1250), ("12", 1200), ("0.05", 5), ("1.15", 115), ("0.29", 29)],
)
def test_amounts(text: str, cents: int) -> None:
    assert amounts.parse(text) == cents


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "0.00", "-0", "12.505", "1,000", "1e3", "$12", "12.", ".5", " 1", "1 ", "1\n"),
        *(
            "nan",
            "inf",
            "0x10",
            "1_000",
            "١٢",
            "\uff11\uff12",
            "--1",
            "+-1",
            "10000000000.01",
            "9" * 40,
        ),
    ],
)
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        amounts.parse_signed(text)


@pytest.mark.parametrize("text", ["-1", "+1"])
def test_only_an_adjustment_has_a_sign(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="has a sign"):
        amounts.parse(text)
