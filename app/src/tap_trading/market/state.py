"""Whether the market takes bets, by how old its news are."""

from enum import StrEnum

DEGRADED_AFTER_MS = 3_000
SUSPENDED_AFTER_MS = 10_000
#: News stamped further ahead than this are of a clock that has been set back since.
_FUTURE_MS = 2_000


class MarketState(StrEnum):
    """Whether the market takes bets."""

    OPEN = "open"
    DEGRADED = "degraded"  # no price for 3 s; bets are taken
    SUSPENDED = "suspended"  # no bets are taken


_ORDER = (MarketState.OPEN, MarketState.DEGRADED, MarketState.SUSPENDED)


def state_of(age_ms: int | None) -> MarketState:
    """State by the age of the latest news, in ms (None: there are none)."""
    if age_ms is None or age_ms >= SUSPENDED_AFTER_MS or age_ms < -_FUTURE_MS:
        return MarketState.SUSPENDED
    return MarketState.DEGRADED if age_ms >= DEGRADED_AFTER_MS else MarketState.OPEN


def worst(*states: MarketState) -> MarketState:
    """The one of them that takes the fewest bets."""
    return max(states, key=_ORDER.index)
