"""Which copies are kept: the newest of each of the last hours, days and weeks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Retention:
    """How many hours, days and weeks (UTC, ISO) with a copy keep their newest one."""

    hourly: int
    daily: int
    weekly: int


def kept(taken: Iterable[datetime], retention: Retention) -> set[datetime]:
    """Those of the moments that stay. The newest always does.

    What counts are hours, days and weeks with a copy: while none is made, none is dropped.
    """
    newest_first = sorted(set(taken), reverse=True)
    return {
        *newest_first[:1],
        *_newest_of_each(newest_first, _hour, retention.hourly),
        *_newest_of_each(newest_first, _day, retention.daily),
        *_newest_of_each(newest_first, _week, retention.weekly),
    }


def _newest_of_each(
    newest_first: Iterable[datetime], period: Callable[[datetime], tuple[int, ...]], count: int
) -> Iterator[datetime]:
    seen: set[tuple[int, ...]] = set()
    for moment in newest_first:
        of = period(moment.astimezone(UTC))
        if of not in seen and len(seen) < count:
            seen.add(of)
            yield moment


def _hour(moment: datetime) -> tuple[int, ...]:
    return moment.year, moment.month, moment.day, moment.hour


def _day(moment: datetime) -> tuple[int, ...]:
    return moment.year, moment.month, moment.day


def _week(moment: datetime) -> tuple[int, ...]:
    year, week, _ = moment.isocalendar()
    return year, week
