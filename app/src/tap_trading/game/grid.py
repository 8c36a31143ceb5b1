"""The grid's geometry: which columns and rows there are, and which columns take bets.

Columns are windows of fixed width aligned to the clock. Rows are bands of the column's step,
aligned to multiples of it, around the price.
"""

from dataclasses import dataclass

from tap_trading.game.cell import Cell

#: The current column and the next take no bets.
_LOCKED_COLUMNS = 2


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


def first_placeable(width_s: int, now_ms: int) -> int:
    """Start (Unix s) of the first column that takes bets: the one after the next."""
    return (now_ms // (width_s * 1000) + _LOCKED_COLUMNS) * width_s


def starts(geometry: Geometry, now_ms: int) -> range:
    """Starts (Unix s) of the placeable columns, soonest first."""
    first, width = first_placeable(geometry.width_s, now_ms), geometry.width_s
    return range(first, first + geometry.columns * width, width)


def rows(column: Column, price: int, count: int) -> range:
    """Low edges, in cents, of the `count` rows of a column around a price in cents.

    The price is in the middle, but no row is below zero.
    """
    lowest = max(price // column.step - count // 2, 0) * column.step
    return range(lowest, lowest + count * column.step, column.step)


def has_closed(width_s: int, now_ms: int, cell: Cell) -> bool:
    """Whether the column of `cell` was one of the grid and takes no more bets."""
    return (
        cell.width == width_s
        and cell.start % width_s == 0
        and cell.start < first_placeable(width_s, now_ms)
    )
