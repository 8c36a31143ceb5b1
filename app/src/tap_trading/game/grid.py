"""The grid's geometry: which columns and cells exist, and which of them take bets.

Columns are windows of fixed width aligned to the clock; rows are bands of one step,
aligned to multiples of it. The step follows the price level by one simple rule, so that
every process finds the same grid from the same price.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import count, takewhile

from tap_trading.game.cell import Cell

#: The step is the largest of 1, 2, 5, 10, 20, 50 … cents that is at most this fraction of the price.
_STEP_FRACTION = 4000


class Refusal(Enum):
    """Why a cell takes no bet."""

    UNKNOWN = "unknown_cell"  # not on the offered grid
    CLOSED = "cell_closed"  # its column is past, current or next


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the grid looks like, whatever the price does."""

    width_s: int  # of a column, seconds
    columns: int  # placeable at any time
    rows: int  # around the price


@dataclass(frozen=True, slots=True)
class Column:
    """One window of the grid and the step of its rows."""

    start: int  # Unix seconds
    width: int  # seconds
    step: int  # cents


@lru_cache(maxsize=64)
def step_for(price: int) -> int:
    """Height of a row, in cents, at a price in cents. At least one cent."""
    ceiling = max(price // _STEP_FRACTION, 1)
    nice = (factor * ten for ten in map(_power_of_ten, count()) for factor in (1, 2, 5))
    return max(takewhile(lambda step: step <= ceiling, nice))


def _power_of_ten(exponent: int) -> int:
    return int(10**exponent)


def first_placeable(geometry: Geometry, now_ms: int) -> int:
    """Start (Unix s) of the first column that takes bets: the one after the next."""
    width_ms = geometry.width_s * 1000
    return (now_ms // width_ms + 2) * geometry.width_s


def columns(geometry: Geometry, now_ms: int, price: int) -> list[Column]:
    """The placeable columns, soonest first."""
    first, width = first_placeable(geometry, now_ms), geometry.width_s
    step = step_for(price)
    return [Column(first + i * width, width, step) for i in range(geometry.columns)]


def _lowest_row(geometry: Geometry, price: int, step: int) -> int:
    """Low edge, in cents, of the lowest row offered at `price`; never below zero."""
    return max(price // step - geometry.rows // 2, 0) * step


def cells(geometry: Geometry, now_ms: int, price: int) -> Iterator[Cell]:
    """All placeable cells at a price in cents: column by column, lowest row first."""
    for column in columns(geometry, now_ms, price):
        lowest = _lowest_row(geometry, price, column.step)
        for row in range(geometry.rows):
            low = lowest + row * column.step
            yield Cell(column.start, column.width, low, low + column.step)


def refusal(geometry: Geometry, now_ms: int, price: int, cell: Cell) -> Refusal | None:
    """Why `cell` takes no bet at this moment and price; None when it does."""
    if cell.width != geometry.width_s or cell.start % geometry.width_s:
        return Refusal.UNKNOWN
    step = step_for(price)
    lowest = _lowest_row(geometry, price, step)
    on_rows = cell.high - cell.low == step and cell.low % step == 0
    if not (on_rows and lowest <= cell.low < lowest + geometry.rows * step):
        return Refusal.UNKNOWN
    first = first_placeable(geometry, now_ms)
    if cell.start < first:
        return Refusal.CLOSED
    if cell.start >= first + geometry.columns * geometry.width_s:
        return Refusal.UNKNOWN
    return None
