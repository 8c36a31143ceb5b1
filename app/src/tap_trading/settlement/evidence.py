"""What a bet was decided by: its pricing and its window, and the bars behind them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import apsw

from tap_trading.game import cell as cells
from tap_trading.game.cell import Cell
from tap_trading.game.settlement import BAR_MS, Window, price_moment, window
from tap_trading.ledger import resolving
from tap_trading.ledger.resolving import OpenBet, Pricing
from tap_trading.market import price_store
from tap_trading.market.offer import decimal_rate
from tap_trading.market.price_store import Range, StoredBar


@dataclass(frozen=True, slots=True)
class Decision:
    """What the books say a bet was decided by, and what became of it."""

    bet: OpenBet
    cell: Cell
    status: str
    payout_amount: int | None  # cents; None until the bet is settled
    void_reason: str | None
    pricing: Pricing | None
    window: Window | None  # None until its column is settled


@dataclass(frozen=True, slots=True)
class Evidence:
    """The bars that bear the decision out."""

    before: StoredBar | None  # the bar before that of the pricing
    priced: StoredBar | None  # the first bar that the bet could be priced from
    bars: Sequence[Range]  # of the window
    window: Window  # what these say about it
    until: int  # every bar before this moment (Unix ms) is final


class Case(NamedTuple):
    """A decision and its evidence."""

    found: Decision
    proof: Evidence


def decisions(books: apsw.Connection, bet_ids: Sequence[str]) -> list[Decision | None]:
    """What the books say of each bet; None when there is no such bet or it is on no cell.

    A column's window is read once.
    """
    window_of = cache(partial(resolving.window_of, books))
    found: list[Decision | None] = []
    for each in resolving.decided(books, bet_ids):
        cell = cells.parse(each.bet.cell_id) if each else None
        if each is None or cell is None:
            found.append(None)
            continue
        decided = window_of(cell.start, cell.width)
        found.append(
            Decision(
                *(each.bet, cell, each.status, each.payout_amount, each.void_reason),
                *(each.pricing, decided[0] if decided else None),
            )
        )
    return found


def decision(books: apsw.Connection, bet_id: str) -> Decision | None:
    """The one of `decisions`."""
    [found] = decisions(books, [bet_id])
    return found


def cases(prices: apsw.Connection, decided: Sequence[Decision], speed_bump_ms: int) -> list[Case]:
    """The decisions with the bars behind them, each of which is read once. `speed_bump_ms` counts
    for a bet without a pricing.
    """
    first_bar = cache(partial(price_store.first_bar, prices))
    bar_before = cache(partial(price_store.bar_before, prices))
    seen = cache(partial(_seen, prices))
    until = price_store.bars_until(prices)

    def evidence(found: Decision) -> Evidence:
        bump = found.pricing.speed_bump_ms if found.pricing else speed_bump_ms
        moment = price_moment(found.bet.placed_at, bump)
        priced = first_bar(moment, found.cell.start * 1000)
        before = bar_before(priced.t) if priced else None
        return Evidence(before, priced, *seen(found.cell.start, found.cell.width), until)

    return [Case(found, evidence(found)) for found in decided]


def _seen(prices: apsw.Connection, start: int, width: int) -> tuple[list[Range], Window]:
    """The bars of a column, given in Unix s and s, and what they say about it."""
    bars = price_store.ranges(prices, start * 1000, (start + width) * 1000)
    return bars, window(start, width, bars)


def window_bars(prices: apsw.Connection, cell: Cell) -> list[StoredBar]:
    """The bars of a cell's window."""
    return price_store.bars(prices, cell.start * 1000, (cell.start + cell.width) * 1000)


def shown(found: Decision, bars: Sequence[StoredBar]) -> dict[str, object]:
    """The evidence as a trader gets it, with the window's bars once there is a result: prices in
    cents, stamps of bars in Unix ms.
    """
    pricing, decided = found.pricing, found.window
    wanted = found.bet.min_reward_rate_bps
    return {
        "void_reason": found.void_reason,
        "min_reward_rate": None if wanted is None else decimal_rate(wanted),
        "rate": pricing
        and {
            "bar": pricing.bar,
            "price": pricing.price,
            "sigma": pricing.sigma,
            "spread": pricing.spread,
            "lead_ms": found.cell.start * 1000 - pricing.bar - BAR_MS,
            "speed_bump_ms": pricing.speed_bump_ms,
            "rate_model": pricing.rate_model,
            "volatility_model": pricing.volatility_model,
        },
        "result": decided
        and {
            "bars": decided.bars,
            "longest_gap_ms": decided.longest_gap,
            "low": decided.low,
            "high": decided.high,
        },
        "bars": [
            {"t": bar.t, "open": bar.open, "high": bar.high, "low": bar.low, "close": bar.close}
            for bar in bars
        ]
        if decided
        else [],
    }
