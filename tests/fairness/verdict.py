"""What is asked of the rates, and the answers for one market each."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import t

from fairness.early import Race, ahead_ms, joined, race
from fairness.game import Bets, Rules, play, tape_of
from fairness.recordings import bars_of, read_ticks
from fairness.statistics import (
    FEWEST_CLUSTERS,
    Band,
    Integers,
    Tally,
    bands,
    by_probability,
    distance_and_lead,
    tally,
)
from tap_trading.game.volatility import BAR_MS

#: What a player may get back per stake: by picking at random, and in any bucket.
RANDOM_PLAYER = (0.93, 0.97)
ANY_BUCKET = (0.85, 1.00)
#: A gain that chance explains less often than this is none of chance.
_CONFIDENCE = 0.95
#: Less than this per stake is no gain from sight: the estimate notices a move within a second,
#: and whoever is priced 300 ms sooner is ahead of a part of that. A fifth of the house's edge.
_NO_GAIN = 0.01
#: Files have few moves for early players: columns are laid for them so many times, shifted.
_PHASES = 5


@dataclass(frozen=True, slots=True)
class Market:
    """What was measured in one market."""

    name: str
    about: str  # how many bars, columns, bets
    returns: list[Band]  # by distance and lead; the last is of all bets
    calibration: list[tuple[Band, float]]  # winners' share by probability; the mean probability
    findings: list[str]  # what is wrong; empty: nothing
    notes: list[str]

    @property
    def verdict(self) -> str:
        """One word for the summary."""
        return "FAILED" if self.findings else "passed"


def recorded(path: Path, rules: Rules, *, spacing_ms: float | None = None) -> Market:
    """A recorded market. Raises UnreadableError."""
    bars = bars_of(read_ticks(path), spacing_ms)
    tape = tape_of(bars, rules.volatility)
    bets = play(tape, rules, np.random.default_rng(1))
    column, block = bets.column // rules.width, bets.column // rules.block
    columns, blocks = len(np.unique(column)), len(np.unique(block))
    about = (
        f"{len(bars.slots)} bars of {bars.scale * BAR_MS:g} ms; {len(bets)} bets on {columns} "
        f"columns, in {blocks} blocks of columns that share no path"
    )
    if columns < 2:
        note = "too short: nothing can be bet on after the warm-up, so NOTHING WAS TESTED"
        return Market(path.stem, about, [], [], [], [note])
    returns, calibration = _tables(count(bets, column))
    with_bump, without = (
        race(tape, rules, np.random.default_rng(2), bump=bump, phases=_PHASES)
        for bump in (True, False)
    )
    notes = [_power(returns), _by_blocks(bets, block), _race(with_bump, "with")]
    notes.append(_race(without, "without"))
    if columns >= FEWEST_CLUSTERS:
        findings = _above_one(returns) + _early_gain(with_bump)
    else:
        findings = []
        notes.insert(
            0,
            f"{columns} columns are fewer than {FEWEST_CLUSTERS}: the figures are shown, "
            "but NO VERDICT rests on them",
        )
    return Market(path.stem, about, returns, calibration, findings, notes)


def _by_blocks(bets: Bets, block: Integers) -> str:
    """What the bands would be if columns that share a path were one observation."""
    blocks = len(np.unique(block))
    if blocks < FEWEST_CLUSTERS:
        return f"by blocks of columns: {blocks} are too few for bands"
    highest = max(bands(tally(bets.payout, *distance_and_lead(bets), block)), key=lambda b: b.low)
    return (
        f"by blocks of columns the highest lower band is {highest.low:.3f} "
        f"({highest.name}, {highest.mean:.3f} +- {highest.error:.3f})"
    )


@dataclass(frozen=True, slots=True)
class Counts:
    """Bets, counted in the ways that are reported."""

    returned: Tally  # by distance and lead
    won: Tally  # by probability
    probability: Tally

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.returned + other.returned,
            self.won + other.won,
            self.probability + other.probability,
        )


def count(bets: Bets, block: Integers) -> Counts:
    """Count one game's bets, each in its block."""
    chance = by_probability(bets)
    return Counts(
        tally(bets.payout, *distance_and_lead(bets), block),
        tally(bets.won.astype(np.float64), *chance, block),
        tally(bets.probability, *chance, block),
    )


