"""The offer: which cells take bets at this moment, and what they pay. It travels from the price
service to all others through Redis, as JSON, and to clients as the grid they draw.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from tap_trading.game import grid
from tap_trading.game.cell import Cell
from tap_trading.game.grid import Column
from tap_trading.game.rates import RateModel
from tap_trading.market.bars import Bar
from tap_trading.market.point import BAR_MS
from tap_trading.market.state import MarketState

#: Every offer goes to this channel, and the latest is kept under the same name.
OFFER_CHANNEL = "market:btc:usd"
OFFER_KEY = "market:btc:usd"

_BPS = 10_000


@dataclass(frozen=True, slots=True)
class Offer:
    """What the market offers from one moment on, until the next offer."""

    t: int  # Unix ms, the stamp of the bar that had just ended, whether or not there is one
    state: MarketState
    reason: str | None  # a stable code; None while the market is open
    retry_in_ms: int | None  # until it opens if prices stay stable; None when nobody knows
    columns: Sequence[Column] = ()
    cells: Mapping[str, int] = field(default_factory=dict)  # by cell id, basis points

    def encode(self) -> bytes:
        """The offer as Redis carries it."""
        return orjson.dumps(
            {
                "t": self.t,
                "state": self.state,
                "reason": self.reason,
                "retry_in_ms": self.retry_in_ms,
                "columns": [(each.start, each.width, each.step) for each in self.columns],
                "cells": self.cells,
            }
        )


def decode(wire: bytes) -> Offer:
    """Read an offer. Raises ValueError when it is none."""
    try:
        said = orjson.loads(wire)
        return Offer(
            t=int(said["t"]),
            state=MarketState(said["state"]),
            reason=None if said["reason"] is None else str(said["reason"]),
            retry_in_ms=None if said["retry_in_ms"] is None else int(said["retry_in_ms"]),
            columns=tuple(Column(*map(int, each)) for each in said["columns"]),
            cells={str(cell): int(rate) for cell, rate in said["cells"].items()},
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not an offer ({error!r}): {wire[:80]!r}") from error


def offered_cells(
    rates: RateModel,
    bar: Bar,
    sigma: float,
    spread: float,
    columns: Sequence[Column],
    rows: int,
) -> dict[str, int]:
    """The rates, in basis points by cell id, that are offered once `bar` has ended.

    `sigma` and `spread` are the volatility after it, `rows` is how many there are around its
    close. Cells whose chance is too small or too large are left out. Columns come in their
    order, the lowest row first.
    """
    if not columns:
        return {}
    low = np.array([grid.rows(column, bar.close, rows) for column in columns])
    step = np.array([[column.step] for column in columns])
    lead_s = np.array([[(column.start * 1000 - bar.t - BAR_MS) / 1000] for column in columns])
    width_s = np.array([[column.width] for column in columns])
    chances = rates.probability(bar.close, sigma, spread, lead_s, width_s, low, low + step)
    found = {}
    for column, lows, paid in zip(
        columns, low.tolist(), rates.rate_bps(chances).tolist(), strict=True
    ):
        for bottom, rate in zip(lows, paid, strict=True):
            if rate:
                cell = Cell(column.start, column.width, bottom, bottom + column.step)
                found[cell.cell_id] = rate
    return found


def decimal_rate(bps: int) -> str:
    """Basis points as a decimal with every digit: 10582 → "1.0582"."""
    return f"{bps // _BPS}.{bps % _BPS:04d}"


def grid_fields(offer: Offer | None) -> dict[str, Any]:
    """The grid as clients are told it, over HTTP and over the stream alike."""
    if offer is None:
        return {"columns": [], "cells": []}
    return {
        "columns": [
            {"start": column.start, "width": column.width, "step": column.step}
            for column in offer.columns
        ],
        "cells": [
            {"cell_id": cell_id, "reward_rate": decimal_rate(rate)}
            for cell_id, rate in offer.cells.items()
        ],
    }
