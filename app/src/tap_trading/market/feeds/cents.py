"""Prices: exact decimals in dollars as integer cents, half up."""

import re
from decimal import ROUND_HALF_UP, Decimal

_LARGEST_PRICE = 10**13  # cents
#: Plain ASCII: Decimal alone also takes underscores, other digits, `NaN` and `Infinity`.
_DECIMAL = re.compile(r"[0-9]{1,40}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_CENT = Decimal("0.01")


def cents(text: str) -> int:
    """A decimal price in dollars as integer cents, half up. Raises ValueError."""
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError(f"{text[:80]!r} is not a price")
    value = Decimal(text)
    # Compared before it is rounded: a huge one has more digits than rounding can hold.
    if value * 100 > _LARGEST_PRICE:
        raise ValueError(f"{text!r} is not a price: it is too large")
    rounded = int(value.quantize(_CENT, ROUND_HALF_UP).scaleb(2))
    if not rounded:
        raise ValueError(f"{text!r} is not a price of at least half a cent")
    return rounded
