"""What every price source is."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Tick:
    """A trade or quote as a source reports it."""

    t: int  # Unix ms
    price: int  # cents


class PriceSource(Protocol):
    """Where prices come from."""

    @property
    def name(self) -> str:
        """A short name for logs and metrics."""

    def ticks(self) -> AsyncIterator[Tick]:
        """Ticks as they happen, for ever. What it raises ends the price service."""
