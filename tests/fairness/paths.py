"""The formula beside what it stands for: simulated Brownian paths, seen every 100 ms."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tap_trading.game.rates import touch_probability

Floats = NDArray[np.float64]

LEADS_S = (0.6, 4.6, 9.6, 19.6, 44.6)
#: In standard deviations of the price at the window's start, and of a second.
DISTANCES = (-3.0, -2.0, -1.5, -1.0, -0.5, -0.2, 0.0, 0.3, 0.8, 1.2, 1.7, 2.4)
HEIGHTS = (0.5, 1.25, 2.5, 4.0)
SPACING_S = 0.1
_WIDTH_S = 5
_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True)
class Agreement:
    """The formula and the paths, cell by cell."""

    said: Floats
    found: Floats
    paths: int

    @property
    def worst(self) -> float:
        """The largest absolute difference."""
        return float(np.abs(self.said - self.found).max())

    @property
    def error(self) -> float:
        """The largest standard error of what the paths say."""
        return float(np.sqrt(self.found * (1 - self.found) / self.paths).max())


def found_by_paths(
    lead_s: float, low: Floats, high: Floats, *, paths: int, random: np.random.Generator
) -> Floats:
    """How often paths (1 per square root of a second) are seen in bands within 5 s of a lead.

    A bar's range joins two sights, as in the game: a band is won when it meets one.
    """
    won = np.zeros(len(low), dtype=np.int64)
    for _ in range(paths // _AT_ONCE):
        at = random.standard_normal(_AT_ONCE) * math.sqrt(lead_s)
        bottom, top = at.copy(), at.copy()
        for _ in range(round(_WIDTH_S / SPACING_S)):
            at = at + random.standard_normal(_AT_ONCE) * math.sqrt(SPACING_S)
            np.minimum(bottom, at, out=bottom)
            np.maximum(top, at, out=top)
        # The ranges of successive bars join, so the extremes say which bands they met.
        won += ((bottom <= high[:, None]) & (top >= low[:, None])).sum(axis=1)
    return np.asarray(won / (paths // _AT_ONCE * _AT_ONCE))


def agreement(paths: int, random: np.random.Generator) -> Agreement:
    """240 cells by formula and by so many paths each (a multiple of 20,000)."""
    said, found = [], []
    distances, heights = np.meshgrid(DISTANCES, HEIGHTS)
    for lead_s in LEADS_S:
        low = distances.ravel() * math.sqrt(lead_s)
        high = low + heights.ravel()
        said.append(touch_probability(low, high, lead_s, lead_s + _WIDTH_S, 1.0, SPACING_S))
        found.append(found_by_paths(lead_s, low, high, paths=paths, random=random))
    return Agreement(np.concatenate(said), np.concatenate(found), paths)
