"""A random player in one market: every cell that is offered, at moments all over the game.

The rules are the product's, on the market's bars: a column's step is fixed when it is first
offered, from the price and the volatility of that moment; the past, the current and the next
column take no bets; a bet is priced by the close of the first bar that starts no earlier
than 300 ms after it arrived; a cell wins if a bar of its window touches it; a window with
an outage of more than 1 s pays its stakes back, and so does a cell that has left the
offered range when its rate is fixed. After an outage betting resumes with 30 s of prices.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fairness.recordings import OUTAGE_BARS, Bars
from tap_trading.game.rates import RateModel, step_for
from tap_trading.game.volatility import BAR_MS, VolatilityModel

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

BARS_PER_S = 1000 // BAR_MS
#: Betting resumes when there have been prices for so many bars: 30 s.
STABLE_BARS = 30 * BARS_PER_S


@dataclass(frozen=True, slots=True)
class Rules:
    """The grid and the models of the game."""

    width_s: int = 5
    columns: int = 8
    rows: int = 12
    bump_ms: int = 300
    rates: RateModel = field(default_factory=RateModel)
    volatility: VolatilityModel = field(default_factory=VolatilityModel)

    @property
    def width(self) -> int:
        """Of a column, in bars."""
        return self.width_s * BARS_PER_S

    @property
    def block(self) -> int:
        """How long a bet may live, in bars: columns further apart share no path."""
        return (self.columns + 2) * self.width


class Tape(NamedTuple):
    """A market's bars with the volatility after each."""

    bars: Bars
    sigma: Floats  # per square root of a second of the game
    spread: Floats  # of its logarithm
    ready: NDArray[np.bool_]  # whether bets are taken


@dataclass(frozen=True, slots=True)
class Bets:
    """Bets that were confirmed and not refunded, a row each."""

    column: Integers  # the window's start, in columns since the epoch
    lead_s: Floats  # from the moment of the rate to the window
    distance: Floats  # of the band's middle from the price, standard deviations
    probability: Floats
    rate: Floats  # times the stake
    won: NDArray[np.bool_]
    # What the rate is computed from, so that other models can be tried on the same bets.
    slot: Integers  # of the bar that priced it
    price: Floats
    sigma: Floats
    spread: Floats
    low: Floats
    high: Floats

    def __len__(self) -> int:
        return len(self.column)

    @property
    def payout(self) -> Floats:
        """What each bet returns, times the stake."""
        return np.where(self.won, self.rate, 0.0)


def tape_of(bars: Bars, model: VolatilityModel) -> Tape:
    """Follow the volatility through a market's bars."""
    stamps, closes = (bars.slots * BAR_MS).tolist(), bars.close.tolist()
    state = model.start(stamps[0], closes[0])
    states = [state, *model.follow(state, zip(stamps[1:], closes[1:], strict=True))]
    return Tape(
        bars,
        np.array([model.sigma(state) for state in states]),
        np.array([model.spread(state) for state in states]),
        np.array([model.ready(state) for state in states]) & _stable(bars.slots),
    )


def _stable(slots: Integers) -> NDArray[np.bool_]:
    """At which bars there have been prices for 30 s."""
    stable = np.zeros(len(slots), dtype=bool)
    stable[STABLE_BARS:] = slots[STABLE_BARS:] - slots[:-STABLE_BARS] == STABLE_BARS
    return stable


class Window(NamedTuple):
    """A column of one market that was settled, with everything bets on it need."""

    start: int  # slot
    step: int  # cents
    low: int  # the lowest and the highest price in it, cents
    high: int
    offered_from: int  # slot


