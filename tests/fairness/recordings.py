"""Recorded markets: a csv file of trades or of bars' closes, turned into bars as we make them.

A file has a header `ts_ms,price` and perhaps more columns, which are not used; each line is
a trade or the close of a bar, in any order. What cannot be a price stops the reading with
the file's name and the line's number.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tap_trading.game.volatility import BAR_MS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: A hole longer than this many bars is an outage: 1 s.
OUTAGE_BARS = 1000 // BAR_MS
#: Prices and times beyond these are mistakes: dollars; Unix ms (the year 2286).
MOST_DOLLARS = 1e9
LATEST_MS = 10**13
#: A market that is out for more of the time than this is played more slowly.
_RARELY_OUT = 0.15
_MOST_DOUBLINGS = 4


class UnreadableError(Exception):
    """A file that holds no market, and which line says so."""


@dataclass(frozen=True, slots=True)
class Ticks:
    """What was observed, oldest first."""

    times: Integers  # Unix ms
    cents: Integers


@dataclass(frozen=True, slots=True)
class Bars:
    """The bars of one market. Their time is scaled: one bar is always 100 ms of the game."""

    slots: Integers  # which bar, counted from the epoch of the scaled clock; ascending
    low: Integers  # cents; the range includes the previous close
    high: Integers
    close: Integers
    scale: float  # real ms in a bar, over 100


def read_ticks(path: Path) -> Ticks:
    """The observations of a csv file. Raises UnreadableError."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(_rows(path, csv.reader(file, strict=True)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableError(f"{path}: {error}") from None
    if len(rows) < 2:
        raise UnreadableError(f"{path}: needs at least two observations, has {len(rows)}")
    times = np.array([time for time, _ in rows], dtype=np.int64)
    cents = np.array([price for _, price in rows], dtype=np.int64)
    order = np.argsort(times, kind="stable")
    return Ticks(times[order], cents[order])


def _rows(path, reader):  # type: ignore[no-untyped-def] # any reader of rows
    header = next(reader, None)
    names = [name.strip().lower() for name in header or ()]
    if "ts_ms" not in names or "price" not in names:
        raise UnreadableError(f"{path}:1: the header must name ts_ms and price, not {header}")
    time_at, price_at = names.index("ts_ms"), names.index("price")
    for row in reader:
        if not row:
            continue
        where = f"{path}:{reader.line_num}"
        if len(row) != len(names):
            raise UnreadableError(f"{where}: {len(row)} fields where the header has {len(names)}")
        yield _time(where, row[time_at]), _cents(where, row[price_at])


def _time(where: str, text: str) -> int:
    try:
        time = int(text)
    except ValueError:
        raise UnreadableError(f"{where}: ts_ms is not a whole number: {text[:40]!r}") from None
    if not 0 <= time < LATEST_MS:
        raise UnreadableError(f"{where}: ts_ms is no time in Unix ms: {time}")
    return time


def _cents(where: str, text: str) -> int:
    try:
        price = float(text)
    except ValueError:
        raise UnreadableError(f"{where}: price is not a number: {text[:40]!r}") from None
    if not (math.isfinite(price) and 0.005 <= price <= MOST_DOLLARS):
        raise UnreadableError(f"{where}: price is none in dollars: {text[:40]!r}")
    return math.floor(price * 100 + 0.5)


def own_spacing_ms(times: Integers) -> float:
    """How far apart a file's observations are, in ms, and at least one bar.

    The usual distance where most are alike (bars), else the mean of all that are not holes;
    and as often twice as that as it takes for the market to be out rarely.
    """
    gaps = np.diff(np.unique(times))
    if not len(gaps):
        return float(BAR_MS)
    usual = float(np.median(gaps))
    if np.mean(gaps == usual) < 0.5:
        usual = float(np.mean(gaps[gaps <= 100 * np.mean(gaps)]))
    spacing = max(usual, float(BAR_MS))
    for _ in range(_MOST_DOUBLINGS):
        out = gaps[gaps > (OUTAGE_BARS + 1) * spacing].sum() / gaps.sum()
        if out <= _RARELY_OUT:
            break
        spacing *= 2
    return spacing


def bars_of(ticks: Ticks, spacing_ms: float | None = None) -> Bars:
    """One bar every `spacing_ms` (default: the file's own).

    A price stands for as long as 1 s of the game when no newer one comes; then the market
    is out until the next, and has no bars.
    """
    spacing = own_spacing_ms(ticks.times) if spacing_ms is None else spacing_ms
    seen = np.floor(ticks.times / spacing).astype(np.int64)
    first = np.flatnonzero(np.diff(seen, prepend=seen[0] - 1))
    slots = seen[first]
    low = np.minimum.reduceat(ticks.cents, first)
    high = np.maximum.reduceat(ticks.cents, first)
    close = ticks.cents[np.append(first[1:], len(seen)) - 1]
    before = np.append(close[0], close[:-1])
    low, high = np.minimum(low, before), np.maximum(high, before)
    # Repeat the close through holes that are no outages.
    holes = np.diff(slots, append=slots[-1] + 1)
    times = np.where(holes <= OUTAGE_BARS + 1, holes, 1)
    source = np.repeat(np.arange(len(slots)), times)
    later = np.arange(len(source)) - np.repeat(np.cumsum(times) - times, times)
    repeated = later > 0
    return Bars(
        slots=slots[source] + later,
        low=np.where(repeated, close[source], low[source]),
        high=np.where(repeated, close[source], high[source]),
        close=close[source],
        scale=spacing / BAR_MS,
    )
