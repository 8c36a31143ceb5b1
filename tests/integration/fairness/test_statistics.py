"""The bands hold as often as they say, and find what they say they would find."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fairness.early import Race
from fairness.statistics import Band, Tally, bands, tally

NAMES = ["near", "middle", "far"]
RATES = np.array([1.9, 6.0, 30.0])


def worth(mean: float, blocks: int, random: np.random.Generator) -> Tally:
    """Bets that return `mean` in every bucket, those of a block won or lost alike."""
    bucket = np.tile(np.repeat(np.arange(3), 20), blocks)
    block = np.repeat(np.arange(blocks), 60)
    chance = (mean / RATES)[bucket]
    # Half of the luck is the block's, so that plain errors would be far too small.
    shared = random.random(blocks)[block]
    own = random.random(len(block))
    luck = np.where(random.random(len(block)) < 0.5, shared, own)
    payout: NDArray[np.float64] = np.where(luck < chance, RATES[bucket], 0.0)
    return tally(payout, bucket, NAMES, block * 7 - 3)


def test_means_are_those_of_the_bets_and_all_comes_last() -> None:
    counted = tally(
        np.array([0.0, 2.0, 4.0, 6.0]), np.array([0, 0, 2, 2]), NAMES, np.array([5, 9, 5, 9])
    )
    found = bands(counted)
    assert [(band.name, band.bets, band.mean) for band in found] == [
        ("near", 2, 1.0),
        ("far", 2, 5.0),
        ("all", 4, 3.0),
    ]
    both = bands(counted + counted)
    assert [band.bets for band in both] == [4, 4, 8]
    assert [band.mean for band in both] == [1.0, 5.0, 3.0]


@pytest.mark.parametrize("blocks", [8, 60])
def test_a_fair_game_is_accused_as_rarely_as_promised(blocks: int) -> None:
    random = np.random.default_rng(blocks)
    games = 200
    accused = sum(
        any(band.low > 1 for band in bands(worth(1.0, blocks, random), seed=game))
        for game in range(games)
    )
    # One side of a band that holds 95 times of a hundred for all buckets at once.
    assert accused <= 0.05 * games + 3 * np.sqrt(0.05 * games)


def test_the_power_is_what_the_band_says() -> None:
    random = np.random.default_rng(3)

    def near(found: list[Band]) -> Band:
        return found[0]

    promised = float(np.median([near(bands(worth(1.0, 60, random))).found for _ in range(40)]))
    assert 1.1 < promised < 1.8
    caught = np.mean([near(bands(worth(promised, 60, random))).low > 1 for _ in range(100)])
    assert 0.6 < caught < 0.95


def test_a_bucket_that_never_wins_is_no_error() -> None:
    found = bands(tally(np.zeros(40), np.zeros(40, dtype=np.int64), NAMES, np.arange(40)))
    assert (found[0].mean, found[0].low, found[0].high) == (0, 0, 0)


def test_luck_that_both_players_share_is_no_error() -> None:
    random = np.random.default_rng(4)
    block = np.arange(50).repeat(40)
    luck = random.standard_normal(50).repeat(40)
    early, late, error = Race(luck + 0.5, luck, block).gain
    assert early - late == pytest.approx(0.5)
    assert error < 1e-9
    own = random.standard_normal(50).repeat(40)
    assert Race(own, luck, block).gain[2] == pytest.approx(np.sqrt(2 / 50), rel=0.3)


def test_who_never_bets_gains_nothing() -> None:
    nothing = np.full(4, np.nan)
    assert Race(nothing, nothing, np.arange(4)).gain == (0, 0, 0)
