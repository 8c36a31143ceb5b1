"""How a load's requests, prices and connections are counted by phases."""

import pytest

from bench import phases
from bench.phases import Asked, Phases


def test_a_phase_ends_where_the_next_begins_and_keeps_its_name_for_itself() -> None:
    begun = Phases()
    for at, name in enumerate(("before", "deploy", "after", "deploy", "deploy")):
        begun.begin(name, at)
    names = [name for name, _, _ in begun.spans(9.0)]
    assert names == ["before", "deploy", "after", "deploy #2", "deploy #3"]
    assert begun.spans(9.0)[-1] == ("deploy #3", 4, 9.0)
    assert begun.at(1.5) == "deploy"


@pytest.mark.parametrize(
    ("asked", "failed"),
    [
        (Asked(0.0, 1.0, 202), False),
        (Asked(0.0, 1.0, 422, "cell_closed"), False),
        (Asked(0.0, 1.0, 422, "unknown_cell"), False),
        (Asked(0.0, 1.0, 422, "limit_exceeded"), True),
        (Asked(0.0, 1.0, 409, "duplicate_cell"), True),
        (Asked(0.0, 1.0, 429, "rate_limited"), True),
        (Asked(0.0, 1.0, 503, "feed_stale"), True),
        (Asked(0.0, 1.0, 200), True),
        (Asked(0.0, 1.0, 0, "no answer"), True),
    ],
)
def test_only_the_market_may_refuse_a_bet(asked: Asked, failed: bool) -> None:
    assert phases.of_requests([asked])["failed"] == failed


def test_the_gap_that_leads_into_a_phase_is_its_own() -> None:
    prices = [(0.0, 1_000), (0.1, 1_100), (2.1, 3_100), (2.2, 3_200)]
    assert phases.of_prices(prices, 1.0, 3.0) == {
        "longest_price_gap_s": 2.0,
        "longest_silence_s": 2.0,
    }
    assert phases.of_prices(prices, 2.15, 3.0)["longest_price_gap_s"] == 0.1


def test_failures_are_told_by_kind() -> None:
    begun = Phases()
    begun.begin("before", 100.0)
    begun.begin("deploy", 110.0)
    assert phases.of_failures([(112.0, "502"), (105.0, "500"), (111.0, "502")], begun) == [
        {"why": "500", "number": 1, "first_s": 5.0, "last_s": 5.0, "phase": "before"},
        {"why": "502", "number": 2, "first_s": 11.0, "last_s": 12.0, "phase": "deploy"},
    ]


def test_who_was_sent_away_twice_was_away_once() -> None:
    first = {"at": 1.0, "polite": True, "back_s": None, "how": "again"}
    absences = [first, {"at": 1.0, "polite": False, "back_s": 3.0, "how": "hello"}]
    assert phases.of_returns(absences, 0.0, 9.0) == {
        "closed_politely": 1,
        "closed_impolitely": 1,
        "median_return_s": 3.0,
        "slowest_return_s": 3.0,
    }
