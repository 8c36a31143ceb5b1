"""Rates: the chance is right, the rate is exact, and every edge case has an answer."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fairness.paths import found_by_paths
from tap_trading.game.rates import RateModel, step_for, touch_probability

PRICE = 8_421_050
SIGMA = 9e-5
MODEL = RateModel()

#: Row step in logs and volatility that give the five cells of the product's own check.
STEP = 1e-4
CHECKED_SIGMA = 0.45 / math.sqrt(365 * 86_400)


@pytest.mark.parametrize(
    ("lead_s", "row", "shifted", "unshifted"),
    [
        (10, 0, 0.4740, 0.5068),
        (10, 1, 0.4226, 0.4530),
        (10, 5, 0.0864, 0.0955),
        (30, 2, 0.2650, 0.2854),
        (60, 6, 0.1330, 0.1436),
    ],
)
def test_the_five_cells_of_the_product(
    lead_s: int, row: int, shifted: float, unshifted: float
) -> None:
    cell = (row * STEP, (row + 1) * STEP, lead_s, lead_s + 5, CHECKED_SIGMA)
    assert touch_probability(*cell, 0.1) == pytest.approx(shifted, abs=1e-4)
    assert touch_probability(*cell, 0.0) == pytest.approx(unshifted, abs=1e-4)


@pytest.mark.parametrize("lead_s", [0.6, 5.0, 9.6, 19.6, 44.6])
def test_the_chance_agrees_with_simulated_paths(lead_s: float) -> None:
    distances, heights = np.meshgrid([-3.0, -1.5, -0.5, 0.0, 0.8, 1.7], [0.5, 1.25, 2.5, 4.0])
    lows = distances.ravel() * math.sqrt(lead_s)
    highs = lows + heights.ravel()
    random = np.random.default_rng(int(lead_s * 1000))
    found = found_by_paths(lead_s, lows, highs, paths=100_000, random=random)
    said = touch_probability(lows, highs, lead_s, lead_s + 5, 1.0, 0.1)
    error = np.abs(said - found)
    assert error.max() <= 0.01
    # And no further than chance explains, but for what the shift of the edge neglects.
    assert np.all(error <= 0.002 + 4 * np.sqrt(found * (1 - found) / 100_000))


distances = st.floats(-0.01, 0.01)
heights = st.floats(1e-6, 0.01)
leads = st.one_of(st.just(0.0), st.floats(1e-9, 1e6))
widths = st.floats(0.1, 3600)
sigmas = st.floats(1e-6, 1e-2)
spacings = st.sampled_from([0.0, 0.1, 1.0])


@given(distances, heights, leads, widths, sigmas, spacings)
@example(0.0, 1e-4, 0.0, 5.0, 1e-4, 0.0)
@example(0.0, 1e-4, 10.0, 5.0, 1e-4, 0.0)
@example(-1e-4, 1e-4, 10.0, 5.0, 1e-4, 0.1)
def test_every_cell_has_a_chance_and_its_mirror_the_same(
    low: float, height: float, lead: float, width: float, sigma: float, spacing: float
) -> None:
    high = low + height
    chance = float(touch_probability(low, high, lead, lead + width, sigma, spacing))
    mirror = float(touch_probability(-high, -low, lead, lead + width, sigma, spacing))
    assert 0 <= chance <= 1
    assert chance == pytest.approx(mirror, abs=1e-9)


@given(distances, heights, heights, leads, widths, sigmas)
def test_more_room_and_more_time_never_hurt(
    low: float, height: float, more: float, lead: float, width: float, sigma: float
) -> None:
    def chance(low: float, high: float, width: float) -> float:
        return float(touch_probability(low, high, lead, lead + width, sigma, 0.0))

    high = low + height
    cell = chance(low, high, width)
    assert chance(low - more, high, width) >= cell - 1e-9
    assert chance(low, high + more, width) >= cell - 1e-9
    assert chance(low, high, width * 2) >= cell - 1e-9
    # Two bands side by side are won by whoever wins one of them.
    assert chance(low, high + more, width) <= cell + chance(high, high + more, width) + 1e-9


@pytest.mark.parametrize("spacing", [0.0, 0.1])
def test_a_window_that_opens_now_is_won_from_inside(spacing: float) -> None:
    for low, high in ((-1e-4, 1e-4), (0.0, 1e-4), (-1e-4, 0.0)):
        assert touch_probability(low, high, 0.0, 5.0, SIGMA, spacing) == 1
    one_sided = touch_probability(1e-4, 2e-4, 0.0, 5.0, SIGMA, 0.0)
    assert one_sided == pytest.approx(math.erfc(1e-4 / SIGMA / math.sqrt(5) / math.sqrt(2)))


def test_soon_is_the_limit_of_now_and_far_is_nearly_impossible() -> None:
    now = touch_probability(1e-4, 2e-4, 0.0, 5.0, SIGMA, 0.1)
    assert touch_probability(1e-4, 2e-4, 1e-9, 5.0, SIGMA, 0.1) == pytest.approx(float(now))
    assert touch_probability(1e-2, 2e-2, 10.0, 15.0, SIGMA, 0.1) == 0
    assert touch_probability(-5e-2, 5e-2, 10.0, 15.0, SIGMA, 0.1) == 1
    # The window's length hardly matters a million seconds ahead: correlation 1, nearly.
    here = touch_probability(-1e-2, 1e-2, 1e6, 1e6 + 5, SIGMA, 0.0)
    assert here == pytest.approx(math.erf(1e-2 / SIGMA / 1e3 / math.sqrt(2)), abs=2e-3)


ROWS = np.arange(40) * 2000 + 8_380_000
LEADS = np.arange(8)[:, None] * 5 + 7.3


@given(
    st.integers(8_390_000, 8_450_000),
    st.floats(1e-5, 5e-4),
    st.floats(0, 0.7),
    st.integers(0, 7),
    st.integers(0, 39),
)
def test_a_cell_has_the_same_rate_alone_and_in_the_grid(
    price: int, sigma: float, spread: float, column: int, row: int
) -> None:
    grid = MODEL.probability(price, sigma, spread, LEADS, 5, ROWS, ROWS + 2000)
    low, lead = int(ROWS[row]), float(LEADS[column, 0])
    alone = MODEL.probability(price, sigma, spread, lead, 5, low, low + 2000)
    assert alone == grid[column, row]
    assert MODEL.rate_bps(alone) == MODEL.rate_bps(grid)[column, row]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 64, 300])
def test_a_bet_has_the_same_bits_alone_and_among_any_number(count: int) -> None:
    random = np.random.default_rng(count)
    low = random.integers(PRICE - 12_000, PRICE + 12_000, count)
    bets = [
        *(random.integers(PRICE - 3000, PRICE + 3000, count), random.uniform(2e-5, 3e-4, count)),
        *(random.uniform(0.1, 0.7, count), random.integers(0, 500, count) / 10),
        *(np.full(count, 5), low, low + random.integers(500, 3000, count)),
    ]
    rows = list(zip(*(values.tolist() for values in bets), strict=True))
    alone = np.array([float(MODEL.probability(*row)) for row in rows])
    # As columns of a table of bets lie in memory, and one after the other.
    for table in (np.array(rows).T, np.ascontiguousarray(np.array(rows).T)):
        together = MODEL.probability(*table)
        assert together.tobytes() == alone.tobytes()
        assert MODEL.rate_bps(together).tolist() == [int(MODEL.rate_bps(each)) for each in alone]


def test_the_mixture_is_an_average_over_volatilities_of_the_same_mean_square() -> None:
    model = RateModel(deviates=(-1.0, 1.0), weights=(0.25, 0.75), surcharge=0.0)
    cell = (10.0, 5, PRICE + 1000, PRICE + 3000)
    parts = [
        model.probability(PRICE, SIGMA * math.exp(0.4 * deviate - 0.16), 0.0, *cell)
        for deviate in (-1.0, 1.0)
    ]
    expected = 0.25 * parts[0] + 0.75 * parts[1]
    assert model.probability(PRICE, SIGMA, 0.4, *cell) == pytest.approx(float(expected))
    square = sum(
        weight * math.exp(0.4 * deviate - 0.16) ** 2
        for deviate, weight in zip(MODEL.deviates, MODEL.weights, strict=True)
    )
    assert square == pytest.approx(1, abs=1e-4)


def test_an_unsteady_market_pays_less_far_away() -> None:
    far = (10.0, 5, PRICE + 9000, PRICE + 10_000)
    steady, unsteady = (MODEL.probability(PRICE, SIGMA, spread, *far) for spread in (0.1, 0.5))
    assert unsteady > 1.3 * steady


def test_the_surcharge_grows_with_the_spread_and_makes_no_chance_above_one() -> None:
    plain, raised = RateModel(surcharge=0.0), RateModel(surcharge=0.5)
    cell = (10.0, 5, PRICE - 500, PRICE + 500)
    for spread, factor in ((0.0, 1.0), (0.2, 1.02), (0.4, 1.08)):
        chance = float(plain.probability(PRICE, SIGMA, spread, *cell))
        assert raised.probability(PRICE, SIGMA, spread, *cell) == pytest.approx(factor * chance)
    assert raised.probability(PRICE, SIGMA, 0.4, 10.0, 5, PRICE // 2, PRICE * 2) == 1


def test_a_band_reaches_as_far_as_prices_are_rounded() -> None:
    exact = RateModel(rounding_cents=0.0)
    cell = (10.0, 5, 250, 252)
    wider = MODEL.probability(250, 2e-3, 0.2, *cell)
    assert wider == exact.probability(250, 2e-3, 0.2, 10.0, 5, 249.5, 252.5)
    assert wider > exact.probability(250, 2e-3, 0.2, *cell)


@pytest.mark.parametrize(
    ("chance", "rate"),
    [
        (0.5, 19_047),  # 10000 / (0.5 x 1.05) = 19047.6
        (0.02, 476_190),
        (0.90, 10_582),
        (0.0199999, 0),
        (0.9000001, 0),
        (0.0, 0),
        (1.0, 0),
        (float("nan"), 0),
    ],
)
def test_the_rate_is_fair_less_the_edge_rounded_down(chance: float, rate: int) -> None:
    assert MODEL.rate_bps(chance) == rate


@given(st.floats(0.02, 0.90))
def test_the_house_keeps_its_edge_and_no_more_than_a_basis_point(chance: float) -> None:
    rate = int(MODEL.rate_bps(chance))
    assert rate <= 1e8 / (chance * 10_500) < rate + 1


def test_a_column_that_has_begun_counts_as_beginning_now() -> None:
    begun = MODEL.probability(PRICE, SIGMA, 0.2, -1.0, 5, PRICE + 1000, PRICE + 2000)
    assert begun == MODEL.probability(PRICE, SIGMA, 0.2, 0.0, 5, PRICE + 1000, PRICE + 2000)


def test_the_lowest_row_there_is_has_a_chance() -> None:
    assert 0 < MODEL.probability(2, 0.5, 0.2, 10.0, 5, 0, 1) < 1


@pytest.mark.parametrize(
    ("price", "sigma", "spread"),
    [(0, SIGMA, 0.2), (PRICE, 0.0, 0.2), (PRICE, -1e-5, 0.2), (PRICE, SIGMA, -0.1)],
)
def test_no_rate_without_a_price_and_a_volatility(price: int, sigma: float, spread: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        MODEL.probability(price, sigma, spread, 10.0, 5, 100, 200)


@pytest.mark.parametrize(
    "wrong",
    [
        {"deviates": (1.0,), "weights": (0.5, 0.5)},
        {"deviates": (1.0, 2.0), "weights": (0.5, 0.4)},
        {"deviates": (1.0, 2.0), "weights": (1.0, 0.0)},
        {"deviates": (), "weights": ()},
        {"min_probability": 0.95},
        {"edge_bps": -1},
        {"surcharge": -0.1},
    ],
)
def test_a_model_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"weight|above 0|interval|below 0"):
        RateModel(**wrong)  # type: ignore[arg-type] # wrong on purpose


@given(st.integers(1, 10**9), st.floats(1e-6, 1e-2))
def test_steps_are_nice_numbers_of_cents(price: int, sigma: float) -> None:
    step = step_for(price, sigma)
    assert str(step).rstrip("0") in {"1", "15", "2", "3", "5", "75"}
    wanted = 2.0 * price * sigma * math.sqrt(50) / 5
    # Below 10 cents there are fewer nice numbers.
    off = 1.34 if step > 10 else 1.5
    assert step == 1 or wanted / off < step < wanted * off


@pytest.mark.parametrize("sigma", [2e-5, 5e-5, 7e-5, 1e-4, 1.3e-4, 2e-4, 5e-4])
def test_middle_rows_are_near_even_odds_and_outer_ones_pay_tens_of_times(sigma: float) -> None:
    step = step_for(PRICE, sigma)
    low = PRICE - step // 2 + np.arange(-6, 7) * step
    said = {
        lead: MODEL.probability(PRICE, sigma, 0.25, lead, 5, low, low + step)
        for lead in (5, 25, 45)
    }
    assert 0.3 < said[45][6] < 0.55
    assert 0.4 < said[25][6] < 0.65
    assert 0.6 < said[5][6] < 0.9
    # First offered, the fifth row pays some ten to fifty times; later, a nearer one does.
    assert 0.02 < said[45][11] < 0.09
    assert (said[25][11], said[5][9]) < (0.06, 0.06)
