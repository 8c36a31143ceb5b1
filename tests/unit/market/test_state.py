"""The market's state by the age of what is known."""

import pytest

from tap_trading.market.state import MarketState, state_of, worst


@pytest.mark.parametrize(
    ("age_ms", "state"),
    [
        (None, MarketState.SUSPENDED),
        (-2_001, MarketState.SUSPENDED),
        (-2_000, MarketState.OPEN),
        (0, MarketState.OPEN),
        (2_999, MarketState.OPEN),
        (3_000, MarketState.DEGRADED),
        (9_999, MarketState.DEGRADED),
        (10_000, MarketState.SUSPENDED),
    ],
)
def test_states(age_ms: int | None, state: MarketState) -> None:
    assert state_of(age_ms) is state


def test_the_worst_of_states() -> None:
    assert worst(MarketState.OPEN, MarketState.DEGRADED) is MarketState.DEGRADED
    assert worst(MarketState.SUSPENDED, MarketState.DEGRADED) is MarketState.SUSPENDED
    assert worst(MarketState.OPEN) is MarketState.OPEN
