"""What a bet was decided by: its pricing and its window, and the bars behind them."""

from collections.abc import Sequence
from dataclasses import dataclass

import apsw

from tap_trading.game import cell as cells
from tap_trading.game.cell import Cell
from tap_trading.game.settlement import BAR_MS, Window, price_moment
from tap_trading.ledger import resolving
from tap_trading.ledger.resolving import OpenBet, Pricing
from tap_trading.market import price_store
from tap_trading.market.offer import decimal_rate
from tap_trading.market.price_store import StoredBar


@dataclass(frozen=True, slots=True)
class Decision:
    """What the books say a bet was decided by."""

    bet: OpenBet
    cell: Cell
    void_reason: str | None
    pricing: Pricing | None
    window: Window | None  # None until its column is settled


@dataclass(frozen=True, slots=True)
class Evidence:
    """The bars that bear the decision out."""

    before: StoredBar | None  # the bar before that of the pricing
    priced: StoredBar | None  # the first bar that the bet could be priced from
    bars: Sequence[StoredBar]  # of the window
    until: int  # every bar before this moment (Unix ms) is final


def decision(books: apsw.Connection, bet_id: str) -> Decision | None:
    """What the books say of a bet; None when there is no such bet or it is on no cell."""
    found = resolving.decision_of(books, bet_id)
    cell = cells.parse(found[0].cell_id) if found else None
    if found is None or cell is None:
        return None
    bet, reason, pricing = found
    decided = resolving.window_of(books, cell.start, cell.width)
    return Decision(bet, cell, reason, pricing, decided[0] if decided else None)


def evidence(prices: apsw.Connection, found: Decision, speed_bump_ms: int) -> Evidence:
    """The bars behind a decision. `speed_bump_ms` counts for a bet without a pricing."""
    cell, pricing = found.cell, found.pricing
    bump = pricing.speed_bump_ms if pricing else speed_bump_ms
    moment = price_moment(found.bet.placed_at, bump)
    priced = price_store.first_bar(prices, moment, cell.start * 1000)
    return Evidence(
        before=price_store.bar_before(prices, priced.t) if priced else None,
        priced=priced,
        bars=window_bars(prices, cell),
        until=price_store.bars_until(prices),
    )


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
