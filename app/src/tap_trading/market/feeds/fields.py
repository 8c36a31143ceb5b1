"""Reading the fields of a message that may be anything."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from tap_trading.market.feeds.cents import cents

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_DIGITS = re.compile(r"[0-9]{1,18}", re.ASCII)
_SECONDS = re.compile(r"([0-9]{1,11})(?:\.([0-9]{1,9}))?", re.ASCII)
_ISO = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z", re.ASCII
)
_LARGEST_INTEGER = 10**18


class BadMessageError(ValueError):
    """Not a message that this venue sends: it is dropped. `reason` is a metric's label."""

    reason = "malformed"


class UnknownMessageError(BadMessageError):
    """A whole message, but of a kind that we do not know."""

    reason = "unknown"


def decode(text: str) -> Any:
    """The JSON value of a message. Raises BadMessageError."""
    try:
        return orjson.loads(text)
    except ValueError as error:
        raise BadMessageError(str(error)) from None


def mapping(value: object) -> Mapping[str, Any]:
    """An object. Raises BadMessageError."""
    if not isinstance(value, dict):
        raise BadMessageError("not an object")
    return value


def items(value: object) -> list[Any]:
    """A list. Raises BadMessageError."""
    if not isinstance(value, list):
        raise BadMessageError("not a list")
    return value


def text(value: object) -> str:
    """A string. Raises BadMessageError."""
    if not isinstance(value, str):
        raise BadMessageError("not a string")
    return value


def integer(value: object) -> int:
    """An integer from 0 to 10^18; True is none. Raises BadMessageError."""
    if type(value) is not int or not 0 <= value <= _LARGEST_INTEGER:
        raise BadMessageError("not an integer in range")
    return value


def digits(value: object) -> int:
    """An integer that travels as a string. Raises BadMessageError."""
    if _DIGITS.fullmatch(text(value)) is None:
        raise BadMessageError("not a string of digits")
    return int(text(value))


def price(value: object) -> int:
    """A decimal string in dollars, in cents. Raises BadMessageError."""
    try:
        return cents(text(value))
    except ValueError as error:
        raise BadMessageError(str(error)) from None


def iso_ms(value: object) -> int:
    """A time like `2021-04-17T16:43:30.244075Z` in Unix ms. Raises BadMessageError."""
    if _ISO.fullmatch(text(value)) is None:
        raise BadMessageError("not a UTC time")
    try:
        return (datetime.fromisoformat(text(value)) - _EPOCH) // _MS
    except ValueError as error:
        raise BadMessageError(str(error)) from None


def seconds_us(value: object) -> int:
    """Unix seconds with a fraction, as a string, in microseconds. Raises BadMessageError."""
    match = _SECONDS.fullmatch(text(value))
    if match is None:
        raise BadMessageError("not seconds with a fraction")
    return int(match[1]) * 1_000_000 + int((match[2] or "").ljust(6, "0")[:6])
