"""Weeks as archives count them: ISO weeks in UTC, from Monday to Monday."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Self

_WEEK = timedelta(weeks=1)
_NAME = re.compile(r"(\d{4})_w(\d{2})")


@dataclass(frozen=True, slots=True, order=True)
class Week:
    """An ISO week: weeks sort by time."""

    year: int  # of its Thursday
    number: int  # 1 to 53

    @classmethod
    def of(cls, at: int) -> Self:
        """The week of a moment, Unix ms."""
        year, number, _ = datetime.fromtimestamp(at / 1000, UTC).isocalendar()
        return cls(year, number)

    @classmethod
    def parse(cls, name: str) -> Self:
        """The week of a name such as 2026_w47. Raises ValueError."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is no week such as 2026_w47")
        week = cls(int(match[1]), int(match[2]))
        date.fromisocalendar(week.year, week.number, 1)  # raises ValueError
        return week

    @property
    def name(self) -> str:
        """Such as 2026_w47; names sort by time too."""
        return f"{self.year:04d}_w{self.number:02d}"

    @property
    def begins_at(self) -> int:
        """Its first moment, Unix ms."""
        return _unix_ms(self._monday)

    @property
    def ends_at(self) -> int:
        """The first moment after it, Unix ms."""
        return _unix_ms(self._monday + _WEEK)

    @property
    def next(self) -> Self:
        """The week after it."""
        return self.of(self.ends_at)

    @property
    def _monday(self) -> datetime:
        monday = date.fromisocalendar(self.year, self.number, 1)
        return datetime(monday.year, monday.month, monday.day, tzinfo=UTC)


def _unix_ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000
