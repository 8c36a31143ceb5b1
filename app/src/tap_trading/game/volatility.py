"""How fast the price moves: an estimate that is carried from bar to bar.

Three filters follow the closes. Each is the sum of the returns, forgotten with a time
constant, so it is how far the price is from its own recent average; for a Brownian motion
its mean square is a known multiple of the variance per second. A price that only bounces
between bid and ask moves a filter little, because a filter feels seconds and not bars; a
price that trends moves the slow filter more than the others. The squares are averaged with a
half-life each. The quick one's is seconds: moves come in clusters, and who bets just after one
must not find a rate that has not noticed it. Of the other two the sizes are averaged too: how
much smaller the mean size is than the root of the mean square tells how unsteady the market is,
and so how far to trust the estimate. A jump counts for a few standard deviations, however far
it went.

The state is a tuple of floats. An update is nothing but additions, multiplications,
divisions and square roots, which every machine rounds alike: whoever replays the bars gets
the same numbers, bit by bit.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import copysign, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tap_trading.game.settlement import BAR_MS

Floats = NDArray[np.float64]

_BARS_PER_S = 1000 / BAR_MS
#: Mean size of a normal variable, in standard deviations: the root of 2 / pi.
_NORMAL_SIZE = 0.7978845608028654


class State(NamedTuple):
    """What has to be kept of all bars so far; stored with each bar."""

    t: float  # stamp of the last bar, Unix ms
    close: float  # its close, cents
    age: float  # bars that were counted
    quick: float  # the filters' sums of returns
    fast: float
    slow: float
    quick_variance: float  # the averages, per second
    fast_variance: float
    slow_variance: float
    fast_size: float  # averages of the sums' sizes, per square root of a second
    slow_size: float


@dataclass(frozen=True, slots=True)
class Filter:
    """One horizon."""

    time_constant_s: float  # of the sum of returns
    half_life_s: float  # of the average of its squares

    @property
    def keep(self) -> float:
        """What a bar leaves of the sum."""
        return 1 - 1 / (self.time_constant_s * _BARS_PER_S)

    @property
    def square(self) -> float:
        """Mean square of the sum where the variance is 1 per second."""
        kept = self.keep * self.keep
        return kept / (1 - kept) / _BARS_PER_S

    @property
    def gain(self) -> float:
        """What the newest square counts in the average."""
        return float(1 - 0.5 ** (1 / (self.half_life_s * _BARS_PER_S)))


@dataclass(frozen=True, slots=True)
class VolatilityModel:
    """Everything the estimate depends on besides the bars; named, so that it can be stored."""

    version: str = "three-filters-1"
    quick: Filter = Filter(time_constant_s=1.0, half_life_s=8.0)
    fast: Filter = Filter(time_constant_s=2.0, half_life_s=30.0)
    slow: Filter = Filter(time_constant_s=8.0, half_life_s=200.0)
    quick_weight: float = 0.5  # of the quick variance in the estimate
    fast_weight: float = 0.2  # of the fast one; the rest is the slow one's
    most_deviations: float = 8.0  # that a filter may hold: what a jump counts for
    #: The estimate is taken so much higher: one that is too low costs the house far more on
    #: the distant cells than one that is too high costs it on the near ones.
    caution: float = 1.005
    #: The square of the spread is `unsteady` times what the averages say, and `unknown` more:
    #: that much of the unsteadiness is no surprise to the averages; and they have errors.
    unsteady: float = 0.9
    unknown: float = 0.01
    most_spread: float = 1.2
    prior: float = 7e-5  # per square root of a second; some 39 % a year
    prior_bars: float = 50.0  # the prior counts for so many bars
    warm_up_bars: float = 600.0  # the estimate is worth a bet after so many
    floor: float = 1e-5  # per square root of a second; some 6 % a year
    floor_cents: float = 0.25  # the same in cents: rounding hides what moves less
    gap_ms: float = 1000.0  # a longer hole's return is not counted

    @property
    def slow_weight(self) -> float:
        """Of the slow variance in the estimate."""
        return 1 - self.quick_weight - self.fast_weight

    def start(self, t: int, close: int) -> State:
        """The state after the very first bar, stamped `t` (Unix ms), its close in cents."""
        variance, size = self.prior * self.prior, self.prior * _NORMAL_SIZE
        return State(
            *(float(t), float(close), 1.0, 0.0, 0.0, 0.0),
            *(variance, variance, variance, size, size),
        )

    def advance(self, state: State, t: int, close: int) -> State:
        """The state after one more bar. Raises ValueError when it is not newer than the last.

        A hole of up to `gap_ms` is as many bars at the price before it. Nobody knows how the
        price went in a longer one, so its return is left out; and after one longer than the
        slow half-life, everything so far counts no more than the prior.
        """
        return next(self.follow(state, ((t, close),)))

    def follow(self, state: State, bars: Iterable[tuple[int, int]]) -> Iterator[State]:
        """The states after each of many bars (stamp, close)."""
        last, before, age, quick, fast, slow, *averages = state
        quick_variance, fast_variance, slow_variance, fast_size, slow_size = averages
        of_quick = self._averages(self.quick)
        of_fast, of_slow = self._averages(self.fast), self._averages(self.slow)
        for t, close in bars:
            if t - last < BAR_MS:
                raise ValueError(f"a bar of {t} cannot follow the one of {last:.0f}")
            missing = int((t - last) // BAR_MS) - 1
            moved = 2 * (close - before) / (close + before)
            if missing * BAR_MS > self.gap_ms:
                if t - last > self.slow.half_life_s * 1000:
                    age = 0.0
                missing, moved = 0, 0.0
            for left in range(missing, -1, -1):
                age += 1
                young = 1 / (age + self.prior_bars)
                change = 0.0 if left else moved
                # Its sizes are not asked for.
                quick, quick_variance, _ = of_quick(quick + change, quick_variance, 0.0, young)
                fast, fast_variance, fast_size = of_fast(
                    fast + change, fast_variance, fast_size, young
                )
                slow, slow_variance, slow_size = of_slow(
                    slow + change, slow_variance, slow_size, young
                )
            last, before = float(t), float(close)
            yield State(
                *(last, before, age, quick, fast, slow),
                *(quick_variance, fast_variance, slow_variance, fast_size, slow_size),
            )

    def _averages(self, horizon: Filter) -> Callable[..., tuple[float, float, float]]:
        """One filter's update: its sum with the new return, variance, size → the same, later."""
        keep, square, gain = horizon.keep, horizon.square, horizon.gain
        root = sqrt(square)
        most = self.most_deviations * self.most_deviations * square

        def update(
            held: float, variance: float, size: float, young: float
        ) -> tuple[float, float, float]:
            held = keep * held
            squared = held * held
            limit = most * variance
            if squared > limit:
                held, squared = copysign(sqrt(limit), held), limit
            share = max(gain, young)
            variance += share * (squared / square - variance)
            return held, variance, size + share * (abs(held) / root - size)

        return update

    def ready(self, state: State) -> bool:
        """Whether enough bars have been seen to offer rates."""
        return state.age >= self.warm_up_bars

    def sigma(self, state: State) -> float:
        """The estimate, per square root of a second."""
        variance = self.quick_weight * state.quick_variance + (
            self.fast_weight * state.fast_variance + self.slow_weight * state.slow_variance
        )
        return max(self.caution * sqrt(variance), self.floor, self.floor_cents / state.close)

    def spread(self, state: State) -> float:
        """How uncertain the estimate is: the standard deviation of its logarithm.

        Where the logarithm of the volatility is normal, the square of the mean size falls
        short of the mean square by just this variance.
        """
        steady = self._steadiness(state.fast_size, state.fast_variance)
        steady += self._steadiness(state.slow_size, state.slow_variance)
        # A quotient that is within a few hundredths of minus the logarithm of the mean.
        surprise = self.unsteady * max(2 * (2 - steady) / (2 + steady), 0.0)
        return min(sqrt(surprise + self.unknown), self.most_spread)

    @staticmethod
    def _steadiness(size: float, variance: float) -> float:
        """1 for a market of one volatility, towards 0 for one of rare storms."""
        if variance <= 0:
            return 1.0
        return size * size / (variance * _NORMAL_SIZE * _NORMAL_SIZE)


