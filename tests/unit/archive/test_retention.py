"""Which copies stay: the newest of each hour, day and week, and never too few."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tap_trading.archive.retention import Retention, kept

BETS = Retention(hourly=24, daily=7, weekly=5)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)

moments = st.lists(
    st.integers(0, 90 * 24 * 60).map(lambda minutes: BEGIN + timedelta(minutes=minutes)),
    max_size=200,
)
retentions = st.builds(Retention, *[st.integers(1, 30)] * 3)


def hour(moment: datetime) -> str:
    return moment.strftime("%Y%m%d%H")


def day(moment: datetime) -> str:
    return moment.strftime("%Y%m%d")


def week(moment: datetime) -> str:
    return moment.strftime("%G%V")


def test_a_year_of_hourly_copies_leaves_24_hours_7_days_and_5_weeks() -> None:
    copies: set[datetime] = set()
    for number in range(365 * 24):
        copies = kept({*copies, BEGIN + timedelta(hours=number, minutes=2)}, BETS)
    newest = max(copies)
    assert len({hour(copy) for copy in copies if newest - copy < timedelta(hours=24)}) == 24
    assert len({day(copy) for copy in copies}) >= 7
    assert len({week(copy) for copy in copies}) == 5
    # The newest is that of its hour, day and week, and a Sunday's that of its day and week.
    assert len(copies) == 24 + 7 + 5 - 2 - 1
    days = [copy for copy in copies if newest - copy >= timedelta(hours=24)]
    assert {copy.hour for copy in days} == {23}


@given(taken=moments, retention=retentions)
def test_what_stays(taken: list[datetime], retention: Retention) -> None:
    stays = kept(taken, retention)
    assert stays <= set(taken)
    assert len(stays) <= retention.hourly + retention.daily + retention.weekly
    assert kept(stays, retention) == stays
    for period, count in (
        (hour, retention.hourly),
        (day, retention.daily),
        (week, retention.weekly),
    ):
        newest_of_each = {period(moment): moment for moment in sorted(taken)}
        last = sorted(newest_of_each)[-count:]
        assert {newest_of_each[name] for name in last} <= stays


@given(taken=moments, retention=retentions)
def test_nothing_else_stays(taken: list[datetime], retention: Retention) -> None:
    for moment in kept(taken, retention):
        assert any(
            moment == max(other for other in taken if period(other) == period(moment))
            and len({period(other) for other in taken if other > moment} - {period(moment)}) < count
            for period, count in (
                (hour, retention.hourly),
                (day, retention.daily),
                (week, retention.weekly),
            )
        )


def test_while_no_copies_are_made_none_is_dropped() -> None:
    hourly = {BEGIN + timedelta(hours=number) for number in range(24)}
    assert kept(hourly, BETS) == hourly
    later = BEGIN + timedelta(days=400)
    assert len(kept({*hourly, later}, BETS)) == 24


def test_of_an_hour_only_the_newest_stays() -> None:
    copies = [BEGIN + timedelta(minutes=number) for number in (0, 20, 59)]
    assert kept(copies, BETS) == {copies[2]}
    assert kept([], BETS) == set()
