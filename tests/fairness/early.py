"""Does seeing the price 250 ms early pay? With the speed bump it must not.

Two players have one rule of play: they bet in the direction of the move that they see. They
compare the newest price with the one 300 ms before (more than the 250 ms that are asked
about) and take the cell whose rate at the older price is best for the newer one, if that is
better than fair. Both see the same prices, one of them 300 ms before the page and the other
on the page: so they make the same bets, one of them 300 ms later. That the bets are the same
cancels their luck. What they return at all says whether it pays to bet on moves.
"""

from dataclasses import dataclass

import numpy as np

from fairness.game import BARS_PER_S, Offer, Rules, Tape, moments
from fairness.statistics import Floats, Integers

#: The close that the early player sees is that of the bar that ends so many bars later.
SIGHT_BARS = 3


@dataclass(frozen=True, slots=True)
class Race:
    """What the two got back by the same moves, times the stake; NaN: no bet."""

    early: Floats
    late: Floats
    block: Integers

    @property
    def gain(self) -> tuple[float, float, float]:
        """Return per stake of each, and the error of the difference, by blocks."""
        _, member = np.unique(self.block, return_inverse=True)
        sums, means = np.zeros(int(member.max(initial=-1)) + 1), []
        for payout, sign in ((self.early, 1.0), (self.late, -1.0)):
            made = ~np.isnan(payout)
            means.append(float(payout[made].mean()) if made.any() else 0.0)
            own = sign * (payout[made] - means[-1]) / max(int(made.sum()), 1)
            # The cells are the same, and so is most of the luck: it cancels.
            sums += np.bincount(member[made], weights=own, minlength=len(sums))
        error = np.sqrt((sums**2).sum() * len(sums) / max(len(sums) - 1, 1))
        return means[0], means[1], float(error)


def race(
    tape: Tape, rules: Rules, random: np.random.Generator, *, bump: bool, phases: int = 1
) -> Race:
    """Play one market with or without the speed bump."""
    arrivals, found = moments(tape, rules, random, phases)
    if not len(arrivals):
        return Race(np.empty(0), np.empty(0), np.empty(0, dtype=np.int64))
    early = Offer(tape, rules, arrivals, found)
    late = Offer(tape, rules, arrivals + SIGHT_BARS, found)
    late.low, late.high = early.low, early.high
    before = rules.rates.rate_bps(early.probability(early.shown))
    worth = before / 1e4 * early.probability(late.shown)
    row, cell = np.arange(len(worth)), worth.argmax(axis=1)
    moved = worth[row, cell] > 1.0
    payouts = []
    for offer in (early, late):
        page = rules.rates.rate_bps(offer.probability(offer.shown))[row, cell]
        priced, fine = offer.confirmed() if bump else (offer.shown, offer.live)
        rate = rules.rates.rate_bps(offer.probability(priced))[row, cell]
        open_still = offer.arrivals < offer.start - rules.width
        taken = moved & open_still & fine & (page > 0) & (rate > 0)
        payout = np.where(offer.won[row, cell], rate / 1e4, 0.0)
        payouts.append(np.where(taken, payout, np.nan)[moved])
    return Race(payouts[0], payouts[1], (early.start // rules.block)[moved])


def joined(races: list[Race]) -> Race:
    """Races in several markets, each a block of its own."""
    return Race(
        np.concatenate([one.early for one in races]),
        np.concatenate([one.late for one in races]),
        np.repeat(np.arange(len(races)), [len(one.block) for one in races]),
    )


def ahead_ms() -> int:
    """How early the early player sees, in ms of the game."""
    return SIGHT_BARS * 1000 // BARS_PER_S
