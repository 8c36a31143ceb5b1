"""The grid: what is offered is taken, and nothing else is."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tap_trading.game.cell import Cell
from tap_trading.game.grid import (
    Geometry,
    Refusal,
    cells,
    columns,
    first_placeable,
    refusal,
    step_for,
)

geometries = st.builds(
    Geometry,
    width_s=st.integers(1, 60),
    columns=st.integers(6, 12),
    rows=st.integers(2, 24),
)
moments = st.integers(1_500_000_000_000, 2_000_000_000_000)
prices = st.integers(1, 10**10)

PLAN = Geometry(width_s=5, columns=6, rows=4)
NOW = 1_764_000_002_000  # 2 s into the column that starts at 1764000000
PRICE = 8_421_550


@given(geometries, moments, prices)
def test_every_offered_cell_takes_bets(geometry: Geometry, now: int, price: int) -> None:
    offered = list(cells(geometry, now, price))
    assert len(offered) == geometry.columns * geometry.rows
    assert len({cell.cell_id for cell in offered}) == len(offered)
    assert all(refusal(geometry, now, price, cell) is None for cell in offered)


@given(geometries, moments, prices)
def test_the_price_is_inside_the_offered_rows(geometry: Geometry, now: int, price: int) -> None:
    first = [c for c in cells(geometry, now, price) if c.start == first_placeable(geometry, now)]
    assert first[0].low <= price < first[-1].high
    assert all(low.high == high.low for low, high in pairwise(first))


@given(geometries, moments, prices, st.data())
def test_no_other_cell_takes_bets(
    geometry: Geometry, now: int, price: int, data: st.DataObject
) -> None:
    offered = set(cells(geometry, now, price))
    one = data.draw(st.sampled_from(sorted(offered, key=lambda cell: cell.cell_id)))
    moved = Cell(
        one.start + data.draw(st.integers(-3, 3)) * geometry.width_s,
        one.width + data.draw(st.sampled_from([0, 0, 1])),
        max(one.low + data.draw(st.integers(-2, 2)), 0),
        one.high + data.draw(st.integers(-2, 2)),
    )
    assert (refusal(geometry, now, price, moved) is None) == (moved in offered)


@given(prices)
def test_steps_are_1_2_5_times_a_power_of_ten(price: int) -> None:
    step = step_for(price)
    assert str(step).rstrip("0") in {"1", "2", "5"}
    assert step == 1 or step * 4000 <= price < step * 4000 * 2.5


def test_columns_are_aligned_to_the_clock_and_skip_current_and_next() -> None:
    assert first_placeable(PLAN, NOW) == 1764000010
    assert [c.start for c in columns(PLAN, NOW, PRICE)] == [1764000010 + 5 * i for i in range(6)]
    assert first_placeable(PLAN, 1_764_000_004_999) == 1764000010
    assert first_placeable(PLAN, 1_764_000_005_000) == 1764000015


def test_past_current_and_next_columns_are_closed() -> None:
    for start in (1763999995, 1764000000, 1764000005):
        assert refusal(PLAN, NOW, PRICE, Cell(start, 5, 8420000, 8422000)) is Refusal.CLOSED


def test_cells_off_the_grid_are_unknown() -> None:
    step = step_for(PRICE)
    assert step == 2000
    for cell in (
        Cell(1764000011, 5, 8420000, 8422000),  # not aligned
        Cell(1764000010, 10, 8420000, 8422000),  # another width
        Cell(1764000010, 5, 8420000, 8421000),  # another step
        Cell(1764000010, 5, 8421000, 8423000),  # between the rows
        Cell(1764000010, 5, 9420000, 9422000),  # far from the price
        Cell(1764000040, 5, 8420000, 8422000),  # beyond the last column
    ):
        assert refusal(PLAN, NOW, PRICE, cell) is Refusal.UNKNOWN
