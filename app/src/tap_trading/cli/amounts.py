"""Dollars and cents: read from the command line without any fraction, shown in both."""

import argparse
import re

from tap_trading.ledger.accounts import MAX_AMOUNT

_DOLLARS = re.compile(r"([+-]?)([0-9]{1,12})(?:\.([0-9]{1,2}))?", re.ASCII)
_CENTS = 100


def parse(text: str) -> int:
    """An amount of dollars such as "12.50" in cents, above 0. For argparse."""
    if text.startswith(("+", "-")):
        raise argparse.ArgumentTypeError(f"{text!r} has a sign; give the amount without one")
    return parse_signed(text)


def parse_signed(text: str) -> int:
    """The same with a sign, such as "-12.50"; not 0. For argparse."""
    match = _DOLLARS.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an amount of dollars such as 12.50, with two decimals at most"
        )
    sign, dollars, fraction = match.groups()
    cents = int(dollars) * _CENTS + int((fraction or "").ljust(2, "0"))
    if not 0 < cents <= MAX_AMOUNT:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 0.01 to {MAX_AMOUNT // _CENTS}")
    return -cents if sign == "-" else cents


def dollars(cents: int) -> str:
    """1250 as "$12.50", -5 as "-$0.05"."""
    whole, rest = divmod(abs(cents), _CENTS)
    return f"{'-' if cents < 0 else ''}${whole}.{rest:02}"


def shown(cents: int) -> str:
    """1250 as "$12.50 (1250 cents)"."""
    return f"{dollars(cents)} ({cents} cents)"
