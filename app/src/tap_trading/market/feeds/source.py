"""What every price source is, and what it tells."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Tick:
    """A trade as a source reports it."""

    exchange_time: int  # Unix ms, by the exchange's clock
    receive_time: int  # Unix ms, by ours
    price: int  # cents


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """How a source is doing at this moment."""

    connected_since: int | None  # Unix ms, by our clock; None while there is no connection
    last_message: int | None  # Unix ms when it last said something that we understood
    last_trade: Tick | None


class PriceSource(Protocol):
    """Where prices come from."""

    @property
    def name(self) -> str:
        """A short name for logs and metrics."""

    @property
    def status(self) -> SourceStatus:
        """Its connection, its last message of any kind, and its last trade."""

    def ticks(self) -> AsyncIterator[Tick]:
        """New trades as they happen, for ever. What it raises ends the price service.

        It is read once, by one task. Who stops before being cancelled closes it:
        `async with contextlib.aclosing(source.ticks()) as ticks`.
        """
