"""Returns by bucket of distance and lead, with bands that hold for all buckets at once.

Bets on one column win and lose together, so a column counts as one observation. Those on
neighbouring columns partly do, too, while the paths to them overlap; so bands by column are
somewhat too narrow, and the report says what blocks of columns as long as a bet may live
would show. The bands come from the largest studentised deviation over all buckets when the
signs of the columns or blocks are drawn at random (a wild cluster bootstrap).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairness.game import Bets

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

DISTANCES = (0.0, 0.5, 1.0, 1.5, 2.0)
LEADS_S = (0.0, 10.0, 20.0, 30.0)
PROBABILITIES = (0.02, 0.04, 0.07, 0.12, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
#: With fewer of them chance makes all of them agree more often than once in twenty times.
FEWEST_CLUSTERS = 6
_DRAWS = 4_000
_CONFIDENCE = 0.95
#: A test finds what lies this many standard errors beyond its bound four times of five.
_FOUR_OF_FIVE = 0.84


@dataclass(frozen=True, slots=True)
class Band:
    """The mean of one bucket of bets and how well it is known."""

    name: str
    bets: int
    mean: float
    error: float  # standard error, by blocks
    low: float  # the family-wise band
    high: float
    #: The true return, where returns are tested, that the test finds four times of five.
    found: float


def distance_and_lead(bets: Bets) -> tuple[Integers, list[str]]:
    """Each bet's bucket, and the buckets' names."""
    distance = np.searchsorted(DISTANCES, bets.distance, side="right") - 1
    lead = np.searchsorted(LEADS_S, bets.lead_s, side="right") - 1
    names = [
        f"{_range(DISTANCES, i)} sd, {_range(LEADS_S, j)} s"
        for i in range(len(DISTANCES))
        for j in range(len(LEADS_S))
    ]
    return distance * len(LEADS_S) + lead, names


def by_probability(bets: Bets) -> tuple[Integers, list[str]]:
    """Buckets of the offered probability."""
    bucket = np.searchsorted(PROBABILITIES, bets.probability, side="right") - 1
    return bucket, [_range(PROBABILITIES, i) for i in range(len(PROBABILITIES))]


def _range(edges: Sequence[float], i: int) -> str:
    return f"{edges[i]:g}-{edges[i + 1]:g}" if i + 1 < len(edges) else f"{edges[i]:g}+"


@dataclass(frozen=True, slots=True)
class Tally:
    """Bets by block and bucket: how many, and the sums of what is asked about."""

    names: list[str]
    counts: Floats  # a row for each block, a column for each bucket
    sums: Floats

    def __add__(self, other: "Tally") -> "Tally":
        """The blocks of both; they are independent of each other."""
        return Tally(
            self.names,
            np.concatenate([self.counts, other.counts]),
            np.concatenate([self.sums, other.sums]),
        )


def tally(values: Floats, bucket: Integers, names: list[str], block: Integers) -> Tally:
    """Put each bet's value into its bucket and its block (any numbers)."""
    _, member = np.unique(block, return_inverse=True)
    counts, sums = np.zeros((2, int(member.max()) + 1, len(names)))
    np.add.at(counts, (member, bucket), 1.0)
    np.add.at(sums, (member, bucket), values)
    return Tally(names, counts, sums)


def bands(tallied: Tally, *, seed: int = 1) -> list[Band]:
    """The mean in each bucket that has bets and of all together (last), with bands."""
    counts = np.column_stack([tallied.counts, tallied.counts.sum(axis=1)])
    sums = np.column_stack([tallied.sums, tallied.sums.sum(axis=1)])
    bets = counts.sum(axis=0)
    means = np.divide(sums.sum(axis=0), bets, out=np.zeros(len(bets)), where=bets > 0)
    share = np.divide(sums - counts * means, bets, out=np.zeros_like(sums), where=bets > 0)
    with_bets = np.maximum((counts > 0).sum(axis=0), 2)
    squares = (share**2).sum(axis=0)
    error = np.sqrt(squares * with_bets / (with_bets - 1))
    limit = _critical(share, squares, with_bets, np.random.default_rng(seed))
    return [
        Band(
            name,
            int(bets[i]),
            float(means[i]),
            float(error[i]),
            float(means[i] - limit * error[i]),
            float(means[i] + limit * error[i]),
            float(1 + (limit + _FOUR_OF_FIVE) * error[i]),
        )
        for i, name in enumerate([*tallied.names, "all"])
        if bets[i]
    ]


def _critical(
    share: Floats, squares: Floats, with_bets: Floats, random: np.random.Generator
) -> float:
    """How many standard errors the worst bucket of a fair game is off, at the confidence."""
    signs = random.choice([-1.0, 1.0], size=(_DRAWS, len(share)))
    drawn = signs @ share
    # The error as it would be estimated from the drawn blocks: their mean is not 0.
    spread = squares - drawn**2 / with_bets
    error = np.sqrt(np.maximum(spread, 1e-12 * squares) * with_bets / (with_bets - 1))
    deviation = np.divide(np.abs(drawn), error, out=np.zeros_like(drawn), where=error > 0)
    return float(np.quantile(deviation.max(axis=1), _CONFIDENCE))
