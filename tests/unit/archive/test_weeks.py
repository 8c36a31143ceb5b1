"""Weeks: where they begin and end, and what they are called."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_trading.archive.weeks import Week

DAY_MS = 24 * 3600 * 1000


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def test_a_week_is_from_monday_to_monday_in_utc() -> None:
    week = Week.of(ms("2026-11-22T23:59:59.999"))
    assert week == Week(2026, 47)
    assert week.name == "2026_w47"
    assert week.begins_at == ms("2026-11-16")
    assert week.ends_at == ms("2026-11-23")
    assert Week.of(week.ends_at) == week.next == Week(2026, 48)


def test_a_year_has_its_thursdays() -> None:
    assert Week.of(ms("2027-01-01")).name == "2026_w53"
    assert Week.of(ms("2027-01-04")).name == "2027_w01"
    assert Week(2026, 53).next == Week(2027, 1)
    assert Week.of(ms("2024-12-30")).name == "2025_w01"


@given(st.integers(0, 4 * 10**12))
def test_every_moment_is_in_one_week_and_names_sort_like_time(at: int) -> None:
    week = Week.of(at)
    assert week.begins_at <= at < week.ends_at
    assert week.ends_at - week.begins_at == 7 * DAY_MS
    assert Week.parse(week.name) == week
    assert week < week.next
    assert week.name < week.next.name


@pytest.mark.parametrize("name", ["", "2026_w54", "2026_w00", "2026-w47", "2026_w7", "26_w47"])
def test_what_is_no_name_of_a_week(name: str) -> None:
    with pytest.raises(ValueError, match="week"):
        Week.parse(name)