def windows(tape: Tape, rules: Rules, phase: int) -> Iterator[Window]:
    """All columns without an outage, their starts `phase` bars after a multiple of the width."""
    bars, width = tape.bars, rules.width
    slots = bars.slots
    for start in np.unique((slots - phase) // width) * width + phase:
        first, end = np.searchsorted(slots, (start, start + width))
        edges = np.concatenate(([start - 1], slots[first:end], [start + width]))
        if np.diff(edges).max() > OUTAGE_BARS + 1:
            continue
        offered = int(start) - (rules.columns + 1) * width
        at = int(np.searchsorted(slots, offered - 1))
        if at >= first or not tape.ready[at]:
            continue
        # The price of the moment is the close of the bar that has just ended.
        step = step_for(
            int(bars.close[at]),
            float(tape.sigma[at]),
            width_s=rules.width_s,
            columns=rules.columns,
            rows=rules.rows,
        )
        yield Window(
            int(start),
            step,
            int(bars.low[first:end].min()),
            int(bars.high[first:end].max()),
            max(offered, int(slots[at]) + 1),
        )


def play(
    tape: Tape, rules: Rules, random: np.random.Generator, *, phases: int = 1, bump: bool = True
) -> Bets:
    """Bet on every cell on offer, once in each width's time that a column is offered.

    With `phases` above 1 the columns are laid so many times, each a part of a width later.
    """
    arrivals, found = moments(tape, rules, random, phases)
    if not len(arrivals):
        return Bets(*(np.empty(0, dtype=np.int64) for _ in fields(Bets)))
    return bet(tape, rules, arrivals, found, bump=bump)


def moments(
    tape: Tape, rules: Rules, random: np.random.Generator, phases: int
) -> tuple[Integers, Integers]:
    """When bets arrive (slot), and on which window each: once in each width's time."""
    arrivals: list[int] = []
    found: list[Window] = []
    for phase in range(phases):
        for window in windows(tape, rules, phase * rules.width // phases):
            for ahead in range(2, rules.columns + 2):
                arrival = window.start - ahead * rules.width + int(random.integers(rules.width))
                if arrival >= window.offered_from:
                    arrivals.append(arrival)
                    found.append(window)
    return np.array(arrivals, dtype=np.int64), np.array(found, dtype=np.int64)


def bet(
    tape: Tape, rules: Rules, arrivals: Integers, found: Integers, *, bump: bool = True
) -> Bets:
    """Every cell on offer at each arrival (slot) on its window."""
    offer = Offer(tape, rules, arrivals, found)
    priced, fine = offer.confirmed() if bump else (offer.shown, offer.live)
    shown = offer.probability(offer.shown)
    chance = offer.probability(priced) if bump else shown
    rate = rules.rates.rate_bps(chance)
    taken = fine[:, None] & (rules.rates.rate_bps(shown) > 0) & (rate > 0)
    return offer.bets(priced, chance, rate, taken)


class Offer:
    """The cells on offer at many moments, each on one window: a row of cells for each."""

    def __init__(self, tape: Tape, rules: Rules, arrivals: Integers, found: Integers) -> None:
        self._tape, self._rules = tape, rules
        self.arrivals = arrivals
        self.start, step, self._bottom, self._top, _ = found.T
        bars = tape.bars
        #: The bar that had just ended at each arrival, whose price is on the page.
        self.shown = np.searchsorted(bars.slots, arrivals) - 1
        self.live = (self.shown >= 0) & (arrivals - bars.slots[self.shown] <= OUTAGE_BARS)
        self.live &= tape.ready[self.shown]
        price = bars.close[self.shown]
        lowest = np.maximum(price // step - rules.rows // 2, 0) * step
        self.low = lowest[:, None] + np.arange(rules.rows) * step[:, None]
        self.high = self.low + step[:, None]

    def confirmed(self) -> tuple[Integers, NDArray[np.bool_]]:
        """The bar that prices each moment's bets, and whether there was one in time."""
        slots = self._tape.bars.slots
        due = self.arrivals + self._rules.bump_ms // BAR_MS
        at = np.minimum(np.searchsorted(slots, due), len(slots) - 1)
        in_time = (slots[at] >= due) & (slots[at] - due <= OUTAGE_BARS)
        return at, self.live & in_time & (slots[at] < self.start)

    def lead_s(self, at: Integers) -> Floats:
        """From the end of these bars to the windows, seconds."""
        return np.asarray((self.start - self._tape.bars.slots[at] - 1) / BARS_PER_S)

    def probability(self, at: Integers) -> Floats:
        """The cells' chances by what these bars say."""
        return self._rules.rates.probability(
            self._tape.bars.close[at][:, None],
            self._tape.sigma[at][:, None],
            self._tape.spread[at][:, None],
            self.lead_s(at)[:, None],
            self._rules.width_s,
            self.low,
            self.high,
        )

    @property
    def won(self) -> NDArray[np.bool_]:
        """Which cells win: the bars' ranges join, so the extremes of a window tell."""
        return np.asarray((self._bottom[:, None] <= self.high) & (self._top[:, None] >= self.low))

    def bets(self, at: Integers, chance: Floats, rate: Integers, taken: NDArray[np.bool_]) -> Bets:
        """The bets that were taken, priced by these bars."""
        row, _ = np.nonzero(taken)
        price = self._tape.bars.close[at].astype(np.float64)[row]
        sigma = self._tape.sigma[at][row]
        lead_s = self.lead_s(at)[row]
        low, high = self.low[taken].astype(np.float64), self.high[taken].astype(np.float64)
        deviation = sigma * np.sqrt(lead_s + self._rules.width_s / 2) * price
        return Bets(
            column=self.start[row],
            lead_s=lead_s,
            distance=np.abs((low + high) / 2 - price) / deviation,
            probability=chance[taken],
            rate=rate[taken] / 1e4,
            won=self.won[taken],
            slot=self._tape.bars.slots[at][row],
            price=price,
            sigma=sigma,
            spread=self._tape.spread[at][row],
            low=low,
            high=high,
        )
