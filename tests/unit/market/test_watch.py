"""The market's state by the price's age."""

import pytest

from tap_trading.market.watch import MarketState, state_of


@pytest.mark.parametrize(
    ("age_ms", "state"),
    [
        (None, MarketState.SUSPENDED),
        (0, MarketState.OPEN),
        (2_999, MarketState.OPEN),
        (3_000, MarketState.DEGRADED),
        (9_999, MarketState.DEGRADED),
        (10_000, MarketState.SUSPENDED),
    ],
)
def test_states(age_ms: int | None, state: MarketState) -> None:
    assert state_of(age_ms) is state
