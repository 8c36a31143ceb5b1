"""What a cell pays: the chance that the price is in its band, and the rate that follows.

The price is taken for a Brownian motion without drift, seen at regular moments. It wins a
cell that it is in at the window's start, or that it reaches from below or from above before
the window's end. How fast it moves is only estimated, so the chance is a mixture over
several multiples of the estimate, the further apart the less steady the market has been,
and it is raised by a surcharge for what an unsteady market does besides.
Everything here is exactly repeatable: a cell's rate is the same alone and in a grid, because
no operation depends on its neighbours.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expm1, log1p, ndtr, owens_t

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: How far a path that is only seen now and then reaches less than an unbroken one, in
#: standard deviations of a step between two sights: -zeta(1/2) / sqrt(2 pi), rounded.
_UNSEEN = 0.5826
#: Beyond so many standard deviations nothing happens; and nearer than the second is on the
#: edge. Both keep infinities and 0/0 out of Owen's T without changing a digit that counts.
_NEVER = 40.0
_ON_EDGE = 1e-12
#: Heights of rows: these times a power of ten, as far as they are whole cents.
_NICE = (10, 15, 20, 30, 50, 75)
#: Where the outermost row begins when its column is first offered, in standard deviations.
_OUTERMOST = 2.0


@dataclass(frozen=True, slots=True)
class RateModel:
    """Everything a rate depends on besides the market; named, so that it can be stored."""

    version: str = "mixture-1"
    edge_bps: int = 500  # the house's part of a fair payout, basis points
    min_probability: float = 0.02  # cells below and above are not offered
    max_probability: float = 0.90
    spacing_s: float = 0.1  # between two price observations behind the bars, seconds
    #: Half the unit that prices are rounded to, cents: a bar that rounds to the edge is in.
    rounding_cents: float = 0.5
    #: The logarithm of the true volatility is so many of its own standard deviations off its
    #: mean, with these weights: Gauss and Hermite's five points for a normal variable.
    deviates: tuple[float, ...] = (-2.85697, -1.355626, 0.0, 1.355626, 2.85697)
    weights: tuple[float, ...] = (0.011257, 0.222076, 0.533334, 0.222076, 0.011257)
    #: The chance is raised by so many times the spread's square: an unsteady market also drifts
    #: and turns back, which near and distant cells gain from and no volatility tells.
    surcharge: float = 0.65

    def __post_init__(self) -> None:
        if len(self.deviates) != len(self.weights) or not self.deviates:
            raise ValueError("a weight for each multiple of the volatility")
        if min(self.weights) <= 0:
            raise ValueError("weights must be above 0")
        if abs(sum(self.weights) - 1) > 1e-9:  # noqa: PLR2004 - what rounding may leave
            raise ValueError(f"the weights add up to {sum(self.weights)}, not to 1")
        if not 0 < self.min_probability < self.max_probability <= 1:
            raise ValueError("the probabilities offered must be an interval inside 0 to 1")
        if min(self.edge_bps, self.spacing_s, self.rounding_cents, self.surcharge) < 0:
            raise ValueError("edge, spacing, rounding and surcharge must not be below 0")

    def probability(
        self,
        price: ArrayLike,
        sigma: ArrayLike,
        spread: ArrayLike,
        lead_s: ArrayLike,
        width_s: ArrayLike,
        low: ArrayLike,
        high: ArrayLike,
    ) -> Floats:
        """The chance that cells win, as rates count it; every argument broadcasts.

        `price`, `low` and `high` are cents, `sigma` is the estimated volatility per square
        root of a second, `spread` the standard deviation of its logarithm, `lead_s` the time
        until the window opens (past: 0), `width_s` its length, in seconds.
        """
        now = np.asarray(price, dtype=np.float64)
        estimate = np.asarray(sigma, dtype=np.float64)
        doubt = np.asarray(spread, dtype=np.float64)
        if np.any(now <= 0) or np.any(estimate <= 0) or np.any(doubt < 0):
            raise ValueError("price and volatility must be above 0, the spread at least 0")
        start = np.maximum(np.asarray(lead_s, dtype=np.float64), 0.0)
        end = start + np.asarray(width_s, dtype=np.float64)
        # Logarithms and exponentials by scalar routines: numpy's own may round differently
        # in long arrays.
        bottom = np.asarray(low, dtype=np.float64) - self.rounding_cents
        below = log1p(np.maximum((bottom - now) / now, -1 + 1e-9))
        above = log1p((np.asarray(high, dtype=np.float64) + self.rounding_cents - now) / now)
        total = np.zeros(np.broadcast(now, estimate, end, below, above).shape)
        for deviate, weight in zip(self.deviates, self.weights, strict=True):
            # So that the mean square over the mixture is the estimate's.
            volatility = estimate * (1 + expm1(doubt * deviate - doubt * doubt))
            total += weight * touch_probability(
                below, above, start, end, volatility, self.spacing_s
            )
        return np.asarray(np.minimum(total * (1 + self.surcharge * doubt * doubt), 1.0))

    def rate_bps(self, probability: ArrayLike) -> Integers:
        """What cells of these chances pay, in basis points of the stake; 0: not offered."""
        chance = np.asarray(probability, dtype=np.float64)
        offered = (chance >= self.min_probability) & (chance <= self.max_probability)
        fair = 1e8 / (np.where(offered, chance, 1.0) * (10_000 + self.edge_bps))
        return np.where(offered, np.floor(fair), 0.0).astype(np.int64)


def touch_probability(
    low: ArrayLike,
    high: ArrayLike,
    start_s: ArrayLike,
    end_s: ArrayLike,
    sigma: ArrayLike,
    spacing_s: float,
) -> Floats:
    """The chance that a Brownian path is in a band at a moment between `start_s` and `end_s`.

    `low` and `high` are logarithmic distances of the band's edges from the price of now,
    `sigma` is per square root of a second. The path is seen every `spacing_s` seconds, so to
    be seen in the band it has to go further into it: the edge to reach, not the edge that it
    starts behind, is shifted (shifting both would count twice what starts in between).
    """
    below, above = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    volatility = np.asarray(sigma, dtype=np.float64)
    start = np.asarray(start_s, dtype=np.float64)
    end = np.asarray(end_s, dtype=np.float64)
    shift = _UNSEEN * volatility * np.sqrt(spacing_s)
    at_start, at_end = volatility * np.sqrt(start), volatility * np.sqrt(end)
    rho, rest = np.sqrt(start / end), np.sqrt((end - start) / end)
    to_low, to_high = _deviations(below, at_start), _deviations(-above, at_start)
    inside = ndtr(-to_high) - ndtr(to_low)
    from_below = _then_above(to_low, _deviations(below + shift, at_end), rho, rest)
    from_above = _then_above(to_high, _deviations(shift - above, at_end), rho, rest)
    return np.asarray(np.clip(inside + 2 * from_below + 2 * from_above, 0.0, 1.0))


def step_for(
    price: int, sigma: float, *, width_s: int = 5, columns: int = 8, rows: int = 12
) -> int:
    """Height of a row, in cents, for a column that is first offered now. At least one cent.

    The outermost of `rows` around the price begins two standard deviations away at the end
    of the column, which is `columns` + 2 widths ahead at most: it pays some thirty times,
    and the middle rows are near even odds. The nearest of 1, 1.5, 2, 3, 5, 7.5 times a power
    of ten is taken.
    """
    ahead_s = (columns + 2) * width_s
    reach = _OUTERMOST * price * sigma * ahead_s**0.5
    wanted = max(reach / max(rows / 2 - 1, 1), 1.0)
    best = 1
    power = 1
    while power <= wanted * 10:
        for factor in _NICE:
            step, odd = divmod(factor * power, 10)
            nearer = max(step / wanted, wanted / max(step, 1)) < max(best / wanted, wanted / best)
            if not odd and step and nearer:
                best = step
        power *= 10
    return best


def _deviations(distance: Floats, deviation: Floats) -> Floats:
    """A distance in standard deviations, neither infinite nor 0; no time left: 0/0 is in."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(distance / deviation, nan=-_NEVER)
    ratio = np.clip(ratio, -_NEVER, _NEVER)
    return np.where(np.abs(ratio) < _ON_EDGE, -_ON_EDGE, ratio)


def _then_above(first: Floats, second: Floats, rho: Floats, rest: Floats) -> Floats:
    """Pr(Z0 < first, Z1 > second), correlation `rho`, by Owen's T; `rest` = sqrt(1 - rho**2).

    Neither bound is 0.
    """
    unequal = np.where(first * second < 0, 0.5, 0.0)
    both_below = (
        0.5 * (ndtr(first) + ndtr(second))
        - owens_t(first, (second - rho * first) / (first * rest))
        - owens_t(second, (first - rho * second) / (second * rest))
        - unequal
    )
    return np.asarray(np.maximum(ndtr(first) - both_below, 0.0))
