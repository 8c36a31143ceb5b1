"""What the stream says, one JSON object a message (`type` names its kind)."""

from collections.abc import Iterable
from typing import Any

import orjson

from tap_trading.market.point import PricePoint
from tap_trading.market.state import MarketState
from tap_trading.market.watch import MarketStatus


def encode(kind: str, **fields: Any) -> bytes:
    """A message as it goes over the wire."""
    return orjson.dumps({"type": kind, **fields})


def bar(point: PricePoint, before: PricePoint | None) -> dict[str, int]:
    """A bar as the page draws it; its range includes the close before it. Cents, Unix ms."""
    previous = before.price if before else point.price
    return {
        "t": point.t,
        "price": point.price,
        "low": min(previous, point.price),
        "high": max(previous, point.price),
    }


def bars(points: Iterable[PricePoint]) -> list[dict[str, int]]:
    """Bars of consecutive points, oldest first."""
    found: list[dict[str, int]] = []
    before: PricePoint | None = None
    for point in points:
        found.append(bar(point, before))
        before = point
    return found


def market_status(status: MarketStatus) -> bytes:
    """The market's state, with a code that says why when it is not open."""
    return encode(
        "status", state=status.state, reason=status.reason, retry_in_ms=status.retry_in_ms
    )


def restart_status(state: MarketState, retry_in_ms: int) -> bytes:
    """This service restarts; the client reconnects after `retry_in_ms`."""
    return encode("status", state=state, reason="restart", retry_in_ms=retry_in_ms)


def error(code: str, message: str) -> bytes:
    """The client's message was not understood or not allowed."""
    return encode("error", code=code, message=message)