def simulated(name: str, counts: Counts, early: list[tuple[Race, Race]]) -> Market:
    """Simulated markets of one kind, each a block; early players' races in some of them."""
    returns, calibration = _tables(counts)
    everyone = returns[-1]
    low, high = RANDOM_PLAYER
    findings = [
        f"bets of {band.name} return {band.mean:.3f} +- {band.error:.3f}: outside "
        f"{ANY_BUCKET[0]:.2f} to {ANY_BUCKET[1]:.2f}"
        for band in returns
        if _outside(band, ANY_BUCKET)
    ]
    if _outside(everyone, RANDOM_PLAYER):
        findings.append(
            f"a random player gets back {everyone.mean:.4f} +- {everyone.error:.4f}: outside "
            f"{low:.2f} to {high:.2f}"
        )
    notes = [
        f"a random player gets back {everyone.mean:.4f} +- {everyone.error:.4f} per stake",
        f"largest standard error of a bucket: {max(band.error for band in returns):.4f}",
    ]
    if early:
        with_bump, without = (joined([pair[i] for pair in early]) for i in (0, 1))
        notes += [_race(with_bump, "with"), _race(without, "without")]
        findings += _early_gain(with_bump)
    about = f"{everyone.bets} bets in {len(counts.returned.counts)} independent markets"
    return Market(name, about, returns, calibration, findings, notes)


def _outside(band: Band, limits: tuple[float, float]) -> bool:
    """Whether it is by more than the error of a simulation that was not made long enough."""
    return not limits[0] - 2 * band.error <= band.mean <= limits[1] + 2 * band.error


def _tables(counts: Counts) -> tuple[list[Band], list[tuple[Band, float]]]:
    bets, chances = counts.won.counts.sum(axis=0), counts.probability.sums.sum(axis=0)
    offered = [float(chances[i] / bets[i]) for i in range(len(bets)) if bets[i]]
    return bands(counts.returned), list(zip(bands(counts.won)[:-1], offered, strict=True))


def _above_one(returns: list[Band]) -> list[str]:
    return [
        f"bets of {band.name} return {band.mean:.3f}, with confidence at least {band.low:.3f}: "
        "above 1.00"
        for band in returns
        if band.low > ANY_BUCKET[1]
    ]


def _power(returns: list[Band]) -> str:
    buckets = [band.found for band in returns[:-1]]
    return (
        "power: found four times of five would be a true return from "
        f"{returns[-1].found:.2f} (all bets), {min(buckets):.2f} (best known bucket), "
        f"{max(buckets):.2f} (worst)"
    )


def _race(found: Race, how: str) -> str:
    early, late, error = found.gain
    bets, others = (int((~np.isnan(made)).sum()) for made in (found.early, found.late))
    if not bets or not others:
        return f"{how} the speed bump: no move to bet on"
    return (
        f"{how} the speed bump: betting on moves seen {ahead_ms()} ms early returns {early:.3f} "
        f"per stake ({bets} bets), {ahead_ms()} ms later when the page shows them {late:.3f} ({others}); "
        f"gain {early - late:+.3f} +- {error:.3f} ({len(np.unique(found.block))} blocks)"
    )


def _early_gain(found: Race) -> list[str]:
    early, late, error = found.gain
    blocks = len(np.unique(found.block))
    both = not (np.isnan(found.early).all() or np.isnan(found.late).all())
    if blocks < FEWEST_CLUSTERS or not both:
        return []
    if early - late <= _NO_GAIN + float(t.ppf(_CONFIDENCE, blocks - 1)) * error:
        return []
    return [f"seeing the price early gains {early - late:+.3f} +- {error:.3f} in spite of the bump"]
