"""The desk's verdict on a cell at a moment, and what a bet on it may cost the house."""

from pathlib import Path
from typing import Any

import pytest

import live_market
from live_market import GEOMETRY, PRICE, RATE, bar_before, offer
from tap_trading.base.disk import DiskGuard
from tap_trading.ledger.placing import BetRequest, Refusal
from tap_trading.market.offer import Offer
from tap_trading.market.point import PricePoint, number_of
from tap_trading.market.state import MarketState
from tap_trading.market.watch import PriceWatch
from tap_trading.services.desk import BetDesk

NOW = 1_764_000_002_000
STAKES = (100, 500)


class Clock:
    """Time that a test sets, Unix ms."""

    now = NOW

    def __call__(self) -> int:
        return self.now


class Market:
    """A desk whose market a test makes."""

    def __init__(self) -> None:
        self.clock = Clock()
        deaf: Any = None  # without Redis
        self._watch = PriceWatch(deaf, self.clock)
        self.disk = DiskGuard(Path("/"), 95)
        self.desk = BetDesk(
            watch=self._watch, disk=self.disk, geometry=GEOMETRY, stakes=STAKES, clock=self.clock
        )

    def hear(self, made: Offer) -> None:
        self._watch._take_offer(made.encode())
        self.price(made.t)

    def price(self, t: int) -> None:
        self._watch._take(PricePoint(t, number_of(t), PRICE).encode().encode())

    def bet(self, cell_id: str, amount: int = 500) -> BetRequest:
        body = f'{{"cell_id":"{cell_id}","amount":{amount}}}'.encode()
        return self.desk.request("ada", "key", body, self.clock())


@pytest.fixture
def market() -> Market:
    market = Market()
    market.hear(offer(NOW))
    return market


CELL = live_market.cells(now=NOW)[20].cell_id


def test_an_offered_cell_is_taken_at_the_rate_it_is_offered_at(market: Market) -> None:
    bet = market.bet(CELL)
    assert (bet.refusal, bet.liability) == (None, 500 * RATE // 10_000)
    market.hear(offer(NOW + 500, rate=30_001))
    assert market.bet(CELL, 100).liability == 300
    gone = offer(NOW + 1_000)
    market.hear(Offer(gone.t, gone.state, None, None, gone.columns, {}))
    assert market.bet(CELL, 100).liability == 300  # the newest offer that has it


def test_verdicts_in_their_order(market: Market) -> None:
    closed = f"btc-usd:{NOW // 1000 // 5 * 5 + 5}:5:8420000:8422000"
    off = CELL.rpartition(":")[0] + ":99999999"
    for cell_id, amount, refusal in (
        ("nonsense", 1, Refusal.UNKNOWN_CELL),
        (CELL, 101, Refusal.INVALID_AMOUNT),
        (closed, 101, Refusal.INVALID_AMOUNT),
        (closed, 100, Refusal.CELL_CLOSED),
        (closed.replace(":5:", ":10:", 1), 100, Refusal.UNKNOWN_CELL),
        (off, 100, Refusal.UNKNOWN_CELL),
    ):
        bet = market.bet(cell_id, amount)
        assert (bet.refusal, bet.liability) == (refusal, 0), cell_id
    market.hear(offer(NOW, state=MarketState.SUSPENDED, reason="manual"))
    assert market.bet(CELL).refusal is Refusal.FEED_STALE
    assert market.bet(closed).refusal is Refusal.FEED_STALE


def test_a_full_disk_refuses_only_what_would_be_a_bet(market: Market) -> None:
    market.disk.is_full = True
    bet = market.bet(CELL)
    assert (bet.refusal, bet.liability) == (Refusal.STORAGE_UNAVAILABLE, 0)
    assert market.bet(CELL, 101).refusal is Refusal.INVALID_AMOUNT
    assert market.bet("nonsense").refusal is Refusal.UNKNOWN_CELL
    market.disk.is_full = False
    assert market.bet(CELL).refusal is None


def test_a_column_closes_by_the_clock_though_it_was_just_offered(market: Market) -> None:
    first = live_market.cells(now=NOW)[0]
    market.clock.now = (first.start - GEOMETRY.width_s) * 1000 - 1
    market.price(bar_before(market.clock.now))
    market.hear(offer(NOW))  # late on its way
    market.price(bar_before(market.clock.now))
    assert market.bet(first.cell_id).refusal is None
    market.clock.now += 1
    assert market.bet(first.cell_id).refusal is Refusal.CELL_CLOSED


@pytest.mark.parametrize(("age_ms", "refusal"), [(9_900, None), (10_000, Refusal.FEED_STALE)])
def test_an_old_offer_takes_bets_until_it_is_too_old(
    market: Market, age_ms: int, refusal: Refusal | None
) -> None:
    cell = live_market.cells(now=NOW)[-1].cell_id
    market.clock.now = bar_before(NOW) + age_ms
    assert market.bet(cell).refusal is refusal