def estimates(model: VolatilityModel, closes: Floats) -> tuple[Floats, Floats]:
    """Estimate and spread after each bar of many markets at once, without holes.

    `closes` (cents) has a row for each bar and a column for each market, and so have the
    results. The same operations in the same order as one by one: the very same numbers.
    """
    sigmas, spreads = np.empty_like(closes), np.empty_like(closes)
    filters = (model.quick, model.fast, model.slow)
    start = np.full(closes.shape[1], model.prior * model.prior)
    variances = [start for _ in filters]
    sums = [np.zeros_like(start) for _ in filters]
    sizes = [np.full_like(start, model.prior * _NORMAL_SIZE) for _ in filters]
    before = closes[0]
    for bar, close in enumerate(closes):
        if bar:
            young = 1 / (bar + 1 + model.prior_bars)
            moved = 2 * (close - before) / (close + before)
            for i, horizon in enumerate(filters):
                sums[i], variances[i], sizes[i] = _later(
                    model, horizon, sums[i] + moved, variances[i], sizes[i], young
                )
        mixed = model.quick_weight * variances[0] + (
            model.fast_weight * variances[1] + model.slow_weight * variances[2]
        )
        sigmas[bar] = np.maximum(
            np.maximum(model.caution * np.sqrt(mixed), model.floor), model.floor_cents / close
        )
        steady = _steadiness(sizes[1], variances[1])
        steady = steady + _steadiness(sizes[2], variances[2])
        surprise = model.unsteady * np.maximum(2 * (2 - steady) / (2 + steady), 0.0)
        spreads[bar] = np.minimum(np.sqrt(surprise + model.unknown), model.most_spread)
        before = close
    return sigmas, spreads


def _later(
    model: VolatilityModel,
    horizon: Filter,
    held: Floats,
    variance: Floats,
    size: Floats,
    young: float,
) -> tuple[Floats, Floats, Floats]:
    """`VolatilityModel._averages` for arrays."""
    square = horizon.square
    held = horizon.keep * held
    squared = held * held
    limit = model.most_deviations * model.most_deviations * square * variance
    held = np.where(squared > limit, np.copysign(np.sqrt(limit), held), held)
    squared = np.minimum(squared, limit)
    share = max(horizon.gain, young)
    variance = variance + share * (squared / square - variance)
    return held, variance, size + share * (np.abs(held) / sqrt(square) - size)


def _steadiness(size: Floats, variance: Floats) -> Floats:
    """`VolatilityModel._steadiness` for arrays."""
    positive = np.where(variance > 0, variance, 1.0)
    quotient = size * size / (positive * _NORMAL_SIZE * _NORMAL_SIZE)
    return np.where(variance > 0, quotient, 1.0)
