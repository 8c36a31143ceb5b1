"""The win rule and the outage rule, against their definitions."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_trading.game.cell import Cell
from tap_trading.game.settlement import Window, payout, price_moment, window

START, WIDTH = 1_764_000_000, 5
BEGIN, END = START * 1000, (START + WIDTH) * 1000


@dataclass(frozen=True)
class Bar:
    t: int
    low: int
    high: int


def chain(closes: list[int | None], begin: int = BEGIN - 1000, before: int = 1000) -> list[Bar]:
    """Bars of these closes; each includes the close before it, also across a gap."""
    bars = []
    for number, close in enumerate(closes):
        if close is not None:
            bars.append(Bar(begin + 100 * number, min(close, before), max(close, before)))
            before = close
    return bars


#: Ten bars before the window, fifty in it and ten after it.
CLOSES = st.lists(st.one_of(st.none(), st.integers(900, 1100)), min_size=70, max_size=70)


@given(CLOSES, st.integers(890, 1110), st.integers(1, 30))
def test_a_cell_wins_if_any_bar_of_the_window_meets_it(
    closes: list[int | None], low: int, height: int
) -> None:
    bars = chain(closes)
    cell = Cell(START, WIDTH, low, low + height)
    inside = [bar for bar in bars if BEGIN <= bar.t < END]
    wins = any(bar.low <= cell.high and bar.high >= cell.low for bar in inside)
    assert window(START, WIDTH, bars).wins(cell) is wins


@given(CLOSES)
def test_the_longest_gap_is_the_longest_time_without_a_bar(closes: list[int | None]) -> None:
    run = longest = 0
    for close in closes[10:60]:
        run = run + 100 if close is None else 0
        longest = max(longest, run)
    found = window(START, WIDTH, chain(closes))
    assert found.longest_gap == longest
    assert found.void is (longest > 1000)
    assert found.bars == sum(close is not None for close in closes[10:60])


def test_a_window_without_a_bar() -> None:
    found = window(START, WIDTH, chain([1000] * 10 + [None] * 50 + [1000] * 10))
    assert found == Window(0, 5000, None, None)
    assert found.void
    assert not found.wins(Cell(START, WIDTH, 1, 10**9))


@pytest.mark.parametrize(
    ("placed_at", "bump", "moment"),
    [(1000, 300, 1300), (1001, 300, 1400), (1099, 300, 1400), (1100, 300, 1400), (1050, 0, 1100)],
)
def test_the_first_bar_after_the_speed_bump(placed_at: int, bump: int, moment: int) -> None:
    assert price_moment(placed_at, bump) == moment


@given(st.integers(1, 10**9), st.integers(10_000, 500_000))
def test_a_payout_is_never_more_than_the_rate(amount: int, rate_bps: int) -> None:
    paid = payout(amount, rate_bps)
    assert paid * 10_000 <= amount * rate_bps < (paid + 1) * 10_000
    assert paid >= amount
