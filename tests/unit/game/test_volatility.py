"""The volatility estimate: right on average, hard to fool, and the same for everyone."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tap_trading.game.volatility import BAR_MS, State, VolatilityModel, estimates

MODEL = VolatilityModel()
PRICE = 8_421_050
SIGMA = 9e-5
T = 1_764_000_000_000


def walk(bars: int, markets: int, sigma: float = SIGMA, seed: int = 1) -> NDArray[np.float64]:
    """Closes in cents of Brownian markets, a row for each bar."""
    steps = np.random.default_rng(seed).standard_normal((bars, markets)) * sigma
    return np.asarray(np.round(PRICE * np.exp(np.cumsum(steps * math.sqrt(0.1), axis=0))))


def sigmas(closes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The estimates after each bar, without the caution in them."""
    return estimates(MODEL, closes)[0] / MODEL.caution


def after(closes: NDArray[np.float64]) -> State:
    """The state after these closes, a bar each."""
    state = MODEL.start(T, int(closes[0]))
    bars = ((T + i * BAR_MS, int(close)) for i, close in enumerate(closes[1:], start=1))
    return [state, *MODEL.follow(state, bars)][-1]


@pytest.mark.parametrize("sigma", [2e-5, 9e-5, 1e-3])
def test_it_finds_the_volatility_that_there_is(sigma: float) -> None:
    estimates = sigmas(walk(12_000, 50, sigma))[9_000::500]
    assert float(estimates.mean()) == pytest.approx(sigma, rel=0.03)
    assert float(estimates.std()) < 0.12 * sigma


def test_it_forgets_a_wrong_prior_during_the_warm_up() -> None:
    for sigma in (2e-5, 2e-3):
        estimates = sigmas(walk(int(MODEL.warm_up_bars), 200, sigma))
        assert float(np.median(estimates[-1])) == pytest.approx(sigma, rel=0.6)


closes = st.lists(st.integers(1, 10**8), min_size=1, max_size=40)
holes = st.lists(st.sampled_from([1, 1, 1, 2, 9, 10, 11, 12, 5000]), min_size=40, max_size=40)


@given(closes, holes)
def test_bar_by_bar_is_the_same_as_all_at_once_and_as_from_a_stored_state(
    prices: list[int], gaps: list[int]
) -> None:
    bars, t = [], T
    for price, gap in zip(prices, gaps, strict=False):
        t += gap * BAR_MS
        bars.append((t, price))
    state = MODEL.start(T, 5_000_000)
    at_once = list(MODEL.follow(state, bars))
    for bar, expected in zip(bars, at_once, strict=True):
        # What SQLite gives back is the same eight bytes for each number.
        stored = State(*(float.fromhex(float(field).hex()) for field in state))
        state = MODEL.advance(stored, *bar)
        assert state == expected
        assert math.isfinite(MODEL.sigma(state))
        assert MODEL.sigma(state) >= MODEL.floor
        assert 0 <= MODEL.spread(state) <= MODEL.most_spread


def test_many_markets_at_once_give_the_very_same_numbers() -> None:
    prices = walk(3_000, 7)
    prices[1_000:, 3] *= 1.5  # a jump
    prices = np.round(prices)
    together = estimates(MODEL, prices)
    for market in range(7):
        state = MODEL.start(T, int(prices[0, market]))
        bars = ((T + i * BAR_MS, int(p)) for i, p in enumerate(prices[1:, market], start=1))
        alone = [state, *MODEL.follow(state, bars)]
        assert [MODEL.sigma(state) for state in alone] == together[0][:, market].tolist()
        assert [MODEL.spread(state) for state in alone] == together[1][:, market].tolist()


def test_a_bounce_between_bid_and_ask_hardly_counts() -> None:
    prices = walk(8_000, 50)
    # One side or the other at random, 2 basis points of the volatility per second apart.
    sides = np.random.default_rng(2).choice([-0.5, 0.5], size=prices.shape)
    bounced = np.round(prices * (1 + SIGMA * sides))
    returns = np.diff(np.log(bounced), axis=0)
    naive = float(np.sqrt((returns**2).mean() * 10))
    estimate = float(sigmas(bounced)[4_000:].mean())
    assert naive > 2 * SIGMA
    assert estimate < 1.2 * SIGMA


def test_a_strict_zigzag_is_nearly_still() -> None:
    zigzag = np.where(np.arange(20_000) % 2, PRICE, PRICE + 200).astype(np.float64)
    naive = 200 / PRICE * math.sqrt(10)
    assert MODEL.sigma(after(zigzag)) < 0.25 * naive


