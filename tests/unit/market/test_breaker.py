"""The circuit breaker: quick to close, slow to open, never opened by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_trading.market.breaker import Breaker, MarketStatus, Reason
from tap_trading.market.index import NoPrice
from tap_trading.market.watch import MarketState

START = 1_764_000_000_000
OPEN, DEGRADED, SUSPENDED = MarketState.OPEN, MarketState.DEGRADED, MarketState.SUSPENDED


def bars(breaker: Breaker, since: int, until: int, *, without: frozenset[int] = frozenset()) -> int:
    """A bar for each slot of [since, until) ms after the start, but some; returns the end."""
    for t in range(since, until, 100):
        if t not in without:
            breaker.bar(START + t)
    return START + until


def opened() -> tuple[Breaker, int]:
    """A market that has just opened, and how many ms after the start."""
    breaker = Breaker(START)
    bars(breaker, 0, 30_000)
    assert breaker.status(START + 30_000).state is OPEN
    return breaker, 30_000


def told(breaker: Breaker, at: int) -> tuple[MarketState, Reason | None]:
    status = breaker.status(START + at)
    return status.state, status.reason


def test_it_starts_suspended_and_opens_after_30_s_of_bars() -> None:
    breaker = Breaker(START)
    assert breaker.status(START) == MarketStatus(SUSPENDED, Reason.STARTING, START, None, None)
    assert told(breaker, 60_000) == (SUSPENDED, Reason.STARTING)
    bars(breaker, 60_000, 89_900)
    status = breaker.status(START + 89_900)
    assert status == MarketStatus(SUSPENDED, Reason.SETTLING, START, 100, None)
    breaker.bar(START + 89_900)
    assert breaker.status(START + 90_000) == MarketStatus(OPEN, None, START + 90_000, None, None)


def test_without_bars_it_is_degraded_after_3_s_and_suspended_after_10() -> None:
    breaker, end = opened()
    assert told(breaker, end + 2_999) == (OPEN, None)
    assert told(breaker, end + 3_000) == (DEGRADED, Reason.NO_PRICE)
    assert told(breaker, end + 9_999) == (DEGRADED, Reason.NO_PRICE)
    status = breaker.status(START + end + 10_000)
    assert (status.state, status.reason) == (SUSPENDED, Reason.NO_PRICE)
    assert status.since == START + end + 10_000
    assert status.retry_in_ms is None


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize(
    ("gap", "state"), [(2_900, OPEN), (3_000, DEGRADED), (9_900, DEGRADED), (10_000, SUSPENDED)]
)
def test_a_gap_counts_also_when_nobody_asked_meanwhile(
    gap: int, state: MarketState, asked: bool
) -> None:
    breaker, end = opened()
    if asked:
        for at in range(0, gap, 100):
            breaker.status(START + end + at)
    breaker.bar(START + end + gap - 100)
    assert breaker.status(START + end + gap).state is state


@pytest.mark.parametrize("gap", [3_000, 10_000])
def test_it_opens_again_only_after_30_s_of_stable_prices(gap: int) -> None:
    breaker, end = opened()
    begin = end + gap
    breaker.status(START + begin)
    bars(breaker, begin, begin + 29_900)
    state, reason = told(breaker, begin + 29_900)
    assert state is not OPEN
    assert reason is Reason.SETTLING
    breaker.bar(START + begin + 29_900)
    assert told(breaker, begin + 30_000) == (OPEN, None)


@pytest.mark.parametrize("reason", [NoPrice.QUORUM_LOST, NoPrice.DISAGREEMENT])
def test_venues_that_give_no_price_suspend_it_at_once(reason: NoPrice) -> None:
    breaker, end = opened()
    breaker.missed(START + end + 100, reason)
    assert told(breaker, end + 100) == (SUSPENDED, Reason(reason.value))
    # The next bar does not open it: 30 s have to pass, from then on.
    bars(breaker, end + 200, end + 30_100)
    assert told(breaker, end + 30_100) == (SUSPENDED, Reason.SETTLING)
    breaker.missed(START + end + 30_200, reason)
    assert told(breaker, end + 30_200) == (SUSPENDED, Reason(reason.value))
    bars(breaker, end + 30_200, end + 60_200)
    assert told(breaker, end + 60_200) == (OPEN, None)


def test_a_process_that_waits_for_its_first_messages_suspends_nothing() -> None:
    breaker, end = opened()
    breaker.missed(START + end + 100, NoPrice.STARTING)
    assert told(breaker, end + 100) == (OPEN, None)
    assert told(breaker, end + 3_000) == (DEGRADED, Reason.NO_PRICE)


@pytest.mark.parametrize(("missing", "state"), [(15, OPEN), (16, SUSPENDED)])
def test_stable_prices_may_miss_one_bar_in_twenty(missing: int, state: MarketState) -> None:
    breaker = Breaker(START)
    without = frozenset(range(1_000, 1_000 + missing * 1_000, 1_000))
    bars(breaker, 0, 30_000, without=without)
    assert breaker.status(START + 30_000).state is state


@pytest.mark.parametrize(("missing", "state"), [(9, OPEN), (10, SUSPENDED)])
def test_stable_prices_have_no_gap_longer_than_a_second(missing: int, state: MarketState) -> None:
    breaker = Breaker(START)
    without = frozenset(range(5_000, 5_000 + missing * 100, 100))
    bars(breaker, 0, 30_000, without=without)
    assert breaker.status(START + 30_000).state is state


def test_stable_prices_that_stop_are_not_awaited_with_a_date() -> None:
    breaker = Breaker(START)
    bars(breaker, 0, 20_000)
    assert breaker.status(START + 21_000).retry_in_ms == 9_000
    assert breaker.status(START + 21_001).retry_in_ms is None
    assert told(breaker, 23_000) == (SUSPENDED, Reason.NO_PRICE)


def test_ops_suspend_and_release() -> None:
    breaker, end = opened()
    breaker.suspend("exchange maintenance", START + end)
    expected = MarketStatus(SUSPENDED, Reason.MANUAL, START + end, None, "exchange maintenance")
    bars(breaker, end, end + 60_000)
    assert breaker.status(START + end + 60_000) == expected
    breaker.release()
    assert told(breaker, end + 60_000) == (OPEN, None)


def test_a_release_opens_nothing_without_prices() -> None:
    breaker = Breaker(START)
    breaker.suspend("no", START)
    breaker.release()
    assert told(breaker, 0) == (SUSPENDED, Reason.STARTING)
    breaker, end = opened()
    breaker.suspend("no", START + end)
    breaker.missed(START + end + 100, NoPrice.QUORUM_LOST)
    breaker.release()
    assert told(breaker, end + 100) == (SUSPENDED, Reason.QUORUM_LOST)


def test_a_clock_set_back_suspends_it() -> None:
    breaker, end = opened()
    assert told(breaker, end - 2_000) == (OPEN, None)
    assert told(breaker, end - 2_001) == (SUSPENDED, Reason.CLOCK)
    bars(breaker, end, end + 29_900)
    assert told(breaker, end + 29_900) == (SUSPENDED, Reason.SETTLING)


events = st.lists(
    st.one_of(
        st.tuples(st.just("bars"), st.integers(1, 400)),
        st.tuples(st.just("gap"), st.integers(1, 150)),
        st.tuples(st.sampled_from(["quorum_lost", "disagreement", "starting"]), st.just(1)),
        st.tuples(st.sampled_from(["suspend", "release"]), st.just(0)),
        st.tuples(st.just("restart"), st.integers(1, 150)),
    ),
    max_size=30,
)


class Model:
    """Beside a breaker, what it has to be judged by."""

    def __init__(self) -> None:
        self.breaker = Breaker(START)
        self.at = 0  # ms after the start
        self.manual = False
        self.last = -(10**9)  # the last bar's end
        self.run = 0  # bars since the last trouble

    def bars(self) -> None:
        if self.at + 100 - self.last >= 3_000:
            self.run = 0
        self.breaker.bar(START + self.at)
        self.last, self.run = self.at + 100, self.run + 1

    def missed(self, reason: NoPrice) -> None:
        self.breaker.missed(START + self.at, reason)
        if reason is not NoPrice.STARTING:
            self.run = 0

    def command(self, what: str, slots: int) -> None:
        if what == "restart":
            state = json.loads(json.dumps(self.breaker.export()))
            self.at += 100 * slots
            self.breaker = Breaker(START + self.at)
            self.breaker.restore(state, START + self.at)
        else:
            self.manual = what == "suspend"
            if self.manual:
                self.breaker.suspend("ops", START + self.at)
            else:
                self.breaker.release()

    def slot(self, what: str) -> None:
        if what == "bars":
            self.bars()
        elif what != "gap":
            self.missed(NoPrice(what))
        self.at += 100


@given(events)
def test_it_is_open_only_after_30_s_of_bars_and_never_without(
    happenings: list[tuple[str, int]],
) -> None:
    model = Model()
    for what, count in [("bars", 300), *happenings]:
        if what in {"suspend", "release", "restart"}:
            model.command(what, count)
            continue
        for _ in range(count):
            model.slot(what)
            status = model.breaker.status(START + model.at)
            if status.state is OPEN:
                assert not model.manual
                assert model.at - model.last < 3_000
                assert model.run >= 285


def test_a_restart_of_a_second_or_two_closes_nothing() -> None:
    breaker, end = opened()
    state = json.loads(json.dumps(breaker.export()))
    other = Breaker(START + end + 2_000)
    other.restore(state, START + end + 2_000)
    assert told(other, end + 2_000) == (OPEN, None)
    other.bar(START + end + 2_100)
    assert told(other, end + 2_200) == (OPEN, None)


def test_after_a_longer_one_it_begins_anew_but_what_ops_said_stays() -> None:
    breaker, end = opened()
    breaker.suspend("stays", START + end)
    state = json.loads(json.dumps(breaker.export()))
    other = Breaker(START + end + 10_000)
    other.restore(state, START + end + 10_000)
    assert told(other, end + 10_000) == (SUSPENDED, Reason.MANUAL)
    other.release()
    assert told(other, end + 10_000) == (SUSPENDED, Reason.STARTING)


@pytest.mark.parametrize(
    "change",
    [
        {"state": "wide open"},
        {"reason": "because"},
        {"reason": "no_price"},  # open for a reason
        {"last": None},
        {"manual": "text"},
    ],
)
def test_what_is_no_state_is_refused(change: dict[str, object]) -> None:
    breaker, end = opened()
    other = Breaker(START + end)
    with pytest.raises(ValueError, match="not a state of the breaker"):
        other.restore({**breaker.export(), **change}, START + end)
    assert told(other, end) == (SUSPENDED, Reason.STARTING)
