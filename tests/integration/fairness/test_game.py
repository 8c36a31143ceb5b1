"""The replay plays by the product's rules: checked bet by bet against a slow, plain reading."""

import numpy as np
import pytest

from fairness.game import Bets, Rules, Tape, play, tape_of, windows
from fairness.recordings import OUTAGE_BARS, Bars, Ticks, bars_of
from tap_trading.game.rates import step_for

RULES = Rules()
SIGMA = 9e-5


def market(bars: int, seed: int = 1, holes: tuple[tuple[int, int], ...] = ()) -> Tape:
    """A Brownian market with two ticks in a bar, and none in some of them."""
    random = np.random.default_rng(seed)
    steps = random.standard_normal(2 * bars) * SIGMA * np.sqrt(0.05)
    cents = np.round(8_421_050 * np.exp(np.cumsum(steps))).astype(np.int64)
    times = np.arange(2 * bars) * 50
    out = np.zeros(2 * bars, dtype=bool)
    for start, end in holes:
        out |= (times >= start * 100) & (times < end * 100)
    return tape_of(bars_of(Ticks(times[~out], cents[~out]), 100.0), RULES.volatility)


def test_every_bet_is_what_the_rules_say() -> None:
    tape = market(3_000, holes=((1_400, 1_409), (1_800, 1_812)))
    bets = play(tape, RULES, np.random.default_rng(3))
    bars = dict(
        zip(
            tape.bars.slots.tolist(),
            zip(tape.bars.low.tolist(), tape.bars.high.tolist(), strict=True),
            strict=True,
        )
    )
    at = {slot: i for i, slot in enumerate(tape.bars.slots.tolist())}
    steps: dict[int, int] = {}
    assert len(bets) > 2_000
    for i in range(len(bets)):
        start, slot = int(bets.column[i]), int(bets.slot[i])
        low, high = int(bets.low[i]), int(bets.high[i])
        assert start % 50 == 0
        # Its column was not the next one when it arrived, 300 ms before and at most 1 s more.
        assert start - 9 * 50 <= slot - 3
        assert slot - 3 - OUTAGE_BARS < start - 50
        # Betting resumes when there have been prices for 30 s.
        assert not 1_812 < slot < 1_812 + 300
        index = at[slot]
        chance = RULES.rates.probability(
            tape.bars.close[index],
            tape.sigma[index],
            tape.spread[index],
            (start - slot - 1) / 10,
            5,
            low,
            high,
        )
        assert bets.probability[i] == chance
        assert bets.rate[i] == RULES.rates.rate_bps(chance) / 1e4
        won = any(
            bars[bar][0] <= high and bars[bar][1] >= low
            for bar in range(start, start + 50)
            if bar in bars
        )
        assert bets.won[i] == won
        assert low % (high - low) == 0
        assert steps.setdefault(start, high - low) == high - low
    offered = start - 450
    first = at[offered - 1]
    assert steps[start] == step_for(int(tape.bars.close[first]), float(tape.sigma[first]))


def test_a_column_with_an_outage_of_more_than_a_second_is_void() -> None:
    holes = ((1_410, 1_420), (1_610, 1_621), (1_795, 1_812))
    found = {window.start for window in windows(market(2_500, holes=holes), RULES, 0)}
    assert 1_400 in found  # ten bars: exactly a second
    assert 1_600 not in found  # eleven
    assert 1_750 in found  # half a second of the outage
    assert 1_800 not in found


def test_nothing_is_offered_before_the_volatility_is_known() -> None:
    tape = market(1_500)
    warm = int(RULES.volatility.warm_up_bars)
    assert min(window.offered_from for window in windows(tape, RULES, 0)) >= warm
    assert play(market(800), RULES, np.random.default_rng(1)).slot.size == 0


def test_the_speed_bump_prices_by_the_first_bar_300_ms_later() -> None:
    tape = market(1_800)
    moments = []
    for bump in (False, True):
        bets = play(tape, RULES, np.random.default_rng(4), bump=bump)
        moments.append(set(zip(bets.column.tolist(), bets.slot.tolist(), strict=True)))
    # The page shows the bar that ended at the arrival; the bump's bar starts three later.
    assert {(column, slot + 4) for column, slot in moments[0]} == moments[1]
    assert len(moments[0]) > 30


def test_a_game_in_a_fair_market_returns_what_the_edge_leaves() -> None:
    random = np.random.default_rng(5)
    closes = np.cumsum(random.standard_normal((40, 4_000)) * SIGMA * np.sqrt(0.1), axis=1)
    payouts, shares = [], []
    for path in closes:
        close = np.round(8_421_050 * np.exp(path)).astype(np.int64)
        before = np.append(close[0], close[:-1])
        slots = np.arange(len(close), dtype=np.int64)
        bars = Bars(slots, np.minimum(close, before), np.maximum(close, before), close, 1.0)
        # The true volatility, known for sure: what is left is the formula.
        sure = Tape(bars, np.full(4_000, SIGMA), np.zeros(4_000), slots >= 600)
        bets: Bets = play(sure, RULES, random)
        payouts.append(bets.payout.mean())
        shares.append(bets.won.mean() / bets.probability.mean())
    error = float(np.std(payouts) / np.sqrt(40))
    assert error < 0.05
    assert np.mean(payouts) == pytest.approx(1 / 1.05, abs=4 * error)
    assert np.mean(shares) == pytest.approx(1.0, abs=0.03)