def test_stale_prices_that_move_once_a_second_count_in_full() -> None:
    prices = walk(10_000, 50)
    stale = prices[np.arange(10_000) // 10 * 10]
    assert float(sigmas(stale)[4_000:].mean()) == pytest.approx(SIGMA, rel=0.08)


def test_a_trend_counts_more_than_its_single_returns() -> None:
    random = np.random.default_rng(3)
    steps = random.standard_normal((10_000, 50)) * SIGMA * math.sqrt(0.1)
    for i in range(1, len(steps)):
        steps[i] += 0.6 * steps[i - 1]
    prices = np.round(PRICE * np.exp(np.cumsum(steps, axis=0)))
    naive = float(np.sqrt((steps**2).mean() * 10))
    assert float(sigmas(prices)[4_000:].mean()) > 1.5 * naive


@pytest.mark.parametrize("jump", [1.01, 6.0, 1 / 6.0])
def test_one_jump_or_one_wild_print_is_soon_forgotten(jump: float) -> None:
    prices = walk(6_000, 1)[:, 0]
    calm = MODEL.sigma(after(prices))
    jumped = prices.copy()
    jumped[5_000:] *= jump
    wild = prices.copy()
    wild[5_000] *= jump
    for closes in (jumped, wild):
        for bars, limit in ((5_001, 1.3), (5_100, 2.2), (6_000, 2.0)):
            estimate = MODEL.sigma(after(np.round(closes[:bars])))
            assert estimate < limit * MODEL.sigma(after(prices[:bars]))
    assert calm == pytest.approx(SIGMA, rel=0.3)


def test_a_real_change_is_followed_within_minutes() -> None:
    prices = np.concatenate([walk(4_000, 100), walk(4_000, 100, 3 * SIGMA, seed=5)])
    estimates = sigmas(np.round(prices)).mean(axis=1)
    assert estimates[4_000 + 300] > 1.5 * SIGMA
    assert estimates[-1] > 2.4 * SIGMA


def test_a_dead_market_has_the_floor() -> None:
    still = np.full(60_000, float(PRICE))
    assert MODEL.sigma(after(still)) == MODEL.floor
    cheap = np.full(60_000, 250.0)
    assert MODEL.sigma(after(cheap)) == MODEL.floor_cents / 250


def test_a_short_hole_is_as_many_bars_at_the_old_price() -> None:
    state = after(walk(1_000, 1)[:, 0])
    t, close = int(state.t), int(state.close)
    filled = list(
        MODEL.follow(
            state, [(t + i * BAR_MS, close) for i in range(1, 11)] + [(t + 1100, close + 900)]
        )
    )[-1]
    assert MODEL.advance(state, t + 1100, close + 900) == filled


def test_the_return_over_a_long_hole_is_left_out() -> None:
    state = after(walk(1_000, 1)[:, 0])
    t, close = int(state.t), int(state.close)
    here, there = (MODEL.advance(state, t + 1200, c) for c in (close, close * 2))
    assert here == there._replace(close=float(close))
    assert here.age == state.age + 1


def test_after_a_hole_longer_than_the_memory_it_warms_up_again() -> None:
    state = after(walk(1_000, 1)[:, 0])
    assert MODEL.ready(state)
    memory_ms = int(MODEL.slow.half_life_s * 1000)
    t, close = int(state.t), int(state.close)
    assert MODEL.ready(MODEL.advance(state, t + memory_ms, close))
    assert not MODEL.ready(MODEL.advance(state, t + memory_ms + BAR_MS, close))


@pytest.mark.parametrize("t", [T, T - BAR_MS, T + BAR_MS - 1])
def test_a_bar_is_never_taken_twice(t: int) -> None:
    with pytest.raises(ValueError, match="cannot follow"):
        MODEL.advance(MODEL.start(T, PRICE), t, PRICE)


def test_the_estimate_has_noticed_a_move_at_once_and_forgets_it() -> None:
    prices = walk(3_000, 100)
    moved = prices.copy()
    # Half a second of a market that is four times as fast.
    steps = np.diff(np.log(prices), axis=0, prepend=math.log(PRICE))
    steps[2_000:2_005] *= 4
    moved = np.round(PRICE * np.exp(np.cumsum(steps, axis=0)))
    ratio = np.median(sigmas(moved) / sigmas(prices), axis=1)
    assert ratio[2_015] > 1.04
    assert abs(ratio[2_600] - 1) < 0.02


def test_a_steady_market_is_trusted_more_than_one_of_storms() -> None:
    steady = walk(12_000, 60)
    quiet_and_storm = np.where(np.arange(12_000) // 300 % 4 == 0, 2.5, 0.4)[:, None]
    returns = np.diff(np.log(steady), axis=0, prepend=math.log(PRICE)) * quiet_and_storm
    stormy = np.round(PRICE * np.exp(np.cumsum(returns, axis=0)))
    spreads = [float(np.median(estimates(MODEL, closes)[1][-1])) for closes in (steady, stormy)]
    assert spreads[0] < 0.3
    assert spreads[1] > spreads[0] + 0.15
