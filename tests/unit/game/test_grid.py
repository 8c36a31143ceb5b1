"""The grid's geometry: columns by the clock, rows around the price."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tap_trading.game.cell import Cell
from tap_trading.game.grid import Column, Geometry, first_placeable, has_closed, rows, starts

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


@given(geometries, moments)
def test_placeable_columns_follow_each_other_after_the_next(geometry: Geometry, now: int) -> None:
    found = list(starts(geometry, now))
    assert len(found) == geometry.columns
    assert all(start % geometry.width_s == 0 for start in found)
    assert all(b - a == geometry.width_s for a, b in pairwise(found))
    wait_ms = found[0] * 1000 - now
    assert geometry.width_s * 1000 < wait_ms <= 2 * geometry.width_s * 1000


def test_columns_are_aligned_to_the_clock_and_skip_current_and_next() -> None:
    assert list(starts(PLAN, NOW)) == [1764000010 + 5 * i for i in range(6)]
    assert first_placeable(5, 1_764_000_004_999) == 1764000010
    assert first_placeable(5, 1_764_000_005_000) == 1764000015


@given(prices, st.integers(1, 10**6), st.integers(2, 40))
def test_the_price_is_inside_the_rows(price: int, step: int, count: int) -> None:
    found = rows(Column(0, 5, step), price, count)
    assert len(found) == count
    assert found[0] >= 0
    assert all(low % step == 0 for low in found)
    assert found[0] <= price < found[-1] + step
    below = price // step - found[0] // step
    assert below == min(count // 2, price // step)


@given(geometries, moments, st.integers(-30, 30), st.integers(0, 2))
def test_what_is_placeable_has_not_closed_and_all_before_has(
    geometry: Geometry, now: int, distance: int, off_s: int
) -> None:
    first = first_placeable(geometry.width_s, now)
    start = first + distance * geometry.width_s + off_s
    aligned = start % geometry.width_s == 0
    closed = has_closed(geometry.width_s, now, Cell(start, geometry.width_s, 100, 200))
    assert closed == (aligned and start < first)
    assert not has_closed(geometry.width_s, now, Cell(first - 600, geometry.width_s + 1, 1, 2))
