"""Markets that are harder than the model: wandering volatility, jumps, fat tails, a bounce.

There are three kinds. In `log-normal` the logarithm of the volatility is the sum of two
Ornstein-Uhlenbeck processes, one of minutes and one of hours; returns are Student's t; jumps
arrive by themselves (Merton). The figures are those of bitcoin on a lively day, and the
volatility's own volatility is on the high side of what is published for it. In `square-root`
the variance follows Heston's process, with the same tails. `steady` is the model's own market,
where nothing is to be gained by doubt: a Brownian motion of one volatility with a bounce.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairness.game import BARS_PER_S, Rules, Tape
from fairness.recordings import Bars
from tap_trading.game.volatility import estimates

Floats = NDArray[np.float64]
_SECOND = 1 / BARS_PER_S


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A volatility whose logarithm wanders on two time scales."""

    minutes_s: float = 180.0  # in which the quick part forgets
    minutes_sd: float = 0.25  # of the logarithm
    hours_s: float = 7200.0  # the same, the slow part
    hours_sd: float = 0.5

    def multiples(self, markets: int, random: np.random.Generator) -> Iterator[Floats]:
        """The volatility of each market bar by bar, in multiples of the median."""
        quick = random.standard_normal(markets) * self.minutes_sd
        slow = random.standard_normal(markets) * self.hours_sd
        quick_keep, slow_keep = np.exp(-_SECOND / self.minutes_s), np.exp(-_SECOND / self.hours_s)
        quick_new = self.minutes_sd * np.sqrt(1 - quick_keep**2)
        slow_new = self.hours_sd * np.sqrt(1 - slow_keep**2)
        while True:
            quick = quick * quick_keep + quick_new * random.standard_normal(markets)
            slow = slow * slow_keep + slow_new * random.standard_normal(markets)
            yield np.exp(quick + slow)


@dataclass(frozen=True, slots=True)
class SquareRoot:
    """A variance that returns to its mean, the more unsteady the higher it is (Heston)."""

    memory_s: float = 300.0
    shape: float = 3.0  # of the gamma distribution that it has in the long run

    def multiples(self, markets: int, random: np.random.Generator) -> Iterator[Floats]:
        """The volatility of each market bar by bar, in multiples of its root mean square."""
        variance = random.gamma(self.shape, 1 / self.shape, markets)
        back = _SECOND / self.memory_s
        unsteady = np.sqrt(2 * back / self.shape)
        while True:
            shock = unsteady * np.sqrt(variance) * random.standard_normal(markets)
            variance = np.maximum(variance + back * (1 - variance) + shock, 1e-4)
            yield np.sqrt(variance)


def _steady(markets: int, _random: np.random.Generator) -> Iterator[Floats]:
    while True:
        yield np.ones(markets)


@dataclass(frozen=True, slots=True)
class Market:
    """What the simulated price is made of."""

    multiples: Callable[[int, np.random.Generator], Iterator[Floats]] = LogNormal().multiples
    price_cents: int = 8_421_050
    sigma: float = 8e-5  # the usual volatility, per square root of a second; 45 % a year
    freedom: float = 5.0  # degrees of freedom of the returns
    jumps_per_hour: float = 4.0
    jump: float = 6.0  # its standard deviation, in those of a second
    bounce: float = 0.1  # half the spread, in standard deviations of a second

    def closes(self, bars: int, markets: int, random: np.random.Generator) -> Floats:
        """Closes in cents, a row for each bar and a column for each market."""
        at = np.full(markets, np.log(self.price_cents))
        closes = np.empty((bars, markets))
        fat = np.sqrt((self.freedom - 2) / self.freedom)
        often = self.jumps_per_hour / 3600 * _SECOND
        for bar, multiple in zip(range(bars), self.multiples(markets, random), strict=False):
            sigma = self.sigma * multiple
            at = at + sigma * np.sqrt(_SECOND) * fat * random.standard_t(self.freedom, markets)
            jumping = np.flatnonzero(random.random(markets) < often)
            at[jumping] += sigma[jumping] * self.jump * random.standard_normal(len(jumping))
            side = np.where(random.random(markets) < 0.5, -self.bounce, self.bounce)
            closes[bar] = np.exp(at + side * self.sigma)
        return np.asarray(np.floor(closes + 0.5))


KINDS = {
    "log-normal": Market(),
    "square-root": Market(SquareRoot().multiples, jumps_per_hour=0.0),
    "steady": Market(_steady, freedom=1e6, jumps_per_hour=0.0),
}


def tapes(
    market: Market, rules: Rules, bars: int, markets: int, random: np.random.Generator
) -> Iterator[Tape]:
    """Independent markets of this kind with their volatility."""
    closes = market.closes(bars, markets, random)
    sigmas, spreads = estimates(rules.volatility, closes)
    ready = np.arange(1, bars + 1) >= rules.volatility.warm_up_bars
    slots = np.arange(bars, dtype=np.int64)
    for close, sigma, spread in zip(
        closes.T.astype(np.int64), sigmas.T.copy(), spreads.T.copy(), strict=True
    ):
        before = np.append(close[0], close[:-1])
        made = Bars(slots, np.minimum(close, before), np.maximum(close, before), close, 1.0)
        yield Tape(made, sigma, spread, ready)
